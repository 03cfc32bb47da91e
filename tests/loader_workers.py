"""A DataLoader whose workers run convolutions forward and backward: python tests/loader_workers.py fork|spawn WORKERS

A program of its own, for torch refuses backward in a forked process once its parent has started a thread for autograd,
as any test before may have done.
"""

from __future__ import annotations

import sys

import torch
from modules import TWINS
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

FUSED = next(twin for twin in TWINS if twin.name == "ConvReLUMaxPool2d")


class Features(Dataset[Tensor]):
    """Images of which a convolution is taken in the worker, forward and backward."""

    def __init__(self) -> None:
        self.module, _ = FUSED.modules()

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Tensor:
        leaf = FUSED.input(1, seed=index).requires_grad_()
        output = self.module(leaf)
        output.square().sum().backward()
        return torch.cat([output.detach().flatten(), leaf.grad.flatten()])


def main(how: str, workers: int) -> None:
    dataset = Features()
    expected = torch.stack([dataset[i] for i in range(len(dataset))])
    torch.set_num_threads(2)
    dataset.module(FUSED.input(256))  # the parent's threads are running when it forks
    loader = DataLoader(dataset, batch_size=3, num_workers=workers, multiprocessing_context=how, timeout=120)
    assert torch.equal(torch.cat(list(loader)), expected)
    print("the same")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

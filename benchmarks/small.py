"""The suite `small`: fused blocks of few channels, as small networks stack them; and what a call costs beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

import cnnfast

from .case import Case
from .results import Row
from .suites import Options, case_of
from .work import BACKWARD, FORWARD, Work

__all__ = ["BLOCKS", "Block", "cases", "work_of"]

BATCHES = {"cpu": (1, 64), "cuda": (64, 4096)}
QUICK_BATCHES = {"cpu": (64,), "cuda": (4096,)}


@dataclasses.dataclass(frozen=True)
class Block:
    """Convolution (stride 1) + ReLU and, with a ``pool`` of (window, stride), max-pooling, on C x H x W inputs."""

    label: str
    input: tuple[int, int, int]
    filters: int
    kernel: int
    padding: int
    pool: tuple[int, int] | None = (2, 2)
    first: bool = False  # in its network: its input is an image, whose gradient nobody wants
    quick: bool = False


BLOCKS: tuple[Block, ...] = (
    Block("lecture 1->12", (1, 28, 28), 12, 3, 1, first=True, quick=True),
    Block("lecture 12->24", (12, 14, 14), 24, 3, 1, quick=True),
    Block("LeNet 5x5, 1->6", (1, 28, 28), 6, 5, 2, first=True),
    Block("LeNet 5x5, 6->16", (6, 14, 14), 16, 5, 0),
    Block("colour 3->32", (3, 32, 32), 32, 3, 1, first=True, quick=True),
    Block("colour 32->64", (32, 16, 16), 64, 3, 1),
    Block("colour 5x5, 3->32", (3, 32, 32), 32, 5, 2, first=True),
    Block("colour, 3x3 pool, 3->16", (3, 32, 32), 16, 3, 1, (3, 2), first=True),
    Block("3x3 pool, 16->32", (16, 15, 15), 32, 3, 1, (3, 2), quick=True),
    Block("odd sizes, 7->13", (7, 27, 23), 13, 3, 1),
    Block("no pool, 3->16", (3, 32, 32), 16, 3, 1, None, first=True),
    Block("no pool, 16->16", (16, 32, 32), 16, 3, 1, None),
)


def work_of(block: Block, batch: int, mode: str) -> Work:
    """The block with random weights. Inside a network its input is a ReLU's output: not negative."""
    torch.manual_seed(0)
    convolution = {"in_channels": block.input[0], "out_channels": block.filters, "kernel_size": block.kernel}
    plain = nn.Sequential(nn.Conv2d(**convolution, padding=block.padding), nn.ReLU())
    if block.pool is None:
        ours: nn.Module = cnnfast.ConvReLU2d(**convolution, padding=block.padding)
    else:
        window, stride = block.pool
        pool = {"pool_kernel_size": window, "pool_stride": stride}
        ours = cnnfast.ConvReLUMaxPool2d(**convolution, padding=block.padding, **pool)
        plain.append(nn.MaxPool2d(window, stride))
    plain[0].load_state_dict(ours.state_dict())
    x = torch.randn(batch, *block.input)
    return Work(ours, plain, x if block.first else x.relu(), mode, input_gradient=not block.first)


def cases(options: Options) -> Iterator[Case | Row]:
    """The suite; quick: a third of the blocks at batch 64. The rivals are torch's, eager, in both layouts."""
    options = dataclasses.replace(options, rivals=[r for r in options.rivals if r in ("eager", "channels_last")])
    for batch in (QUICK_BATCHES if options.quick else BATCHES)[options.device]:
        for block in BLOCKS:
            if options.quick and not block.quick:
                continue
            for mode in (FORWARD, BACKWARD):
                yield case_of(f"Batch {batch}", block.label, work_of(block, batch, mode), options)
    # So little work that what is timed is the way to the kernel and back.
    smallest = Block("3x3, 1->1, one image of 4x4", (1, 4, 4), 1, 3, 1)
    for mode in (FORWARD, BACKWARD):
        yield case_of("Cost of a call", smallest.label, work_of(smallest, 1, mode), options)

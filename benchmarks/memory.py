"""Bytes that autograd keeps between forward and backward."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["bytes_kept"]


def bytes_kept(model: nn.Module, input: Tensor) -> int:
    """Bytes of the distinct storages saved for backward by ``model(input)``, those of its parameters left out.

    The input counts where it is saved. A storage counts as a whole and once, however many views of it are saved.
    """
    not_counted = {p.untyped_storage().data_ptr() for p in model.parameters()}
    # Tensors are held until the count is done, lest a freed storage's address come back as another's.
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(input)
    storages = {s.data_ptr(): s.nbytes() for s in (tensor.untyped_storage() for tensor in saved)}
    del output
    return sum(size for address, size in storages.items() if address not in not_counted)

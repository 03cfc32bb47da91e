"""What the lecture's convolution layers keep for backward, in bytes, against the same layers in plain torch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cnnfast import functional
from cnnfast.models import LectureCNN


def saved_bytes(function: Callable[[], object], parameters: list[Tensor]) -> int:
    """Bytes of the distinct storages that ``function`` keeps for backward, parameters excepted."""
    storages: dict[int, int] = {}
    excepted = {p.untyped_storage().data_ptr() for p in parameters}
    alive: list[Tensor] = []  # so that no address is used twice

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in excepted:
            storages[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        alive.append(function())  # type: ignore[arg-type]
    return sum(storages.values())


@pytest.mark.parametrize("batch", [64, 256])
def test_lecture_layers_keep_far_fewer_bytes(batch: int, device: torch.device) -> None:
    layers = LectureCNN().cnn_layers.to(device)
    plain = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    ).to(device)  # fmt: skip
    images = torch.randn(batch, 1, 28, 28, device=device)
    mine = saved_bytes(lambda: layers(images), list(layers.parameters()))
    torchs = saved_bytes(lambda: plain(images), list(plain.parameters()))
    image = batch * 28 * 28
    # Input, code and output of the first layer, code of the second.
    assert mine <= 4 * image + 12 * image // 4 * (1 + 4) + 24 * image // 16
    assert torchs / mine >= 5.8, (torchs, mine)


@pytest.mark.parametrize(("return_indices", "bytes_each"), [(False, 1), (True, 8)])
def test_max_pool2d_keeps_a_byte_per_window(return_indices: bool, bytes_each: int, device: torch.device) -> None:
    images = torch.randn(2, 3, 8, 10, device=device, requires_grad=True)
    pool = lambda: functional.max_pool2d(images, 2, return_indices=return_indices)  # noqa: E731
    assert saved_bytes(pool, [images]) == bytes_each * 2 * 3 * 4 * 5
    # More elements than a byte tells apart.
    assert saved_bytes(lambda: functional.max_pool2d(images.repeat(1, 1, 4, 4), 16), []) >= 8 * 2 * 3 * 2 * 2


def test_bytes_are_counted_once_per_storage() -> None:
    weight = torch.randn(5, requires_grad=True)
    input = torch.randn(1000, requires_grad=True)
    # torch keeps both factors; they share one storage.
    assert saved_bytes(lambda: input[:500] * input[500:], []) == 4000
    assert saved_bytes(lambda: input.view(200, 5) * weight, [weight]) == 4000

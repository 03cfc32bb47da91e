"""cnnfast's modules with parameters that are DTensors; test_distributed.py runs this in two ranks."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_module, distribute_tensor

import cnnfast
from cnnfast import distributed


def conv2d(of) -> nn.Module:
    return of.Conv2d(3, 4, 3, padding=1)


def circular(of) -> nn.Module:
    return of.Conv2d(3, 4, 3, padding="same", padding_mode="circular", bias=False)


def conv_transpose2d(of) -> nn.Module:
    return of.ConvTranspose2d(3, 4, 3, stride=2)


def check_fsdp(mesh: DeviceMesh) -> None:
    """FSDP2's parameters are DTensors outside of forward, and plain ones, for our kernels, inside."""
    for make in (conv2d, circular, conv_transpose2d):
        theirs, ours = make(nn), make(cnnfast)
        ours.load_state_dict(theirs.state_dict())
        fully_shard(ours, mesh=mesh)
        images = torch.randn(2, 3, 8, 8)
        outputs = ours(images), theirs(images)
        torch.testing.assert_close(*outputs)
        for output in outputs:
            output.square().mean().backward()
        assert cnnfast.fallbacks() == {}, cnnfast.fallbacks()
        for (name, parameter), plain in zip(ours.named_parameters(), theirs.parameters()):
            assert isinstance(parameter, DTensor), name
            # Every rank had the same weights and images, so that the mean of the gradients is each one's.
            torch.testing.assert_close(parameter.grad.full_tensor(), plain.grad)


def check_dtensor_input(mesh: DeviceMesh) -> None:
    """Where the input is a DTensor, too, the call goes to torch's own op."""
    conv, images = conv2d(cnnfast), torch.randn(2, 3, 8, 8)
    expected = conv(images)
    distribute_module(conv, mesh)
    got = conv(distribute_tensor(images, mesh))
    assert isinstance(got, DTensor)
    torch.testing.assert_close(got.full_tensor(), expected)
    assert list(cnnfast.fallbacks()) == ["conv2d"], cnnfast.fallbacks()


torch.manual_seed(0)
with distributed.join("cpu") as world:
    ranks = init_device_mesh("cpu", (world.size,))
    check_fsdp(ranks)
    check_dtensor_input(ranks)
distributed.leave(0)

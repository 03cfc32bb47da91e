"""An installed cnnfast in a minute, with nothing but torch: each op against torch's, forward and backward.

`make test-full` runs it on a later torch than the wheel was built with, from a directory without the sources.
"""

import os
import pathlib

# An op without its own kernel is an error here, not a detour to torch's.
os.environ["CNNFAST_STRICT"] = "1"

import torch
import torch.nn.functional as F
from torch import Tensor

import cnnfast
import cnnfast.functional as CF


def conv_relu_pool(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return F.max_pool2d(F.relu(F.conv2d(x, w, b, padding=1)), 2)


OPS = {
    "conv2d": (CF.conv2d, F.conv2d, {"padding": 1, "stride": 2}),
    "conv2d_relu": (CF.conv2d_relu, lambda x, w, b: F.relu(F.conv2d(x, w, b)), {}),
    "conv2d_relu_max_pool2d": (
        lambda x, w, b: CF.conv2d_relu_max_pool2d(x, w, b, padding=1),
        conv_relu_pool,
        {},
    ),
    "conv_transpose2d": (
        lambda x, w, b: CF.conv_transpose2d(x, w.transpose(0, 1), b, stride=2),
        lambda x, w, b: F.conv_transpose2d(x, w.transpose(0, 1), b, stride=2),
        {},
    ),
    "relu": (lambda x, w, b: CF.relu(x), lambda x, w, b: F.relu(x), {}),
    "max_pool2d": (lambda x, w, b: CF.max_pool2d(x, 2), lambda x, w, b: F.max_pool2d(x, 2), {}),
    "avg_pool2d": (lambda x, w, b: CF.avg_pool2d(x, 2), lambda x, w, b: F.avg_pool2d(x, 2), {}),
}


def results(op, arguments: list[Tensor], options: dict[str, int]) -> list[Tensor]:
    """The output and the gradients of its weighted sum."""
    leaves = [a.detach().requires_grad_() for a in arguments]
    output = op(*leaves, **options)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def main() -> None:
    assert not (pathlib.Path.cwd() / "csrc").exists(), "run me outside of the source tree"
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        arguments = [torch.randn(3, 5, 13, 12), torch.randn(7, 5, 3, 3), torch.randn(7)]
        arguments = [a.to(dtype) for a in arguments]
        for name, (own, reference, options) in OPS.items():
            ours, theirs = results(own, arguments, options), results(reference, arguments, options)
            assert len(ours) == len(theirs)
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
            print(f"{name} {str(dtype).removeprefix('torch.')}: forward and {len(ours) - 1} gradients agree")
    assert not cnnfast.fallbacks(), cnnfast.fallbacks()
    installed = pathlib.Path(cnnfast.__file__).parent
    print(f"cnnfast {cnnfast.__version__} from {installed}, torch {torch.__version__}: passed")


if __name__ == "__main__":
    main()

"""What is benchmarked: the same computation by our module and by torch's, on the same weights and input."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BACKWARD", "FORWARD", "GRADIENTS", "STEP", "Runner", "Work", "adam", "reference", "runner", "sgd"]

FORWARD, BACKWARD, GRADIENTS, STEP = "forward", "forward + backward", "backward", "training step"
SEED = 2
LEARNING_RATE = 1e-3


def adam(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)


def sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=LEARNING_RATE, fused=True)


# Compared and hashed by identity: tensors have no truth value.
@dataclasses.dataclass(eq=False)
class Work:
    """A computation.

    Args:
        ours, plain: modules with the same weights, their parameters in the same order.
        input: what both are called on.
        mode: "forward" in inference mode; "forward + backward" with the gradients of all parameters and, with
            ``input_gradient``, of the input; "backward" the same gradients alone, from one forward's graph; "training
            step" of a classifier: zero_grad, forward, cross-entropy, backward, the optimizer's step.
        target: class indices, for training steps.
        optimizer: makes the optimizer of a training step.
        one_gradient: a training step's gradients count as one vector. In a network with BatchNorm some of them are sums
            that cancel, and nothing but rounding.
    """

    ours: nn.Module
    plain: nn.Module
    input: Tensor
    mode: str
    input_gradient: bool = False
    target: Tensor | None = None
    optimizer: Callable[[list[Tensor]], torch.optim.Optimizer] = adam
    one_gradient: bool = False

    def to(self, device: str) -> Work:
        """The same on a device."""
        if self.input.device.type == device:
            return self
        modules = (copy.deepcopy(module).to(device) for module in (self.ours, self.plain))
        target = None if self.target is None else self.target.to(device)
        return dataclasses.replace(
            self, **dict(zip(("ours", "plain"), modules)), input=self.input.to(device), target=target
        )

    def in_layout(self, layout: torch.memory_format) -> Work:
        """The same with copies of modules and input stored in a memory format."""
        modules = (copy.deepcopy(module).to(memory_format=layout) for module in (self.ours, self.plain))
        return dataclasses.replace(
            self, **dict(zip(("ours", "plain"), modules)), input=self.input.contiguous(memory_format=layout)
        )


@dataclasses.dataclass
class Runner:
    """``call`` is what is timed, ``outputs`` gives what it computes by name: ask once, before the first call."""

    call: Callable[[], Any]
    outputs: Callable[[], dict[str, Tensor]]


def runner(model: nn.Module, work: Work, input: Tensor | None = None) -> Runner:
    """How ``model`` (ours, torch's, a compiled one) does ``work``, on ``work.input`` unless another is given.

    A training step changes the model's weights. In ``outputs`` dropout draws its mask from a fixed seed.
    """
    x = work.input if input is None else input
    model.train(work.mode != FORWARD)
    makers = {FORWARD: _forward, BACKWARD: _forward_backward, GRADIENTS: _backward, STEP: _training_step}
    return makers[work.mode](model, work, x)


def _forward(model: nn.Module, work: Work, x: Tensor) -> Runner:
    def call() -> Tensor:
        with torch.inference_mode():
            return model(x)

    return Runner(call, lambda: {"output": call()})


def _wanted(model: nn.Module, work: Work, x: Tensor) -> dict[str, Tensor]:
    """Whatever a gradient is wanted of."""
    wanted = {f"grad of parameter {i}": p for i, p in enumerate(model.parameters())}
    return wanted | ({"grad of input": x} if work.input_gradient else {})


def _gradient_like(output: Tensor, dtype: torch.dtype) -> Tensor:
    """The same numbers for everyone, stored as the layer's output is stored."""
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(SEED))
    return torch.empty_like(output, dtype=dtype).copy_(grad)


def _forward_backward(model: nn.Module, work: Work, x: Tensor) -> Runner:
    x = x.detach().requires_grad_(work.input_gradient)
    wanted = _wanted(model, work, x)
    with torch.no_grad():
        grad = _gradient_like(work.plain(work.input), x.dtype)

    def call() -> tuple[Tensor, tuple[Tensor, ...]]:
        output = model(x)
        return output, torch.autograd.grad(output, tuple(wanted.values()), grad)

    def outputs() -> dict[str, Tensor]:
        torch.manual_seed(SEED)
        output, gradients = call()
        return {"output": output, **dict(zip(wanted, gradients, strict=True))}

    return Runner(call, outputs)


def _backward(model: nn.Module, work: Work, x: Tensor) -> Runner:
    """The gradients alone: the graph of one forward is kept and gone through at each call."""
    x = x.detach().requires_grad_(work.input_gradient)
    wanted = _wanted(model, work, x)
    torch.manual_seed(SEED)
    output = model(x)
    grad = _gradient_like(output.detach(), x.dtype)

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(output, tuple(wanted.values()), grad, retain_graph=True)

    return Runner(call, lambda: dict(zip(wanted, call(), strict=True)))


def _training_step(model: nn.Module, work: Work, x: Tensor) -> Runner:
    parameters = list(model.parameters())
    optimizer = work.optimizer(parameters)

    def call() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), work.target)
        loss.backward()
        optimizer.step()
        return loss

    def outputs() -> dict[str, Tensor]:
        torch.manual_seed(SEED)
        loss = call().detach().clone()
        gradients = {f"grad of parameter {i}": p.grad.clone() for i, p in enumerate(parameters)}
        if work.one_gradient:
            # Not view(-1): a channels_last gradient is stored in another order.
            gradients = {"grad of all parameters": torch.cat([g.flatten() for g in gradients.values()])}
        return {"loss": loss, **gradients}

    return Runner(call, outputs)


class _DropoutOfFloat32(nn.Module):
    """Dropout of a float64 tensor with the mask that a float32 one gets from the same seed."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        return x * F.dropout(torch.ones_like(x, dtype=torch.float32), self.probability, self.training).to(x.dtype)


@functools.lru_cache(maxsize=1)  # cases of one work in several layouts have one reference
def reference(work: Work) -> dict[str, Tensor]:
    """The outputs of ``work`` in float64, by torch's modules."""
    model = copy.deepcopy(work.plain).double()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Dropout):
            model.set_submodule(name, _DropoutOfFloat32(module.p))
    return runner(model, work, work.input.double()).outputs()

"""What every suite shares: its options, the two kinds of things it yields, how many operations a layer does."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping

import torch
from torch import nn
from torch.func import functional_call

from .case import Case, limits
from .results import Row
from .rivals import contestants
from .work import FORWARD, GRADIENTS, Work, reference

__all__ = ["LAYOUTS", "Options", "Suite", "case_of", "forward_gflop", "work_gbyte", "work_gflop"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for on the command line, and the device it runs on."""

    quick: bool = False
    threads: int = 2
    rivals: Collection[str] = ()
    device: str = "cpu"
    batch: int | None = None
    only: str = ""

    def wants(self, *words: str) -> bool:
        """Whether a row of these words (section, label, ...) was asked for."""
        return re.search(self.only, ", ".join(words)) is not None


LAYOUTS: Mapping[str, torch.memory_format] = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}

# A suite yields cases, to be measured one after the other, and rows of things that are counted, not timed.
Suite = Callable[[Options], Iterator[Case | Row]]


def _output_on_meta(module: nn.Module, input: torch.Tensor) -> torch.Tensor:
    """What one forward call returns, without its numbers: nothing is computed, and no buffer changes."""
    state = itertools.chain(module.named_parameters(), module.named_buffers())
    with torch.no_grad():
        return functional_call(module, {name: tensor.to("meta") for name, tensor in state}, input.to("meta"))


def forward_gflop(module: nn.Module, input: torch.Tensor) -> float:
    """1e9 operations (a multiply-add is two) of every convolution and linear layer in one forward call, dense."""
    total = 0
    handles = []

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal total
        if isinstance(layer, nn.ConvTranspose2d):
            total += 2 * inputs[0].numel() * layer.weight[0].numel()
        elif isinstance(layer, (nn.Conv2d, nn.Linear)):
            total += 2 * output.numel() * layer.weight[0].numel()

    for layer in module.modules():
        handles.append(layer.register_forward_hook(count))
    try:
        _output_on_meta(module, input)
    finally:
        for handle in handles:
            handle.remove()
    return total / 1e9


def work_gflop(work: Work) -> float | None:
    """Dense operations of the whole work; None where there are no multiplications to count.

    Backward costs a convolution as much again for each of its two gradients; the first layer's input has none
    unless it is asked for.
    """
    forward = forward_gflop(work.plain, work.input)
    if not forward:
        return None
    if work.mode == FORWARD:
        return forward
    first = next(m for m in work.plain.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)))
    spared = 0.0 if work.input_gradient else forward_gflop(first, work.input)
    return (2 if work.mode == GRADIENTS else 3) * forward - spared


def work_gbyte(work: Work) -> float | None:
    """1e9 bytes of the tensors that a single layer must read or write, each once; None for a network.

    A layer with parameters reads its input and them again for its gradients; a pool does not.
    """
    if sum(isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)) for module in work.plain.modules()) > 1:
        return None
    x, y = work.input.nbytes, _output_on_meta(work.plain, work.input).nbytes
    parameters = sum(parameter.nbytes for parameter in work.plain.parameters())
    forward = x + parameters + y
    backward = y + (x + parameters if parameters else 0) + (x + parameters if work.input_gradient else 0)
    return {FORWARD: forward, GRADIENTS: backward}.get(work.mode, forward + backward) / 1e9


def case_of(section: str, name: str, work: Work, options: Options, layout: str = "") -> Case:
    """The case that times a work against the rivals; the shape shown is the input's.

    With a ``layout``, one of ``LAYOUTS``, ours is in that one, and the rivals have the work's or their own.
    """
    work = work.to(options.device)
    n, c, h, w = work.input.shape
    channels_last = layout == "channels_last" or not work.input.is_contiguous()
    return Case(
        section,
        f"{name}, {work.mode}",
        f"{n}x{c}x{h}x{w}{', channels_last' if channels_last else ''}",
        n,
        work_gflop(work),
        contestants(work, options.rivals, LAYOUTS.get(layout)),
        lambda: reference(work),
        *limits(options.device),
        gbyte=work_gbyte(work),
        mode=work.mode,
        layout=layout,
    )

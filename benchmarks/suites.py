"""What every suite shares: its options, the two kinds of things it yields, how many operations a layer does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator

import torch
from torch import nn

from .case import Case, limits
from .results import Row
from .rivals import contestants
from .work import FORWARD, Work, reference

__all__ = ["Options", "Suite", "case_of", "forward_gflop", "work_gflop"]


@dataclasses.dataclass(frozen=True)
class Options:
    """What was asked for on the command line, and the device it runs on."""

    quick: bool = False
    threads: int = 2
    rivals: Collection[str] = ()
    device: str = "cpu"


# A suite yields cases, to be measured one after the other, and rows of things that are counted, not timed.
Suite = Callable[[Options], Iterator[Case | Row]]


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
        with torch.inference_mode():
            module(input)
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
    return 3 * forward - spared


def case_of(section: str, name: str, work: Work, options: Options) -> Case:
    """The case that times a work against the rivals; the shape shown is the input's."""
    work = work.to(options.device)
    n, c, h, w = work.input.shape
    layout = "" if work.input.is_contiguous() else ", channels_last"
    return Case(
        section,
        f"{name}, {work.mode}",
        f"{n}x{c}x{h}x{w}{layout}",
        n,
        work_gflop(work),
        contestants(work, options.rivals),
        lambda: reference(work),
        *limits(options.device),
    )

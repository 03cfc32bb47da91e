"""The suite `lecture`: the lecture's network, layer by layer and whole, bytes kept for backward, threads."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import torch
from torch import nn

import cnnfast
from cnnfast.models import LectureCNN, PlainLectureCNN

from .case import OURS, Case
from .memory import bytes_kept
from .results import Entry, Row
from .suites import Options, case_of
from .timing import Contestant
from .work import BACKWARD, FORWARD, STEP, Work, runner

__all__ = ["cases"]

BATCHES = {"cpu": (1, 64, 256, 1024), "cuda": (1, 64, 1024, 4096, 16384, 65536)}
QUICK_BATCHES = {"cpu": (64,), "cuda": (4096,)}
COUNTED_BATCH = 64
SCALING_BATCH = 256
ALONE = f"{OURS} on 1 thread"


def _network(batch: int, mode: str) -> Work:
    torch.manual_seed(0)
    plain = PlainLectureCNN()
    ours = LectureCNN()
    ours.load_state_dict(plain.state_dict())
    return Work(ours, plain, torch.randn(batch, 1, 28, 28), mode, target=torch.randint(10, (batch,)))


def _cnn_layers(batch: int, mode: str) -> Work:
    work = _network(batch, mode)
    ours, plain = (network.get_submodule("cnn_layers") for network in (work.ours, work.plain))
    return dataclasses.replace(work, ours=ours, plain=plain)


def _block(batch: int, mode: str, channels: int, filters: int, size: int) -> Work:
    torch.manual_seed(0)
    ours = cnnfast.ConvReLUMaxPool2d(channels, filters, 3, padding=1)
    plain = nn.Sequential(nn.Conv2d(channels, filters, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    plain[0].load_state_dict(ours.state_dict())
    x = torch.randn(batch, channels, size, size)
    # The second layer's input is a pooled ReLU's output: not negative, and its gradient is wanted.
    first = channels == 1
    return Work(ours, plain, x if first else x.relu(), mode, input_gradient=not first)


def _without(options: Options, *rivals: str) -> Options:
    return dataclasses.replace(options, rivals=[rival for rival in options.rivals if rival not in rivals])


def cases(options: Options) -> Iterator[Case | Row]:
    """The suite; quick: batch 64 alone."""
    # Compiling and exporting every block as well would double the run; the whole stack shows what those rivals do.
    blocks = _without(options, "compile", "cuda_graphs", "onnxruntime", "openvino")
    training = _without(options, "onnxruntime", "openvino")
    for batch in (QUICK_BATCHES if options.quick else BATCHES)[options.device]:
        section = "Convolution layers"
        yield case_of(section, "cnn_layers", _cnn_layers(batch, FORWARD), options)
        yield case_of(section, "cnn_layers", _cnn_layers(batch, BACKWARD), training)
        section = "Whole network"
        yield case_of(section, "network", _network(batch, FORWARD), options)
        yield case_of(section, "network", _network(batch, STEP), training)
        section = "Fused blocks"
        for name, *shape in (("conv 1->12 block", 1, 12, 28), ("conv 12->24 block", 12, 24, 14)):
            for mode in (FORWARD, BACKWARD):
                yield case_of(section, name, _block(batch, mode, *shape), blocks)
    yield _bytes_kept(COUNTED_BATCH)
    if options.device == "cpu":
        yield from _scaling(SCALING_BATCH, options)


def _bytes_kept(batch: int) -> Row:
    """Activation bytes that cnn_layers keeps for backward, per image, the input included on both sides."""
    work = _cnn_layers(batch, BACKWARD)
    last = work.in_layout(torch.channels_last)
    kept = {
        OURS: bytes_kept(work.ours, work.input) / batch,
        "torch eager": bytes_kept(work.plain, work.input) / batch,
        "torch channels_last": bytes_kept(last.plain, last.input) / batch,
    }
    row = Row("Memory", "cnn_layers, bytes kept for backward", f"{batch}x1x28x28", batch, "bytes per image")
    for name, value in kept.items():
        ratio = None if name == OURS else value / kept[OURS]
        row.entries.append(Entry(name, median=value, q1=value, q3=value, samples=1, ratio=ratio))
    return row


def _scaling(batch: int, options: Options) -> Iterator[Case]:
    """The fused forward on all threads beside the same on one."""
    if options.threads == 1:
        return
    work = _cnn_layers(batch, FORWARD)
    case = case_of("Threads", "cnn_layers", work, options)

    def on(threads: int) -> Contestant:
        run = runner(copy.deepcopy(work.ours), work)

        def before() -> None:
            torch.set_num_threads(threads)
            # The team has gone to sleep while one thread worked alone; waking it is not what is timed.
            run.call()

        return Contestant(OURS if threads == options.threads else ALONE, run.call, run.outputs, before=before)

    case.contestants = {OURS: lambda: on(options.threads), ALONE: lambda: on(1)}
    yield case
    torch.set_num_threads(options.threads)

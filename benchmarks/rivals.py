"""What the user would have had without cnnfast, each set up as its own users set it up."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Collection, Mapping

import torch
from torch import nn

from .case import OURS, NotInstalled, Skipped
from .results import CHANNELS_LAST, EAGER
from .timing import Contestant
from .work import FORWARD, STEP, Runner, Work, runner

__all__ = ["COMPILED_BATCHES", "RIVALS", "contestants", "describe"]

# Compiling a case takes some ten seconds, so it is done for these batches only.
COMPILED_BATCHES = {"cpu": (8, 64, 256), "cuda": (64, 4096)}


def _eager(work: Work) -> Runner:
    return runner(copy.deepcopy(work.plain), work)


def _channels_last(work: Work) -> Runner:
    work = work.in_layout(torch.channels_last)
    return runner(work.plain, work)


def _require(package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise NotInstalled(f"no package {package}")


def _cpu_only(work: Work) -> None:
    if not work.input.is_cpu:
        raise Skipped("measured on the CPU only")


def _cuda_graphs(work: Work) -> Runner:
    if work.input.is_cpu:
        raise Skipped("CUDA graphs are a GPU's")
    run = _compile(work, mode="reduce-overhead")

    def outputs() -> dict[str, torch.Tensor]:
        # The first calls warm up and capture; what is timed are replays. A training step changes the weights.
        for _ in range(0 if work.mode == STEP else 2):
            run.outputs()
        return run.outputs()

    return Runner(run.call, outputs)


def _compile(work: Work, mode: str | None = None) -> Runner:
    if work.input.is_cpu and not any(
        shutil.which(compiler) for compiler in (os.environ.get("CXX", "c++").split()[0], "g++", "clang++")
    ):
        raise NotInstalled("torch.compile on the CPU needs a C++ compiler")
    compiled_batches = COMPILED_BATCHES[work.input.device.type]
    if work.input.shape[0] not in compiled_batches:
        *others, last = map(str, compiled_batches)
        raise Skipped(f"compiled for batches {', '.join(others)} and {last} only: a compilation takes about 10 s")
    import torch._inductor.config as inductor

    # Static shapes are torch.compile's best case. Freezing (constant, prepacked weights) is for inference alone;
    # fallback_random draws dropout's mask as eager torch does, so that a training step can be compared with it.
    compiled = torch.compile(copy.deepcopy(work.plain), dynamic=False, mode=mode)
    run = runner(compiled, work)
    config = {"freezing": True} if work.mode == FORWARD else {"fallback_random": True}

    def outputs() -> dict[str, torch.Tensor]:
        # The first call compiles, under this configuration.
        with inductor.patch(config), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run.outputs()

    return Runner(run.call, outputs)


def _onnxruntime(work: Work) -> Runner:
    _cpu_only(work)
    if work.mode != FORWARD:
        raise Skipped("onnxruntime is for inference")
    for package in ("onnxruntime", "onnxscript"):
        _require(package)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        _exported(work.plain, work.input), options, providers=["CPUExecutionProvider"]
    )
    feed = {session.get_inputs()[0].name: work.input.numpy()}
    return Runner(
        lambda: session.run(None, feed),
        lambda: {"output": torch.from_numpy(session.run(None, feed)[0])},
    )


def _openvino(work: Work) -> Runner:
    _cpu_only(work)
    if work.mode != FORWARD:
        raise Skipped("OpenVINO is for inference")
    for package in ("openvino", "onnxscript"):
        _require(package)
    import openvino

    core = openvino.Core()
    config = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    compiled = core.compile_model(core.read_model(_exported(work.plain, work.input), b""), "CPU", config)
    request = compiled.create_infer_request()
    feed = [work.input.numpy()]

    def call() -> object:
        # Neither the input nor the result is copied: the next call overwrites the latter.
        return request.infer(feed, share_inputs=True, share_outputs=True)

    return Runner(call, lambda: {"output": torch.from_numpy(call()[0].copy())})


def _exported(model: nn.Module, x: torch.Tensor) -> bytes:
    """The model as ONNX bytes, for exactly this input's shape."""
    # The exporter's progress and its warnings about absent packages would drown the table.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(copy.deepcopy(model).eval(), (x,), dynamo=True, verbose=False)
    return program.model_proto.SerializeToString()


@dataclasses.dataclass(frozen=True)
class Rival:
    """Its name in the table, what it is (for the results' metadata), how to set it up, whose threads it runs on."""

    title: str
    configuration: str
    setup: Callable[[Work], Runner]
    own_threads: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")


# By the name that --rivals takes.
RIVALS: Mapping[str, Rival] = {
    "eager": Rival(EAGER, "the same torch.nn modules and dense NCHW input, eager", _eager),
    "channels_last": Rival(
        CHANNELS_LAST, "torch eager, weights and input in torch.channels_last before timing", _channels_last
    ),
    "compile": Rival(
        "torch.compile", "torch.compile(model, dynamic=False), inductor's freezing on for inference", _compile
    ),
    "cuda_graphs": Rival(
        "torch.compile, CUDA graphs",
        "torch.compile(model, dynamic=False, mode='reduce-overhead'), inductor's freezing on for inference",
        _cuda_graphs,
        devices=("cuda",),
    ),
    "onnxruntime": Rival(
        "onnxruntime",
        "torch.onnx.export (static shape), CPUExecutionProvider, default graph optimisations, as many intra-op threads "
        "as torch, numpy input; inference only, timed in blocks of calls with pauses around them",
        _onnxruntime,
        own_threads=True,
        devices=("cpu",),
    ),
    "openvino": Rival(
        "OpenVINO",
        "torch.onnx.export (static shape), CPU, PERFORMANCE_HINT=LATENCY, INFERENCE_PRECISION_HINT=f32, as many "
        "threads as torch, numpy input, results not copied; inference only, timed in blocks of calls with pauses "
        "around them",
        _openvino,
        own_threads=True,
        devices=("cpu",),
    ),
}


def describe(rivals: Collection[str]) -> dict[str, str]:
    """Name in the table -> configuration, for the metadata."""
    return {rival.title: rival.configuration for key, rival in RIVALS.items() if key in rivals}


def contestants(
    work: Work, rivals: Collection[str], layout: torch.memory_format | None = None
) -> dict[str, Callable[[], Contestant]]:
    """Name -> setup of cnnfast and of the rivals that are asked for, in the table's order.

    With a ``layout`` ours is in that one, whatever the work's is.
    """
    if "compile" in rivals or "cuda_graphs" in rivals:
        # Nothing compiled for an earlier case; not later, for what was compiled must be what is timed.
        torch._dynamo.reset()

    def own(work: Work) -> Runner:
        work = work if layout is None else work.in_layout(layout)
        return runner(work.ours, work)

    ours = Rival(OURS, "", own)
    chosen = [ours, *(rival for key, rival in RIVALS.items() if key in rivals)]

    def setup(rival: Rival) -> Contestant:
        run = rival.setup(work)
        return Contestant(rival.title, run.call, run.outputs, rival.own_threads)

    return {rival.title: functools.partial(setup, rival) for rival in chosen}

"""The suites `resnet50`, `vgg16`, `mobilenet_v2` and `deepbench`: their distinct layers, forward and backward apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .case import Case
from .layer import Layer, conv, work_of
from .results import Row
from .suites import LAYOUTS, Options, case_of
from .work import FORWARD, GRADIENTS

__all__ = ["NETWORKS", "cases", "section_of"]

BATCH = {"cpu": 8, "cuda": 64}
QUICK_BATCH = {"cpu": 1, "cuda": 8}


Size = int | tuple[int, int]


def _pair(size: Size) -> tuple[int, int]:
    return size if isinstance(size, tuple) else (size, size)


def _conv(
    C: int, size: Size, K: int, kernel: Size, stride: int = 1, padding: int | None = None, **others: Any
) -> Layer:
    """Padded to keep the map's size unless told otherwise."""
    H, W = _pair(size)
    R, S = _pair(kernel)
    channels = f"{C}->{K}" if others.get("groups", 1) == 1 else f"{C}"
    label = f"{R}x{S}{_stride(stride)}, {channels}"
    padding = R // 2 if padding is None else padding
    others = {"stride": stride, "padding": padding, "groups": 1, "bias": False, **others}
    return conv(label, "conv2d", (1, C, H, W), K, (R, S), **others)


def _stride(stride: int) -> str:
    return f" stride {stride}" if stride > 1 else ""


def _depthwise(C: int, size: int, stride: int = 1) -> Layer:
    return _conv(C, size, C, 3, stride, groups=C)


def _pool(op: str, C: int, size: int, window: int, stride: int, padding: int = 0) -> Layer:
    label = f"{window}x{window} stride {stride}, {C}"
    return Layer(label, op, (1, C, size, size), {"kernel_size": window, "stride": stride, "padding": padding})


RESNET50 = (
    _conv(3, 224, 64, 7, 2),
    _pool("max_pool2d", 64, 112, 3, 2, 1),
    _conv(64, 56, 64, 1), _conv(64, 56, 64, 3), _conv(64, 56, 256, 1), _conv(256, 56, 64, 1),
    _conv(256, 56, 128, 1), _conv(128, 56, 128, 3, 2), _conv(128, 28, 512, 1), _conv(256, 56, 512, 1, 2),
    _conv(512, 28, 128, 1), _conv(128, 28, 128, 3),
    _conv(512, 28, 256, 1), _conv(256, 28, 256, 3, 2), _conv(256, 14, 1024, 1), _conv(512, 28, 1024, 1, 2),
    _conv(1024, 14, 256, 1), _conv(256, 14, 256, 3),
    _conv(1024, 14, 512, 1), _conv(512, 14, 512, 3, 2), _conv(512, 7, 2048, 1), _conv(1024, 14, 2048, 1, 2),
    _conv(2048, 7, 512, 1), _conv(512, 7, 512, 3),
    _pool("avg_pool2d", 2048, 7, 7, 7),
)  # fmt: skip

VGG16 = (
    _conv(3, 224, 64, 3, bias=True), _conv(64, 224, 64, 3, bias=True), _pool("max_pool2d", 64, 224, 2, 2),
    _conv(64, 112, 128, 3, bias=True), _conv(128, 112, 128, 3, bias=True), _pool("max_pool2d", 128, 112, 2, 2),
    _conv(128, 56, 256, 3, bias=True), _conv(256, 56, 256, 3, bias=True), _pool("max_pool2d", 256, 56, 2, 2),
    _conv(256, 28, 512, 3, bias=True), _conv(512, 28, 512, 3, bias=True), _pool("max_pool2d", 512, 28, 2, 2),
    _conv(512, 14, 512, 3, bias=True), _pool("max_pool2d", 512, 14, 2, 2),
)  # fmt: skip

MOBILENET_V2 = (
    _conv(3, 224, 32, 3, 2),
    _depthwise(32, 112), _conv(32, 112, 16, 1),
    _conv(16, 112, 96, 1), _depthwise(96, 112, 2), _conv(96, 56, 24, 1),
    _conv(24, 56, 144, 1), _depthwise(144, 56), _conv(144, 56, 24, 1),
    _depthwise(144, 56, 2), _conv(144, 28, 32, 1),
    _conv(32, 28, 192, 1), _depthwise(192, 28), _conv(192, 28, 32, 1),
    _depthwise(192, 28, 2), _conv(192, 14, 64, 1),
    _conv(64, 14, 384, 1), _depthwise(384, 14), _conv(384, 14, 64, 1), _conv(384, 14, 96, 1),
    _conv(96, 14, 576, 1), _depthwise(576, 14), _conv(576, 14, 96, 1),
    _depthwise(576, 14, 2), _conv(576, 7, 160, 1),
    _conv(160, 7, 960, 1), _depthwise(960, 7), _conv(960, 7, 160, 1), _conv(960, 7, 320, 1),
    _conv(320, 7, 1280, 1),
    _pool("avg_pool2d", 1280, 7, 7, 7),
)  # fmt: skip

# Of the server's training set in code/kernels/conv_problems.h of https://github.com/baidu-research/DeepBench (commit
# da81ba7), one of each kind that the networks above do not have: speech, text in images, faces, GoogLeNet, speaker
# recognition. Its w, h and filter_w, filter_h are W, H and S, R here.
DEEPBENCH = (
    _conv(1, (161, 700), 32, (5, 20), 2, 0), _conv(32, (79, 341), 32, (5, 10), 2, 0),
    _conv(1, (48, 480), 16, 3), _conv(16, (24, 240), 32, 3), _conv(32, (12, 120), 64, 3), _conv(64, (6, 60), 128, 3),
    _conv(3, 108, 64, 3, 2), _conv(64, 54, 64, 3), _conv(128, 27, 128, 3),
    _conv(192, 28, 32, 5), _conv(192, 28, 64, 1), _conv(512, 14, 48, 5), _conv(832, 7, 256, 1), _conv(832, 7, 128, 5),
    _conv(1, (161, 700), 64, 5, 2, 1), _conv(64, (80, 350), 64, 3), _conv(64, (80, 350), 128, 5, 2, 1),
    _conv(256, (20, 84), 256, 3),
)  # fmt: skip

NETWORKS: Mapping[str, Sequence[Layer]] = {
    "resnet50": RESNET50,
    "vgg16": VGG16,
    "mobilenet_v2": MOBILENET_V2,
    "deepbench": DEEPBENCH,
}


def section_of(layer: Layer) -> str:
    """Layers of a kind have the same best algorithm, more or less: they are judged together."""
    if layer.op != "conv2d":
        return layer.op
    if layer.input[1] <= 3:
        return "first layer"
    if layer.arguments["groups"] > 1:
        return "depthwise"
    R, S = layer.arguments["kernel_size"]
    return f"{R}x{S} stride {layer.arguments['stride']}"


def cases(network: str, options: Options) -> Iterator[Case | Row]:
    """Each layer forward and backward alone, ours in either layout against torch in both.

    Quick: the last layer of each section, at a small batch, ours in NCHW alone.
    """
    options = dataclasses.replace(options, rivals=[r for r in options.rivals if r in ("eager", "channels_last")])
    batch = options.batch or (QUICK_BATCH if options.quick else BATCH)[options.device]
    sections: dict[str, list[Layer]] = {}
    for layer in NETWORKS[network]:
        sections.setdefault(section_of(layer), []).append(layer)
    for section, layers in sections.items():
        for layer in layers[-1:] if options.quick else layers:
            layer = dataclasses.replace(layer, input=(batch, *layer.input[1:]))
            # One channel is stored alike in both.
            layouts = list(LAYOUTS)[: 1 if options.quick or layer.input[1] == 1 else None]
            for mode in (FORWARD, GRADIENTS):
                wanted = [layout for layout in layouts if options.wants(section, layer.label, mode, layout)]
                if wanted:
                    # An image's gradient is wanted by nobody.
                    work = work_of(layer, mode, input_gradient=section != "first layer")
                    for layout in wanted:
                        yield case_of(section, layer.label, work, options, layout)

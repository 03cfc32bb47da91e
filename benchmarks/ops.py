"""The suite `ops`: every op by itself on layers of well-known networks and on awkward ones, in both layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch

from .case import Case
from .layer import Layer, conv, work_of
from .results import Row
from .suites import Options, case_of
from .work import BACKWARD, FORWARD

__all__ = ["LAYERS", "cases"]

LAYERS: tuple[Layer, ...] = (
    conv("lecture 1->12", "conv2d", (64, 1, 28, 28), 12, 3, padding=1, quick=True),
    conv("lecture 12->24", "conv2d", (64, 12, 14, 14), 24, 3, padding=1, quick=True),
    conv("lecture 1->12", "conv2d_relu", (64, 1, 28, 28), 12, 3, padding=1),
    conv("lecture 12->24", "conv2d_relu", (64, 12, 14, 14), 24, 3, padding=1),
    conv("ResNet first 7x7 stride 2, 3->64", "conv2d", (4, 3, 224, 224), 64, 7, stride=2, padding=3, bias=False),
    conv("ResNet 3x3, 64->64", "conv2d", (4, 64, 56, 56), 64, 3, padding=1, bias=False, quick=True),
    conv("ResNet 3x3 stride 2, 128->128", "conv2d", (4, 128, 56, 56), 128, 3, stride=2, padding=1, bias=False),
    conv("ResNet 3x3, 512->512", "conv2d", (4, 512, 7, 7), 512, 3, padding=1, bias=False),
    conv("ResNet 1x1, 64->256", "conv2d", (4, 64, 56, 56), 256, 1, bias=False, quick=True),
    conv("ResNet 1x1 stride 2, 256->512", "conv2d", (4, 256, 56, 56), 512, 1, stride=2, bias=False),
    conv("VGG first 3x3, 3->64", "conv2d_relu", (2, 3, 224, 224), 64, 3, padding=1),
    conv("VGG 3x3, 256->256", "conv2d_relu", (2, 256, 28, 28), 256, 3, padding=1, quick=True),
    conv("MobileNet depthwise 3x3, 32", "conv2d", (4, 32, 112, 112), 32, 3, padding=1, groups=32, quick=True),
    conv("MobileNet depthwise stride 2, 144", "conv2d", (4, 144, 56, 56), 144, 3, stride=2, padding=1, groups=144),
    conv("MobileNet 1x1, 16->96", "conv2d", (4, 16, 112, 112), 96, 1, bias=False),
    conv("grouped 3x3, 4 x 32->32", "conv2d", (4, 128, 28, 28), 128, 3, padding=1, groups=4),
    conv("dilated 3x3, 48->48", "conv2d", (4, 48, 33, 33), 48, 3, padding=2, dilation=2),
    conv("odd 5x3, 17->31", "conv2d", (5, 17, 37, 29), 31, (5, 3), padding=(2, 1), quick=True),
    conv("DCGAN 4x4 stride 2, 64->32", "conv_transpose2d", (4, 64, 32, 32), 32, 4, stride=2, padding=1, quick=True),
    conv("odd 3x3 stride 2, 19->7", "conv_transpose2d", (3, 19, 23, 17), 7, 3, stride=2, output_padding=1),
    Layer("lecture 12 channels", "relu", (64, 12, 28, 28), {}, True),
    Layer("ResNet 64 channels", "relu", (4, 64, 112, 112)),
    Layer("lecture 2x2", "max_pool2d", (64, 12, 28, 28), {"kernel_size": 2}, True),
    Layer("ResNet 3x3 stride 2", "max_pool2d", (4, 64, 112, 112), {"kernel_size": 3, "stride": 2, "padding": 1}),
    Layer("odd 3x2", "max_pool2d", (5, 17, 37, 29), {"kernel_size": (3, 2), "stride": (2, 1), "ceil_mode": True}),
    Layer("LeNet 2x2", "avg_pool2d", (64, 12, 28, 28), {"kernel_size": 2}, True),
    Layer("ResNet last 7x7", "avg_pool2d", (4, 2048, 7, 7), {"kernel_size": 7}),
    Layer("Inception 3x3 stride 1", "avg_pool2d", (4, 192, 35, 35), {"kernel_size": 3, "stride": 1, "padding": 1}),
    Layer("ResNet 64 channels", "batch_norm_relu", (4, 64, 56, 56), {"num_features": 64}, True),
    Layer("ResNet 512 channels", "batch_norm_relu", (4, 512, 7, 7), {"num_features": 512}),
    Layer("MobileNet 144 channels", "batch_norm_relu", (4, 144, 56, 56), {"num_features": 144}),
)  # fmt: skip

# A GPU is given as many times the images.
BATCH_FACTOR = {"cpu": 1, "cuda": 16}
# So little work that what is timed is the way to the kernel.
SMALLEST = conv("3x3, 1->1, one image of 8x8", "conv2d", (1, 1, 8, 8), 1, 3, padding=1, quick=True)


def cases(options: Options) -> Iterator[Case | Row]:
    """The suite; quick: a third of the layers, NCHW only. The rival has the row's own layout in each row."""
    options = dataclasses.replace(options, rivals=[rival for rival in options.rivals if rival == "eager"])
    layouts = [torch.contiguous_format] if options.quick else [torch.contiguous_format, torch.channels_last]
    for layer in LAYERS:
        if options.quick and not layer.quick or not options.wants(layer.op, layer.label):
            continue
        if layer.in_training and options.device != "cpu":
            continue
        n, *image = layer.input
        layer = dataclasses.replace(layer, input=(n * BATCH_FACTOR[options.device], *image))
        # One channel is stored alike in both.
        for layout in layouts[: 1 if layer.input[1] == 1 else None]:
            for mode in layer.modes:
                yield case_of(layer.op, layer.label, work_of(layer, mode).in_layout(layout), options)
    if options.wants("Cost of a call", SMALLEST.label):
        for mode in (FORWARD, BACKWARD):
            yield case_of("Cost of a call", SMALLEST.label, work_of(SMALLEST, mode), options)

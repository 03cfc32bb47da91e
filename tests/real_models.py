"""Models that people use: torchvision's, cut to few classes, and two of the shapes it lacks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision import models


class UNet(nn.Module):
    """Ronneberger, Fischer and Brox, 2015 (arXiv 1505.04597), with padding and two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = _pair(3, 8), _pair(8, 16), _pair(16, 32)
        self.pool = nn.MaxPool2d(2)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, stride=2), nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge2, self.merge1 = _pair(32, 16), _pair(16, 8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = self.down2(self.pool(fine))
        x = self.bottom(self.pool(coarse))
        x = self.merge2(torch.cat([self.up2(x), coarse], 1))
        x = self.merge1(torch.cat([self.up1(x), fine], 1))
        return self.head(x)


def _pair(C: int, K: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(C, K, 3, padding=1), nn.ReLU(True), nn.Conv2d(K, K, 3, padding=1), nn.ReLU(True))


class DCGAN(nn.Module):
    """Generator, then discriminator: Radford, Metz and Chintala, 2016 (arXiv 1511.06434), with few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.ConvTranspose2d(24, 16, 4, 1, 0, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(True),
            nn.ConvTranspose2d(16, 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 3, 4, 2, 1, bias=False),
            nn.Tanh(),
        )
        self.discriminator = nn.Sequential(
            nn.Conv2d(3, 8, 4, 2, 1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(8, 16, 4, 2, 1, bias=False),
            nn.BatchNorm2d(16),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(16, 1, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.discriminator(self.generator(x))


class Segmentation(nn.Module):
    """DeepLab-v3's own output, of the dict that torchvision's model returns."""

    def __init__(self) -> None:
        super().__init__()
        self.model = models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)["out"]


def _vgg11() -> nn.Module:
    model = models.vgg11(weights=None)
    model.classifier = nn.Linear(512 * 7 * 7, 10)  # instead of 120 million weights that are not convolutions
    return model


#: name -> (how it is made, its input's shape)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18": (lambda: models.resnet18(weights=None, num_classes=10), (2, 3, 64, 64)),
    "ResNeXt-50": (lambda: models.resnext50_32x4d(weights=None, num_classes=10), (2, 3, 64, 64)),
    "MobileNet-v2": (lambda: models.mobilenet_v2(weights=None, num_classes=10), (2, 3, 64, 64)),
    "EfficientNet-B0": (lambda: models.efficientnet_b0(weights=None, num_classes=10), (2, 3, 64, 64)),
    "VGG-11": (_vgg11, (2, 3, 64, 64)),
    "SqueezeNet": (lambda: models.squeezenet1_0(weights=None, num_classes=10), (2, 3, 64, 64)),
    "GoogLeNet": (
        lambda: models.googlenet(weights=None, num_classes=10, aux_logits=False, init_weights=False),
        (2, 3, 64, 64),
    ),
    "DenseNet-121": (lambda: models.densenet121(weights=None, num_classes=10), (2, 3, 64, 64)),
    "Inception-v3": (
        lambda: models.inception_v3(weights=None, num_classes=10, aux_logits=False, init_weights=False),
        (2, 3, 99, 99),
    ),
    "ConvNeXt-Tiny": (lambda: models.convnext_tiny(weights=None, num_classes=10), (2, 3, 64, 64)),
    "DeepLab-v3": (Segmentation, (2, 3, 48, 48)),
    "U-Net": (UNet, (2, 3, 40, 56)),
    "DCGAN": (DCGAN, (3, 24, 1, 1)),
}

"""What augmentation should give, in float64, one image at a time, from torch's own functions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def affine_matrix(
    size: tuple[int, int],
    angle: float = 0,
    translate: tuple[float, float] = (0, 0),
    scale: float = 1,
    shear: tuple[float, float] = (0, 0),
    center: tuple[float, float] | None = None,
) -> Tensor:
    """From output to input, 3x3, of coordinates in which a pixel's corner is a whole number; clockwise."""
    x, y = center or (size[1] / 2, size[0] / 2)
    a, sx, sy = (math.radians(v) for v in (angle, *shear))

    def matrix(*rows: tuple[float, float, float]) -> Tensor:
        return torch.tensor([*rows, (0.0, 0.0, 1.0)], dtype=torch.float64)

    move = matrix((1, 0, translate[0]), (0, 1, translate[1]))
    to_center, back = matrix((1, 0, x), (0, 1, y)), matrix((1, 0, -x), (0, 1, -y))
    turn = matrix((math.cos(a), -math.sin(a), 0), (math.sin(a), math.cos(a), 0))
    larger = matrix((scale, 0, 0), (0, scale, 0))
    shear_y, shear_x = matrix((1, 0, 0), (-math.tan(sy), 1, 0)), matrix((1, -math.tan(sx), 0), (0, 1, 0))
    return torch.linalg.inv(move @ to_center @ turn @ larger @ shear_y @ shear_x @ back)


def sample(image: Tensor, matrix: Tensor, mode: str, fill: float = 0) -> Tensor:
    """image [C, H, W] seen through the matrix, padded with the fill."""
    _, height, width = image.shape
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) + 0.5, torch.arange(width, dtype=torch.float64) + 0.5, indexing="ij"
    )
    at = torch.stack((x, y, torch.ones_like(x)), -1) @ matrix.T
    grid = at[..., :2] / torch.tensor([width, height], dtype=torch.float64) * 2 - 1
    shifted = (image.double() - fill)[None]
    return F.grid_sample(shifted, grid[None], mode=mode, padding_mode="zeros", align_corners=False)[0] + fill


def crop(image: Tensor, top: int, left: int, size: tuple[int, int], padding: int = 0, fill: float = 0) -> Tensor:
    padded = F.pad(image, (padding,) * 4, value=fill)
    return padded[:, top : top + size[0], left : left + size[1]]


def resized_crop(image: Tensor, box: tuple[int, int, int, int], size: tuple[int, int], mode: str) -> Tensor:
    top, left, height, width = box
    window = image.double()[None, :, top : top + height, left : left + width]
    kwargs = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(window, size, mode="nearest-exact" if mode == "nearest" else mode, **kwargs)[0]


def gray(image: Tensor, whole: bool = False) -> Tensor:
    if len(image) == 1:
        return image
    mixed = (image * torch.tensor([0.2989, 0.587, 0.114], dtype=torch.float64)[:, None, None]).sum(0, keepdim=True)
    return mixed.floor() if whole else mixed


def blend(image: Tensor, other: Tensor | float, factor: float, bound: float) -> Tensor:
    return (image * factor + (1 - factor) * other).clamp(0, bound)

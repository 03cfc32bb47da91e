"""Data augmentation of whole batches, in one pass over the images where their order allows it.

    >>> from cnnfast import augment
    >>> t = augment.Compose([
    ...     augment.RandomRotation(10),
    ...     augment.RandomHorizontalFlip(),
    ...     augment.RandomZoom((0.9, 1.1)),
    ...     augment.ColorJitter(brightness=0.2),
    ...     augment.RandomCrop(28, padding=2),
    ...     augment.GaussianNoise(sigma=0.05),
    ... ])
    >>> t(torch.rand(256, 1, 28, 28), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([256, 1, 28, 28])

Names and conventions are torchvision's (transforms.v2), but that each image of the batch has a draw of its own. What
differs is said in :mod:`cnnfast.augment.geometry` and at each transform.
"""

from .color import ColorJitter, GaussianNoise, Grayscale, Normalize, ToDtype
from .compose import Compose
from .crop import RandomCrop, RandomResizedCrop
from .geometry import RandomAffine, RandomHorizontalFlip, RandomRotation, RandomVerticalFlip, RandomZoom
from .image import Parameters
from .transform import Transform

__all__ = ["Transform", "Compose", "Parameters"]
__all__ += ["RandomRotation", "RandomHorizontalFlip", "RandomVerticalFlip", "RandomZoom", "RandomAffine"]
__all__ += ["RandomCrop", "RandomResizedCrop"]
__all__ += ["ColorJitter", "Grayscale", "GaussianNoise", "Normalize", "ToDtype"]

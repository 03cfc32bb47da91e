"""Small image sets for the training example: scikit-learn's digits, and IDX files (MNIST, Fashion-MNIST).

Nothing is downloaded. A set is read whole into memory as [N, 1, 28, 28] uint8 images and [N] int64 labels.
"""

from __future__ import annotations

import gzip
import importlib.util
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import torch
from torch.nn import functional as F

NUM_CLASSES = 10
# Folder of each set under a data root: Debian's package name, then torchvision's layout.
IDX_SETS = {
    "mnist": ("mnist", "MNIST/raw"),
    "fashion-mnist": ("fashion-mnist", "FashionMNIST/raw"),
}
# Where sets are looked for if no data root is named: torchvision's customary root, Debian's.
DEFAULT_ROOTS = (Path("data"), Path("/usr/share/datasets"))


def load(
    name_or_path: str | os.PathLike[str], train: bool, data_root: str | os.PathLike[str] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Reads one half of an image set.

    Args:
        name_or_path: `digits`, `mnist`, `fashion-mnist`, or a folder with the four IDX files (gzip or not).
        train: the training half, or the test half.
        data_root: folder in which `mnist` and `fashion-mnist` are looked for, as ROOT/fashion-mnist or
            ROOT/FashionMNIST/raw. Default: the environment variable CNNFAST_DATA, else ./data and
            /usr/share/datasets.

    Returns:
        images, uint8 [N, 1, 28, 28], 0 is black and 255 white; labels, int64 [N], 0 to 9.

    Raises:
        FileNotFoundError: no such set, folder or file; the message says where it was looked for.
        ImportError: `digits` without scikit-learn's files.
        ValueError: a file is truncated, too long, or not what it should be.

    Example:
        >>> images, labels = load("digits", train=False)
        >>> images.shape, labels.shape
        (torch.Size([360, 1, 28, 28]), torch.Size([360]))
    """
    if name_or_path == "digits":
        return _digits(train)
    prefix = "train" if train else "t10k"
    folder = _idx_folder(name_or_path, data_root)
    images = read_idx(_idx_file(folder, f"{prefix}-images-idx3-ubyte"), (None, 28, 28))
    path = _idx_file(folder, f"{prefix}-labels-idx1-ubyte")
    labels = read_idx(path, (None,)).long()
    if len(labels) != len(images):
        raise ValueError(f"{path}: expected {len(images)} labels, one for each image, but got {len(labels)}")
    if len(labels) == 0 or labels.max() >= NUM_CLASSES:
        raise ValueError(
            f"{path}: expected labels of 0 to {NUM_CLASSES - 1}, but got "
            f"{labels.max().item() if len(labels) else 'none'}"
        )
    return images.unsqueeze(1), labels


def read_idx(path: str | os.PathLike[str], shape: tuple[int | None, ...]) -> torch.Tensor:
    """Reads an IDX file of unsigned bytes, compressed if its name ends in .gz.

    The format (http://yann.lecun.com/exdb/mnist/): two zero bytes, one byte for the type (8: unsigned byte), one for
    the number of dimensions, each size as a big-endian 32-bit integer, the values in row-major order.

    Args:
        path: the file.
        shape: the expected sizes, None where any will do.

    Returns:
        uint8 tensor of the file's sizes.

    Raises:
        ValueError: the file is not that; the message names the file, what was expected and what was found.
    """
    path = Path(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return _read_idx(path, file, shape)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected a complete gzip file, but got: {error}") from error


def _read_idx(path: Path, file: BinaryIO | gzip.GzipFile, shape: tuple[int | None, ...]) -> torch.Tensor:
    magic = bytes((0, 0, 8, len(shape)))
    header = file.read(4 + 4 * len(shape))
    if header[:4] != magic:
        raise ValueError(
            f"{path}: expected an IDX file of unsigned bytes in {len(shape)} dimensions, magic 0x{magic.hex()}, but "
            f"got 0x{header[:4].hex()}"
        )
    if len(header) < 4 + 4 * len(shape):
        raise ValueError(f"{path}: expected a header of {4 + 4 * len(shape)} bytes, but got {len(header)}")
    sizes = tuple(int.from_bytes(header[4 + 4 * d : 8 + 4 * d], "big") for d in range(len(shape)))
    if any(want is not None and size != want for size, want in zip(sizes, shape)):
        expected = ", ".join("N" if want is None else str(want) for want in shape)
        raise ValueError(f"{path}: expected sizes [{expected}], but got {list(sizes)}")
    count = math.prod(sizes)
    values = _read_at_most(file, count + 1)
    if len(values) != count:
        found = f"{len(values)}" if len(values) < count else "more"
        raise ValueError(f"{path}: expected {count} bytes of values for sizes {list(sizes)}, but got {found}")
    return torch.frombuffer(values, dtype=torch.uint8).view(sizes) if count else torch.empty(sizes, dtype=torch.uint8)


def _read_at_most(file: BinaryIO | gzip.GzipFile, count: int) -> bytearray:
    """The next `count` bytes, or as many as there are.

    Never more than a chunk beyond what the file holds is asked for: a damaged header may promise terabytes, and a
    small gzip file may hold them.
    """
    values = bytearray()
    while len(values) < count and (chunk := file.read(min(count - len(values), 1 << 20))):
        values += chunk
    return values


def _idx_folder(name_or_path: str | os.PathLike[str], data_root: str | os.PathLike[str] | None) -> Path:
    if name_or_path not in IDX_SETS:
        if not Path(name_or_path).is_dir():
            raise FileNotFoundError(
                f"data must be digits, {', '.join(IDX_SETS)} or a folder of IDX files, but got {str(name_or_path)!r}"
            )
        return Path(name_or_path)
    root = data_root or os.environ.get("CNNFAST_DATA")
    roots = (Path(root),) if root else DEFAULT_ROOTS
    folders = [parent / folder for parent in roots for folder in IDX_SETS[str(name_or_path)]]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"{name_or_path}: expected its IDX files in {' or '.join(map(str, folders))}, but no such folder exists; "
        "name another with --data-root or CNNFAST_DATA"
    )


def _idx_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(f"{folder}: expected {name} or {name}.gz, but found neither")


def _digits(train: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The 1,797 handwritten 8x8 digits of scikit-learn (UCI, Alpaydin and Kaynak), each pixel made 3x3, in a border.

    Every fifth image belongs to the test half: 1,437 and 360 images.
    """
    # Importing scikit-learn would load a second OpenMP runtime, whose threads fight with torch's: find its file only.
    spec = importlib.util.find_spec("sklearn")
    path = Path(spec.origin).parent / "datasets/data/digits.csv.gz" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise ImportError("digits: expected the data file in scikit-learn's package; pip install 'cnnfast[train]'")
    try:
        with gzip.open(path, "rt") as file:
            rows = torch.tensor([[int(value) for value in line.split(",")] for line in file])
    except (ValueError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path}: expected rows of 64 pixels and a label, but got: {error}") from error
    if rows.shape != (1797, 65) or rows.min() < 0 or rows[:, :64].max() > 16 or rows[:, 64].max() >= NUM_CLASSES:
        raise ValueError(f"{path}: expected 1797 rows of 64 pixels of 0 to 16 and a label, but got {list(rows.shape)}")
    rows = rows[(torch.arange(len(rows)) % 5 == 0) != train]
    images = (rows[:, :64] * 255 // 16).to(torch.uint8).view(-1, 1, 8, 8)
    enlarged = images.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)
    return F.pad(enlarged, (2, 2, 2, 2)), rows[:, 64].clone()

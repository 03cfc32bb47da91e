"""cnnfast.data: what is read is what was written, and a bad file is told by name."""

from __future__ import annotations

import gzip
import importlib.util
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cnnfast import data

HAVE_DIGITS = importlib.util.find_spec("sklearn") is not None
needs_digits = pytest.mark.skipif(not HAVE_DIGITS, reason="scikit-learn is not installed")


def idx(values: torch.Tensor) -> bytes:
    header = bytes((0, 0, 8, values.dim())) + struct.pack(f">{values.dim()}I", *values.shape)
    return header + bytes(values.flatten().tolist())


def write_set(folder: Path, count: int = 11, suffix: str = "") -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Four IDX files of random images; returns what is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    halves = {}
    for half in ("train", "t10k"):
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8, generator=generator)
        labels = torch.randint(10, (count,), dtype=torch.uint8, generator=generator)
        halves[half] = images, labels
        for values, kind in ((images, "images-idx3"), (labels, "labels-idx1")):
            content = idx(values)
            path = folder / f"{half}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return halves


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_reads_a_folder(tmp_path: Path, suffix: str):
    written = write_set(tmp_path, suffix=suffix)
    for train, half in ((True, "train"), (False, "t10k")):
        images, labels = data.load(tmp_path, train)
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert torch.equal(images, written[half][0].unsqueeze(1))
        assert torch.equal(labels, written[half][1].long())


@pytest.mark.parametrize("name, folder", [(name, folder) for name, all in data.IDX_SETS.items() for folder in all])
def test_finds_a_set_under_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str):
    write_set(tmp_path / "root" / folder)
    assert len(data.load(name, True, tmp_path / "root")[0]) == 11
    monkeypatch.setenv("CNNFAST_DATA", str(tmp_path / "root"))
    assert len(data.load(name, True)[0]) == 11
    with pytest.raises(FileNotFoundError, match="no such folder"):  # A root that is named is the only one looked in.
        data.load(name, True, tmp_path)


def test_missing(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="data must be digits, mnist, .* but got 'mnits'"):
        data.load("mnits", True)
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte.gz, but found neither"):
        data.load(tmp_path, True)


IMAGES = idx(torch.zeros(11, 28, 28, dtype=torch.uint8))
LABELS = idx(torch.zeros(11, dtype=torch.uint8))


@pytest.mark.parametrize(
    "kind, content, message",
    [
        ("images-idx3", b"", "magic 0x00000803, but got 0x$"),
        ("images-idx3", b"PK\3\4" + IMAGES[4:], "magic 0x00000803, but got 0x504b0304"),
        ("images-idx3", LABELS, "in 3 dimensions, magic 0x00000803, but got 0x00000801"),
        ("images-idx3", b"\0\0\x0d\3" + IMAGES[4:], "unsigned bytes .* got 0x00000d03"),
        ("images-idx3", IMAGES[:9], "header of 16 bytes, but got 9"),
        ("images-idx3", IMAGES[:-1], r"8624 bytes of values for sizes \[11, 28, 28\], but got 8623"),
        ("images-idx3", IMAGES[:4] + b"\xff" * 4 + IMAGES[8:], "3367254359280 bytes of values .* but got 8624"),
        ("images-idx3", IMAGES + b"\0", "8624 bytes of values .* but got more"),
        ("images-idx3", idx(torch.zeros(11, 32, 32, dtype=torch.uint8)), r"\[N, 28, 28\], but got \[11, 32, 32\]"),
        ("labels-idx1", idx(torch.zeros(10, dtype=torch.uint8)), "11 labels, one for each image, but got 10"),
        ("labels-idx1", LABELS[:-1] + b"\n", "labels of 0 to 9, but got 10"),
        ("labels-idx1", IMAGES, "magic 0x00000801, but got 0x00000803"),
    ],
)
def test_wrong_file(tmp_path: Path, kind: str, content: bytes, message: str):
    write_set(tmp_path)
    path = tmp_path / f"train-{kind}-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        data.load(tmp_path, True)
    assert str(path) in str(error.value)
    data.load(tmp_path, False)


def test_empty_set(tmp_path: Path):
    write_set(tmp_path, count=0)
    with pytest.raises(ValueError, match="labels of 0 to 9, but got none"):
        data.load(tmp_path, True)


@pytest.mark.parametrize("damage", [lambda c: c[:-20], lambda c: c[:-8] + b"\0" + c[-7:], lambda c: b"not gzip" + c])
def test_damaged_gzip(tmp_path: Path, damage):
    write_set(tmp_path, suffix=".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match="complete gzip file") as error:
        data.load(tmp_path, True)
    assert str(path) in str(error.value)


@needs_digits
def test_digits():
    halves = [data.load("digits", train) for train in (True, False)]
    assert [len(images) for images, _ in halves] == [1437, 360]
    for images, labels in halves:
        assert images.shape[1:] == (1, 28, 28) and images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert images.max() == 255 and set(labels.tolist()) == set(range(10))
        assert not images[:, :, :2].any() and not images[:, :, :, -2:].any()
        # Blocks of 3x3 equal pixels.
        blocks = images[:, :, 2:26, 2:26].unfold(2, 3, 3).unfold(3, 3, 3).flatten(4)
        assert torch.equal(blocks.amin(-1), blocks.amax(-1))
    # The file's first row is a 0 and falls to the test half, its second, a 1, to the training half.
    assert halves[1][1][0] == 0 and halves[0][1][0] == 1


@needs_digits
def test_digits_does_not_import_sklearn():
    program = "import sys; from cnnfast import data; data.load('digits', True); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_digits_without_sklearn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'cnnfast\[train\]'"):
        data.load("digits", True)

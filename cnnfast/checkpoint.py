"""Checkpoint files: written whole or not at all, checked before use, loaded without running code from them."""

from __future__ import annotations

import os
import pickle
import secrets
import zipfile
from pathlib import Path
from typing import Any

import torch

FORMAT = 1


def save(path: str | os.PathLike[str], state: dict[str, Any]) -> None:
    """Writes `state` to `path`, which holds the old or the new checkpoint at every moment, also if power fails.

    Args:
        path: the file; its folder is made if there is none.
        state: tensors, numbers, strings, and dicts, lists or tuples of them.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, since a rename is atomic within one file system only; and with open's own permissions, where
    # the tempfile module would shut out the group that the umask lets in.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # The rename itself reaches the disk with the folder; elsewhere a folder cannot be synced.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `save` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, corrupt (every part has a checksum), or not a checkpoint of this package.
    """
    try:
        # torch does not verify the checksums of its zip entries.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"{path}: expected a complete checkpoint, but {damaged} in it is damaged")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(f"{path}: expected a complete checkpoint, but got: {error}") from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: expected a checkpoint of cnnfast.train, format {FORMAT}, but got another file")
    return state

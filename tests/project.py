"""The project as its source distribution has it, for the tests that install it."""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_COPIED = ("csrc", "cnnfast", "tests", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def copy_project(folder: Path) -> Path:
    """Copies it into a new folder, without what was built in place."""
    folder.mkdir()
    for name in _COPIED:
        source = ROOT / name
        ignored = shutil.ignore_patterns("*.so", "__pycache__")
        shutil.copytree(source, folder / name, ignore=ignored) if source.is_dir() else shutil.copy(source, folder)
    return folder

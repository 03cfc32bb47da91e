"""The documentation: its code runs and prints what it says, its pictures are drawn, its site builds without a warning.

Code blocks of a page run from its top to its end, as a reader would: ```python in one namespace (with what it prints
compared where it has prompts), ```bash as commands. ```console is what installs, which .ci/run and test_install.py try;
```text is output, and what has no fence is a diagram.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path

import pytest
from test_data import needs_digits

import cnnfast
from cnnfast import routing

sybil = pytest.importorskip("sybil", reason="pip install 'cnnfast[docs]'")
markdown = pytest.importorskip("sybil.parsers.markdown")

pytestmark = [pytest.mark.long, needs_digits]

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"python", "bash", "console", "text"}


def environment() -> dict[str, str]:
    """That of a shell in which `python` is this one and finds this cnnfast."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    return os.environ | {"PATH": path, "PYTHONPATH": str(Path(cnnfast.__file__).parents[1])}


def run_bash(example: sybil.Example) -> str | None:
    command = ["bash", "-euo", "pipefail", "-c", example.parsed]
    result = subprocess.run(command, env=environment(), capture_output=True, text=True)
    return None if result.returncode == 0 else f"exit status {result.returncode}:\n{result.stdout}{result.stderr}"


PARSERS = [
    markdown.PythonCodeBlockParser(doctest_optionflags=ELLIPSIS | NORMALIZE_WHITESPACE),
    markdown.CodeBlockParser("bash", run_bash),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    cnnfast.fallbacks(reset=True)
    for example in sybil.Sybil(PARSERS).parse(page).examples():
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_fence_has_a_language_that_is_known_here(page: Path):
    fences = re.findall(r"^ *```(.*)$", page.read_text(), re.MULTILINE)
    assert not set(fences[::2]) - LANGUAGES and not any(fences[1::2]), page


def test_the_script_draws_the_pictures_that_pages_show():
    shown = {name for page in PAGES for name in re.findall(r"\]\(pictures/(.*?)\.svg\)", page.read_text())}
    assert shown == set(runpy.run_path(str(ROOT / "docs/pictures.py"))["PICTURES"])


def test_every_reason_for_torchs_own_op_is_explained():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    reasons = [value for value in vars(routing).values() if isinstance(value, routing.Reason)]
    # The call that ONNX export writes down is not one that ran elsewhere, and nobody is told of it.
    assert all(reason.text in page for reason in reasons if reason is not routing.ONNX)


def test_the_site_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("material")
    environ = environment() | {"NO_MKDOCS_2_WARNING": "1"}
    for command in (
        ["docs/pictures.py"],
        ["-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
    ):
        result = subprocess.run([sys.executable, *command], cwd=ROOT, env=environ, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr
    # Nothing is fetched where the site is read: every script, style and picture is its own.
    for page in (tmp_path / "site").glob("*.html"):
        assert not re.findall(
            r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="https?:[^"]*"', page.read_text()
        )


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jupytext, nbclient = pytest.importorskip("jupytext"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    for name, value in (environment() | {"OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)
    notebook = jupytext.read(ROOT / "examples/lecture_from_pixels.py")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    drawings = [cell for cell in notebook.cells if cell.cell_type == "code" and "\nviz." in f"\n{cell.source}"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == len(drawings)
    accuracy = [float(found[1]) for output in outputs if (found := re.search(r"([\d.]+)% of", output.get("text", "")))]
    assert accuracy[0] < 50 and accuracy[-1] > 85

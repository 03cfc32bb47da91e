"""autotune: its switch, its file, and what tells of it."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from autotuning import BACKWARD, FORMATS, OWN, choices, choosing, conv_and_input, fresh
from torch import nn

import cnnfast
from cnnfast import info, tuned, tuning, tuning_cache

pytestmark = pytest.mark.usefixtures(fresh.__name__)

# The switch.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"enabled": 1}, "autotune: enabled must be bool, but got enabled=1"),
        ({"cache": 3}, "autotune: cache must be a path or None, but got cache=3"),
        ({"trials": 2.0}, "autotune: trials must be an int, but got trials=2.0"),
        ({"trials": 0}, "autotune: trials must be positive, but got trials=0"),
        ({"seconds": "1"}, "autotune: seconds must be a number, but got seconds='1'"),
        ({"seconds": 0.0}, "autotune: seconds must be positive, but got seconds=0.0"),
        ({"seconds": float("nan")}, "autotune: seconds must be positive, but got seconds=nan"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError)) as raised:
        cnnfast.autotune(**arguments)
    assert str(raised.value) == message
    assert not tuning.enabled


def test_op_names_its_algorithms() -> None:
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3)
    with pytest.raises(RuntimeError, match="conv2d_chosen_forward: algorithm must be winograd, direct, .*=fft"):
        torch.ops.cnnfast.conv2d_chosen_forward(x, weight, None, [1, 1, 0, 0, 0, 0, 1, 1, 1, 0], 0, None, "fft")


def test_info_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input()
    assert info.collect()["autotune"]["enabled"] is False
    assert "off" in info.render(info.collect())
    choosing(monkeypatch, "torch")
    with cnnfast.autotune(cache=tmp_path / "choices.json", trials=3):
        conv(x)
        report = info.collect()
    assert report["autotune"] == {
        "enabled": True,
        "cache": str(tmp_path / "choices.json"),
        "trials": 3,
        "seconds": 0.5,
        "choices": 1,
    }
    assert f"1 choices, kept in {tmp_path}" in info.render(report)
    json.dumps(report)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("cls", (cnnfast.Conv2d, cnnfast.ConvReLU2d))
def test_explain_tells(
    cls: type[cnnfast.Conv2d], memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = cls(16, 24, 3, padding=1)
    x = torch.randn(2, 16, 9, 9).to(memory_format=memory_format).requires_grad_()
    plain = cnnfast.explain(conv, x)
    with cnnfast.autotune():
        assert cnnfast.explain(conv, x) == plain and not plain.measured
        choosing(monkeypatch, "torch", seconds=1e-5)
        y = conv(x)
        choosing(monkeypatch, "torch_for_weight", seconds=2e-5)
        y.backward(torch.ones_like(y))
        found = cnnfast.explain(conv, x)
        hash(found)
    assert (found.forward, found.grad_input, found.grad_weight) == ("torch", plain.grad_input, "torch")
    assert "forward:     torch (measured: torch 10 us, " in str(found)
    assert "grad_weight: torch (measured: torch_for_weight 20 us, planned 40 us, " in str(found)
    assert cnnfast.explain(conv, x) == plain


def test_explain_tells_of_what_convert_has_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = cnnfast.convert(nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.SiLU()).eval())
    x = torch.randn(2, 8, 9, 9)
    choosing(monkeypatch, "torch")
    with cnnfast.autotune(), torch.no_grad():
        model(x)
        assert cnnfast.explain(model[0], x).forward == "torch"
        assert not cnnfast.explain(model[0], x[:1]).measured


def test_a_kept_switch_switches_again() -> None:
    switch = cnnfast.autotune()
    for _ in range(2):
        with switch:
            assert tuning.enabled
        assert not tuning.enabled


def test_environment_variables(tmp_path: Path) -> None:
    code = "import cnnfast; print(cnnfast.info.collect()['autotune'])"

    def report(**environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": str(Path(cnnfast.__file__).parents[1]), **environment},
            capture_output=True,
            text=True,
            check=True,
        )

    on = report(CNNFAST_AUTOTUNE="1", CNNFAST_AUTOTUNE_CACHE=str(tmp_path / "choices.json")).stdout
    assert "'enabled': True" in on and str(tmp_path / "choices.json") in on
    wrong = report(CNNFAST_AUTOTUNE="yes")
    assert "'enabled': False" in wrong.stdout
    assert "CNNFAST_AUTOTUNE must be 0 or 1, but got yes; ignored" in wrong.stderr


def test_child_of_a_fork_is_not_kept_waiting() -> None:
    if not hasattr(os, "fork"):
        pytest.skip("no fork")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with tuning._lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if tuning._lock.acquire(timeout=5) else 1)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


# The file.


def test_file_knows_all_that_is_chosen() -> None:
    assert tuning_cache._CHOICES["conv2d_forward"] == {*OWN, tuned.TORCH}
    assert tuning_cache._CHOICES["conv2d_backward"] == set(BACKWARD)


def test_file_serves_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input()
    x.requires_grad_()
    path = tmp_path / "folder" / "choices.json"
    choosing(monkeypatch, "torch", seen := [])
    with cnnfast.autotune(cache=path):
        conv(x).sum().backward()
        before = dict(tuning.table)
    assert [file.name for file in path.parent.iterdir()] == ["choices.json"]
    monkeypatch.setattr(tuning, "_tables", {})
    with cnnfast.autotune(cache=str(path)):
        assert tuning.table == before and len(before) == 2
        del seen[:]
        conv(x).sum().backward()
        assert not seen
        conv(x[:1])
    assert len(json.loads(path.read_text())["environments"][tuning_cache.environment()]) == 3


def test_file_keeps_what_others_wrote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conv, x = conv_and_input()
    path = tmp_path / "choices.json"
    choosing(monkeypatch, "torch")
    with torch.no_grad():
        with cnnfast.autotune(cache=path):
            conv(x)
        monkeypatch.setattr(tuning, "_tables", {})
        with monkeypatch.context() as other, cnnfast.autotune(False):
            other.setattr(tuning_cache, "environment", lambda: "another processor")
            with cnnfast.autotune(cache=path):
                assert not tuning.table
                conv(x[:1])
        with cnnfast.autotune(cache=path):
            assert len(tuning.table) == 1
            # Another process has found something meanwhile.
            content = json.loads(path.read_text())
            entry = content["environments"][tuning_cache.environment()][0]
            content["environments"][tuning_cache.environment()].append({**entry, "threads": 64})
            path.write_text(json.dumps(content))
            conv(x[:1])
    environments = json.loads(path.read_text())["environments"]
    assert {name: len(entries) for name, entries in environments.items()} == {
        tuning_cache.environment(): 3,
        "another processor": 1,
    }


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"format": "something else", "environments": {}}',
        '{"format": "cnnfast autotune 1", "environments": {"HERE": [{"op": "conv2d_forward"}]}}',
        '{"format": "cnnfast autotune 1", "environments": {"HERE": 7}}',
        '{"format": "cnnfast autotune 1", "environments": {"HERE": [{"op": "conv2d_forward", "tensors": [], "options": '
        '[], "variant": [], "dtype": "float32", "threads": 1, "algorithm": "fft", "seconds": {"fft": 1}}]}}',
        b"\xff\xfe",
    ],
)
def test_damaged_or_foreign_file_is_ignored(
    content: str | bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    conv, x = conv_and_input()
    path = tmp_path / "choices.json"
    data = content if isinstance(content, bytes) else content.replace("HERE", tuning_cache.environment()).encode()
    path.write_bytes(data)
    choosing(monkeypatch, "torch")
    with caplog.at_level(logging.WARNING, "cnnfast"), torch.no_grad(), cnnfast.autotune(cache=path):
        assert not tuning.table
        conv(x)
        conv(x[:1])
    assert choices() == ["torch"] * 2
    assert path.read_bytes() == data  # it may be somebody's
    assert [record.message.split(" (")[0] for record in caplog.records] == [
        f"autotune: cache must be a file that it can write and has written, but got {path}"
    ]


def test_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    conv, x = conv_and_input()
    (tmp_path / "file").write_text("")
    choosing(monkeypatch, "torch")
    with caplog.at_level(logging.WARNING, "cnnfast"), cnnfast.autotune(cache=tmp_path / "file" / "choices.json"):
        conv(x)
        conv(x[:1])
    assert choices() == ["torch"] * 2 and len(caplog.records) == 1

"""cnnfast.train: it learns, both backends alike; a resumed run ends where an uninterrupted one does, bit for bit."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from test_data import HAVE_DIGITS, needs_digits, write_set

from cnnfast import checkpoint, library, train
from cnnfast.trainer import Sampler

BACKENDS = ("cnnfast", "torch")


@pytest.fixture
def config(tmp_path: Path) -> train.Config:
    """A run of 2 epochs of 6 steps, the last of them short, on random images."""
    write_set(tmp_path / "images", count=43)
    return train.Config(data=str(tmp_path / "images"), epochs=2, batch_size=8, checkpoint=str(tmp_path / "checkpoint"))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def quiet(line: str) -> None:
    pass


def state(config: train.Config, backend: str) -> dict[str, Any]:
    return checkpoint.load(Path(config.checkpoint) / f"{backend}.pt")


def assert_equal(got: Any, expected: Any, where: str = "state") -> None:
    """Equal to the bit, but for the measured times."""
    assert type(got) is type(expected), where
    if isinstance(expected, torch.Tensor):
        assert torch.equal(got, expected), where
    elif isinstance(expected, dict):
        assert got.keys() == expected.keys(), where
        for key in expected.keys() - {"seconds", "images_per_second"}:
            assert_equal(got[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, list):
        assert len(got) == len(expected), where
        for i, pair in enumerate(zip(got, expected)):
            assert_equal(*pair, f"{where}[{i}]")
    else:
        assert got == expected, where


class Killed(BaseException):
    """What ends a run between two checkpoints."""


def run_and_kill(config: train.Config, monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    """Runs until so many checkpoints were written and the next one would be."""
    left = [saves]

    def save(path: Path, state: dict[str, Any]) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1
        checkpoint_save(path, state)

    checkpoint_save = checkpoint.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        with pytest.raises(Killed):
            train.run(config, quiet)


# Of the 4 saves an epoch (6 steps, every 2; the one before training counts), each is once the last before the end.
@pytest.mark.parametrize("saves", range(1, 7))
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_resumes_exactly(
    config: train.Config, monkeypatch: pytest.MonkeyPatch, backend: str, optimizer: str, saves: int, tmp_path: Path
):
    config = dataclasses.replace(config, backend=backend, optimizer=optimizer, checkpoint_every=2)
    train.run(config, quiet)
    expected = state(config, backend)
    assert len(expected["rows"]) == 2

    config = dataclasses.replace(config, checkpoint=str(tmp_path / "killed"))
    run_and_kill(config, monkeypatch, saves)
    torch.rand(3)  # The resumed process has other random numbers.
    train.run(dataclasses.replace(config, resume=True), quiet)
    assert_equal(state(config, backend), expected)


def test_resumes_exactly_with_augmentation(config: train.Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Its draws come from the generator that a checkpoint keeps."""
    config = dataclasses.replace(config, augment=True, checkpoint_every=2)
    train.run(config, quiet)
    config = dataclasses.replace(config, checkpoint=str(tmp_path / "killed"))
    run_and_kill(config, monkeypatch, 3)
    train.run(dataclasses.replace(config, resume=True), quiet)
    expected = checkpoint.load(tmp_path / "checkpoint/cnnfast.pt")
    assert_equal(state(config, "cnnfast"), expected)


def test_resuming_goes_on_within_the_epoch(config: train.Config, monkeypatch: pytest.MonkeyPatch):
    """So that the test above cannot pass by starting anew."""
    config = dataclasses.replace(config, backend="torch", checkpoint_every=2)
    run_and_kill(config, monkeypatch, saves=3)
    assert state(config, "torch")["sampler"]["position"] == 4 * 8
    trained_on = []
    steps = train.Trainer._train_on
    monkeypatch.setattr(train.Trainer, "_train_on", lambda *a: (trained_on.append(len(a[1])), steps(*a)))
    train.run(dataclasses.replace(config, resume=True), quiet)
    assert trained_on == [11, 16, 16, 11]


def test_resumes_both_backends_and_adds_epochs(config: train.Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    config = dataclasses.replace(config, backend="both")
    train.run(config, quiet)
    killed = dataclasses.replace(config, epochs=1, checkpoint=str(tmp_path / "killed"))
    run_and_kill(killed, monkeypatch, saves=3)  # One before training for each, and one of cnnfast's first epoch.
    result = train.run(dataclasses.replace(killed, epochs=2, resume=True), quiet)
    for backend in BACKENDS:
        assert_equal(state(killed, backend), state(config, backend))
        assert [row["epoch"] for row in result["epochs"][backend]] == [1, 2]


def test_run_leaves_the_callers_random_numbers(config: train.Config):
    torch.manual_seed(11)
    expected = torch.rand(4)
    torch.manual_seed(11)
    train.run(config, quiet)
    assert torch.equal(torch.rand(4), expected)


def test_dropout_and_order_differ_between_epochs_but_not_between_runs(config: train.Config, tmp_path: Path):
    train.run(config, quiet)
    again = dataclasses.replace(config, checkpoint=str(tmp_path / "again"))
    train.run(again, quiet)
    assert_equal(state(again, "cnnfast"), state(config, "cnnfast"))
    sampler = Sampler(43, seed=0)
    first = sampler.order()
    assert torch.equal(sampler.order(), first) and torch.equal(first.sort().values, torch.arange(43))
    sampler.next_epoch()
    assert not torch.equal(sampler.order(), first)


def test_failed_write_leaves_the_previous_checkpoint(config: train.Config, monkeypatch: pytest.MonkeyPatch):
    train.run(config, quiet)
    path = Path(config.checkpoint) / "cnnfast.pt"
    before = path.read_bytes()

    def torch_save(state: dict[str, Any], file: Any) -> None:
        file.write(b"half of a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", torch_save)
    with pytest.raises(OSError, match="No space"):
        train.run(dataclasses.replace(config, epochs=3, resume=True), quiet)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["cnnfast.pt"]


def flip_a_bit_of_a_weight(content: bytes, path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        entry = max(archive.infolist(), key=lambda entry: entry.file_size)
    middle = entry.header_offset + entry.file_size // 2
    return content[:middle] + bytes((content[middle] ^ 1,)) + content[middle + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, path: b"",
        lambda content, path: content[: len(content) // 2],
        lambda content, path: b"not a checkpoint",
        flip_a_bit_of_a_weight,
    ],
    ids=["empty", "half", "text", "bit"],
)
def test_damaged_checkpoint(config: train.Config, damage):
    train.run(config, quiet)
    path = Path(config.checkpoint) / "cnnfast.pt"
    damaged = damage(path.read_bytes(), path)
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="expected a complete checkpoint") as error:
        train.run(dataclasses.replace(config, resume=True), quiet)
    assert str(path) in str(error.value) and path.read_bytes() == damaged


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model": {}}, "expected a checkpoint of cnnfast.train, format 1"),
        ([1], "expected a checkpoint of cnnfast.train, format 1"),
        ({"format": 1, "config": None}, "expected backend='cnnfast', but got a run of backend=None"),
    ],
    ids=["other", "list", "config"],
)
def test_file_of_something_else(config: train.Config, content: Any, message: str):
    path = Path(config.checkpoint) / "cnnfast.pt"
    path.parent.mkdir()
    torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        train.run(dataclasses.replace(config, resume=True), quiet)


@pytest.mark.parametrize(
    "changed",
    [
        {"batch_size": 4},
        {"optimizer": "sgd"},
        {"lr": 0.1},
        {"dropout": 0.1},
        {"seed": 1},
        {"limit": 20},
        {"augment": True},
    ],
    ids=str,
)
def test_checkpoint_of_another_run(config: train.Config, changed: dict[str, Any]):
    train.run(config, quiet)
    name = next(iter(changed))
    with pytest.raises(ValueError, match=f"expected {name}=.*, but got a run of {name}="):
        train.run(dataclasses.replace(config, resume=True, **changed), quiet)


def test_checkpoint_of_other_data(config: train.Config):
    train.run(config, quiet)
    write_set(Path(config.data), count=42)
    with pytest.raises(ValueError, match="expected a state for 42 images, but got one for 43"):
        train.run(dataclasses.replace(config, resume=True), quiet)


def test_checkpoint_runs_no_code(config: train.Config):
    path = Path(config.checkpoint) / "cnnfast.pt"
    path.parent.mkdir()
    torch.save({"format": 1, "model": subprocess.Popen}, path)
    with pytest.raises(ValueError, match="expected a complete checkpoint, but got: Weights only load failed"):
        train.run(dataclasses.replace(config, resume=True), quiet)


def test_does_not_overwrite_another_run(config: train.Config):
    train.run(config, quiet)
    with pytest.raises(ValueError, match="a checkpoint is there already"):
        train.run(config, quiet)


def test_resumes_where_only_one_backend_had_begun(config: train.Config, tmp_path: Path):
    both = dataclasses.replace(config, backend="both", epochs=1, checkpoint=str(tmp_path / "both"))
    train.run(both, quiet)
    (tmp_path / "both" / "torch.pt").unlink()
    with pytest.raises(FileNotFoundError, match="torch.pt"):
        train.run(dataclasses.replace(both, resume=True), quiet)
    first, second = train.Trainer("cnnfast", both, *train.load_data(both)), tmp_path / "both" / "cnnfast.pt"
    second.unlink()
    first.save()  # as a run that ended before it saved the other
    result = train.run(dataclasses.replace(both, resume=True), quiet)
    assert [len(rows) for rows in result["epochs"].values()] == [1, 1]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_checkpoint_has_the_permissions_of_any_file(tmp_path: Path):
    checkpoint.save(tmp_path / "run.pt", {})
    (tmp_path / "other").touch()
    assert (tmp_path / "run.pt").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_nothing_to_resume(config: train.Config):
    with pytest.raises(FileNotFoundError, match="cnnfast.pt"):
        train.run(dataclasses.replace(config, resume=True), quiet)


@pytest.mark.parametrize(
    "name, value",
    [("backend", "cudnn"), ("optimizer", "lion"), ("epochs", 0), ("batch_size", -1), ("lr", 0.0), ("limit", 0),
     ("threads", 0), ("lr", float("nan")), ("checkpoint_every", 3), ("resume", True), ("device", "tpu"),
     ("parallel", "mpi"), ("dropout", 1.0), ("dropout", float("nan"))],
)  # fmt: skip
def test_bad_options(name: str, value: Any):
    with pytest.raises(ValueError, match=f"train: {name} .* but got"):
        train.Config(**{name: value})


def test_same_batches_for_both(config: train.Config, monkeypatch: pytest.MonkeyPatch):
    """One step from the same weights with the same batch and dropout: the same weights but for rounding."""
    trainers = [train.Trainer(backend, config, *train.load_data(config)) for backend in BACKENDS]
    for trainer in trainers:
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.01)
        trainer.train_epoch()
    for ours, theirs in zip(*(trainer.model.parameters() for trainer in trainers)):
        torch.testing.assert_close(ours, theirs)


def main(*arguments: str) -> int:
    return train.main(["--threads", "1", *arguments])


def test_without_our_library_nothing_is_called_ours(capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    monkeypatch.setattr(library, "load_error", "cnnfast._C was not built")
    assert main("--backend", "both") == 1
    assert "backend cnnfast needs the compiled kernels, but cnnfast._C was not built" in capsys.readouterr().err


@needs_digits
def test_learns_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "results.json"
    assert main("--backend", "both", "--epochs", "4", "--lr", "0.003", "--json", str(path)) == 0
    result = json.loads(path.read_text())
    for backend in BACKENDS:
        rows = result["epochs"][backend]
        assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
        assert rows[-1]["test_accuracy"] > 0.93 and rows[-1]["train_accuracy"] > 0.9
        assert rows[-1]["loss"] < rows[0]["loss"]
        assert all(row["images_per_second"] == pytest.approx(1437 / row["seconds"]) for row in rows)
    assert result["epoch_time_ratio"] > 0 and abs(result["accuracy_difference"]) < 3
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed[1:9]] == [*BACKENDS, *BACKENDS[::-1]] * 2  # They take turns.
    assert re.fullmatch(r"epoch time, torch / cnnfast: \d+\.\d\d", printed[9])


@needs_digits
def test_learns_augmented_digits(tmp_path: Path):
    """Trained on images that are new each time, it does better on the test half than on them."""
    path = tmp_path / "results.json"
    assert main("--augment", "--epochs", "6", "--lr", "0.003", "--json", str(path)) == 0
    result = json.loads(path.read_text())
    assert result["config"]["augment"]
    last = result["epochs"]["cnnfast"][-1]
    assert last["test_accuracy"] > 0.9 and last["test_accuracy"] > last["train_accuracy"]


def test_errors_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main("--data", str(tmp_path / "none")) == 1
    assert main("--epochs", "0") == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and all(line.startswith("cnnfast.train: ") for line in told)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_one_openmp_runtime(tmp_path: Path):
    write_set(tmp_path, count=40)
    chosen = ["--data", "digits", "--limit", "40"] if HAVE_DIGITS else ["--data", str(tmp_path)]
    program = f"""
import runpy, sys
sys.argv = ["cnnfast.train", "--backend", "both", "--epochs", "1", "--threads", "2", *{chosen!r}]
try:
    runpy.run_module("cnnfast.train", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print({{line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split("/")[-1]}}, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"/lib(?:gomp|iomp\d?|omp)[-.]", done.stderr)) == 1, done.stderr

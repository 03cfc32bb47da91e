"""Trains the lecture's network with cnnfast, with plain torch, or with both side by side.

    python -m cnnfast.train --backend both --data digits --epochs 5

Both backends go through the same loop, from the same weights, with the same batches and the same dropout; with
`--backend both` they take turns epoch by epoch, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from . import checkpoint, data
from .models import LectureCNN, PlainLectureCNN

try:
    from tqdm import tqdm
except ImportError:  # The progress bar is optional.
    tqdm = None

MODELS = {"cnnfast": LectureCNN, "torch": PlainLectureCNN}
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adam": (torch.optim.Adam, {"lr": 1e-3}),
    "sgd": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}),
}
EVALUATION_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained and how; the options of `python -m cnnfast.train` by the same names.

    Attributes:
        backend: `cnnfast`, `torch` or `both`.
        data: what `cnnfast.data.load` takes; default `digits`.
        data_root: folder of `mnist` and `fashion-mnist`; default as in `cnnfast.data.load`.
        epochs: how many in all, those of a resumed run included.
        batch_size: images a step; the last step of an epoch takes what is left.
        optimizer: `adam`, or `sgd` with momentum 0.9; torch's own, fused.
        lr: learning rate; default 0.001 for adam, 0.01 for sgd.
        seed: of weights, dropout and batches.
        threads: of torch and cnnfast; default torch's.
        limit: use only so many images of each half; default all.
        checkpoint: folder of one file a backend, written after every epoch; default none is written.
        checkpoint_every: write one after so many steps, too; default 0, never.
        resume: go on from the files in `checkpoint`.
    """

    backend: str = "cnnfast"
    data: str = "digits"
    data_root: str | None = None
    epochs: int = 3
    batch_size: int = 64
    optimizer: str = "adam"
    lr: float | None = None
    seed: int = 0
    threads: int | None = None
    limit: int | None = None
    checkpoint: str | None = None
    checkpoint_every: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("backend", (*MODELS, "both")), ("optimizer", tuple(OPTIMIZERS))):
            if getattr(self, name) not in choices:
                raise ValueError(f"train: {name} must be one of {choices}, but got {name}={getattr(self, name)!r}")
        for name in ("epochs", "batch_size", "lr", "threads", "limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"train: {name} must be greater than zero, but got {name}={value}")
        for name in ("checkpoint_every", "resume"):
            value = getattr(self, name)
            if value < 0 or value and self.checkpoint is None:
                raise ValueError(f"train: {name} needs a checkpoint folder and no negative value, but got {value}")

    def identity(self) -> dict[str, Any]:
        """The options that a resumed run must share with the one it goes on from, to end where that would have."""
        names = ("data", "batch_size", "optimizer", "lr", "seed", "limit")
        return {name: getattr(self, name) for name in names}


class Sampler:
    """Draws one permutation of the images for each epoch, and knows how far the present one is used up."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.position = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._start = self._generator.get_state()

    def order(self) -> torch.Tensor:
        """The present epoch's permutation, the same at every call."""
        self._generator.set_state(self._start)
        return torch.randperm(self.count, generator=self._generator)

    def next_epoch(self) -> None:
        self._start = self._generator.get_state()
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "position": self.position, "generator": self._start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["count"] != self.count:
            raise ValueError(f"sampler: expected a state for {self.count} images, but got one for {state['count']}")
        self.position, self._start = state["position"], state["generator"]


class Trainer:
    """One backend's model, optimizer, place in the data and random numbers.

    Args:
        backend: `cnnfast` or `torch`.
        config: what to train and how.
        train: images, float [N, 1, 28, 28], and labels, int64 [N].
        test: the same for the test half.
    """

    def __init__(
        self,
        backend: str,
        config: Config,
        train: tuple[torch.Tensor, torch.Tensor],
        test: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        self.backend, self.config = backend, config
        self.images, self.labels = train
        self.test = test
        self.rows: list[dict[str, Any]] = []
        self._sums = {"loss": 0.0, "correct": 0.0, "seconds": 0.0}
        self._rng = torch.Generator().manual_seed(config.seed).get_state()
        with self._own_random_numbers():
            self.model = MODELS[backend](in_channels=self.images.shape[1])
        build, options = OPTIMIZERS[config.optimizer]
        if config.lr is not None:
            options = {**options, "lr": config.lr}
        self.optimizer = build(self.model.parameters(), fused=True, **options)
        self.sampler = Sampler(len(self.images), config.seed)

    @property
    def path(self) -> Path | None:
        """The checkpoint's file."""
        return Path(self.config.checkpoint) / f"{self.backend}.pt" if self.config.checkpoint else None

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Dropout draws from torch's one generator: each backend brings its own state, and leaves the caller's."""
        callers = torch.get_rng_state()
        torch.set_rng_state(self._rng)
        try:
            yield
        finally:
            self._rng = torch.get_rng_state()
            torch.set_rng_state(callers)

    def train_epoch(self) -> dict[str, Any]:
        """Trains to the end of the present epoch and returns its row.

        Returns:
            epoch (from 1), loss (mean), train_accuracy and test_accuracy (shares of 1), seconds (training alone),
            images_per_second.
        """
        self.model.train()
        order, step = self.sampler.order(), self.config.batch_size
        with self._own_random_numbers(), self._progress() as advance:
            while self.sampler.position < len(order):
                steps = self.config.checkpoint_every or len(order)
                # Steps are counted from the epoch's start, so that a resumed run stops where the other one did.
                end = (self.sampler.position // (steps * step) + 1) * steps * step
                self._train_on(order[self.sampler.position : end], advance)
                self.sampler.position = min(end, len(order))
                if self.config.checkpoint_every and self.sampler.position < len(order):
                    self._rng = torch.get_rng_state()
                    self.save()
        self.sampler.next_epoch()
        count, seconds = len(order), self._sums["seconds"]
        row = {
            "epoch": len(self.rows) + 1,
            "loss": self._sums["loss"] / count,
            "train_accuracy": self._sums["correct"] / count,
            "test_accuracy": self.evaluate(),
            "seconds": seconds,
            "images_per_second": count / seconds,
        }
        self.rows.append(row)
        self._sums = dict.fromkeys(self._sums, 0.0)
        self.save()
        return row

    def _train_on(self, order: torch.Tensor, advance: Callable[[int], object]) -> None:
        """Takes the steps over the images of `order`, and adds to the epoch's sums."""
        model, optimizer, images, size = self.model, self.optimizer, self.images, self.config.batch_size
        labels = self.labels[order]
        kept: list[torch.Tensor] = []
        start = time.perf_counter()
        for index, target in zip(order.split(size), labels.split(size)):
            optimizer.zero_grad(set_to_none=True)
            logits = model(images.index_select(0, index))
            F.cross_entropy(logits, target).backward()
            optimizer.step()
            # Loss and accuracy are read off the logits afterwards: the steps are timed, and reading is not training.
            kept.append(logits.detach())
            advance(1)
        self._sums["seconds"] += time.perf_counter() - start
        logits = torch.cat(kept).double()
        self._sums["loss"] += F.cross_entropy(logits, labels, reduction="sum").item()
        self._sums["correct"] += (logits.argmax(1) == labels).sum().item()

    def evaluate(self) -> float:
        """The share of the test images that the model gets right."""
        self.model.eval()
        with torch.inference_mode():
            correct = sum(
                (self.model(images).argmax(1) == labels).sum().item()
                for images, labels in zip(*(half.split(EVALUATION_BATCH) for half in self.test))
            )
        return correct / len(self.test[1])

    @contextmanager
    def _progress(self) -> Iterator[Callable[[int], object]]:
        """A bar of the epoch's steps, on a terminal."""
        if tqdm is None:
            yield lambda steps: None
            return
        done, step = self.sampler.position, self.config.batch_size
        title = f"{self.backend} epoch {len(self.rows) + 1}"
        total = -(-len(self.images) // step)
        with tqdm(desc=title, total=total, initial=done // step, unit="step", leave=False, disable=None) as bar:
            yield bar.update

    def state_dict(self) -> dict[str, Any]:
        """All that decides how training goes on."""
        return {
            "config": {"backend": self.backend, **self.config.identity()},
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "sampler": self.sampler.state_dict(),
            "rng": self._rng,
            "rows": self.rows,
            "sums": self._sums,
        }

    def save(self) -> None:
        """Writes the checkpoint, if there is a folder for it."""
        if self.path is not None:
            checkpoint.save(self.path, self.state_dict())

    def resume(self) -> None:
        """Goes on from the checkpoint.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of a run with other options.
        """
        assert self.path is not None
        state = checkpoint.load(self.path)
        theirs = state.get("config")
        for name, mine in self.state_dict()["config"].items():
            found = theirs.get(name) if isinstance(theirs, dict) else None
            if found != mine:
                raise ValueError(f"{self.path}: expected {name}={mine!r}, but got a run of {name}={found!r}")
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.sampler.load_state_dict(state["sampler"])
            self._rng, self.rows, self._sums = state["rng"], state["rows"], state["sums"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{self.path}: expected a checkpoint of this model and data, but got: {error}") from error


def load_data(config: Config) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Both halves, whole and in memory, pixels as floats of 0 to 1: (images, labels) to train on, and to test on."""

    def half(train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = data.load(config.data, train, config.data_root)
        return images[: config.limit].float() / 255, labels[: config.limit]

    return half(True), half(False)


def run(config: Config, report: Callable[[str], object] = print) -> dict[str, Any]:
    """Trains as `config` says.

    Args:
        config: what to train and how.
        report: takes each line of the table; default print.

    Returns:
        config, torch (its version), threads, epochs (rows of each backend, see `Trainer.train_epoch`), and, with both
        backends, epoch_time_ratio (median of torch's seconds by median of ours) and accuracy_difference (ours less
        torch's after the last epoch, in points).

    Raises:
        FileNotFoundError, ImportError, ValueError: see `Config`, `cnnfast.data.load` and `Trainer.resume`.

    Example:
        >>> result = run(Config(backend="both", epochs=1))  # doctest: +SKIP
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    backends = tuple(MODELS) if config.backend == "both" else (config.backend,)
    halves = load_data(config)
    trainers = [Trainer(backend, config, *halves) for backend in backends]
    _resume(trainers) if config.resume else _refuse_checkpoints(trainers)
    # Before the first step, so that from here on there is something to resume for every backend.
    for trainer in trainers:
        trainer.save()
    report("epoch  backend    loss  train acc  test acc  seconds  images/s")
    for epoch in range(1, config.epochs + 1):
        # In turns, so that neither always has the machine as the other leaves it.
        for trainer in trainers if epoch % 2 else trainers[::-1]:
            # A resumed run may be an epoch further with one backend than with the other.
            row = trainer.rows[epoch - 1] if len(trainer.rows) >= epoch else trainer.train_epoch()
            report(_line(trainer.backend, row))
    result = {
        "config": dataclasses.asdict(config),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "epochs": {trainer.backend: trainer.rows for trainer in trainers},
    }
    if config.backend == "both":
        result |= _compare(*(trainer.rows[: config.epochs] for trainer in trainers))
        report(f"epoch time, torch / cnnfast: {result['epoch_time_ratio']:.2f}")
        report(f"test accuracy, cnnfast - torch: {result['accuracy_difference']:+.2f} points")
    return result


def _refuse_checkpoints(trainers: Sequence[Trainer]) -> None:
    for trainer in trainers:
        if trainer.path is not None and trainer.path.exists():
            raise ValueError(f"{trainer.path}: a checkpoint is there already; resume it or name another folder")


def _resume(trainers: Sequence[Trainer]) -> None:
    """Resumes all; one without a checkpoint begins if another has not begun either: the run ended between the two."""
    missing = []
    for trainer in trainers:
        try:
            trainer.resume()
        except FileNotFoundError as error:
            missing.append(error)
    begun = any(trainer.rows or trainer.sampler.position for trainer in trainers)
    if missing and (begun or len(missing) == len(trainers)):
        raise missing[0]


def _line(backend: str, row: dict[str, Any]) -> str:
    return (
        f"{row['epoch']:5}  {backend:7}  {row['loss']:6.4f}  {row['train_accuracy']:9.2%}  {row['test_accuracy']:8.2%}"
        f"  {row['seconds']:7.2f}  {row['images_per_second']:8.0f}"
    )


def _compare(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    seconds = [statistics.median(row["seconds"] for row in rows) for rows in (ours, theirs)]
    return {
        "epoch_time_ratio": seconds[1] / seconds[0],
        "accuracy_difference": 100 * (ours[-1]["test_accuracy"] - theirs[-1]["test_accuracy"]),
    }


def _parser() -> argparse.ArgumentParser:
    default = Config()
    parser = argparse.ArgumentParser("cnnfast.train", description="Trains the lecture's network.")
    parser.add_argument("--backend", choices=(*MODELS, "both"), default=default.backend)
    parser.add_argument("--data", default=default.data, help="digits, mnist, fashion-mnist or a folder of IDX files")
    parser.add_argument(
        "--data-root",
        help="where mnist and fashion-mnist are; default $CNNFAST_DATA, else "
        f"{' or '.join(map(str, data.DEFAULT_ROOTS))}",
    )
    parser.add_argument("--epochs", type=int, default=default.epochs)
    parser.add_argument("--batch-size", type=int, default=default.batch_size)
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default=default.optimizer)
    parser.add_argument("--lr", type=float, help="default 0.001 for adam, 0.01 for sgd")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--threads", type=int, help="default torch's")
    parser.add_argument("--limit", type=int, help="use only so many images of each half")
    parser.add_argument("--checkpoint", metavar="DIR", help="write DIR/BACKEND.pt after every epoch")
    parser.add_argument("--checkpoint-every", type=int, default=0, metavar="N", help="and after every N steps")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in DIR")
    parser.add_argument("--json", metavar="FILE", help="write the results there, too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 1 for bad data, checkpoints or options (told on stderr)."""
    options = vars(_parser().parse_args(arguments))
    path = options.pop("json")
    try:
        result = run(Config(**options))
    except (OSError, ImportError, ValueError) as error:
        print(f"cnnfast.train: {error}", file=sys.stderr)
        return 1
    if path is not None:
        Path(path).write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

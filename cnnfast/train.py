"""Trains the lecture's network with cnnfast, with plain torch, or with both side by side.

    python -m cnnfast.train --backend both --data digits --epochs 5

Both backends go through the same loop, from the same weights, with the same batches and the same dropout; with
`--backend both` they take turns epoch by epoch, so that whatever else the machine does meets both.

    torchrun --standalone --nproc-per-node 2 -m cnnfast.train --checkpoint runs/two

trains in two processes, the ranks, that share every batch and average their gradients: see `cnnfast.distributed`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from . import data, distributed, library
from .distributed import World
from .trainer import DEVICES, MODELS, OPTIMIZERS, Config, Trainer


def load_data(config: Config) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Both halves, whole and in memory, pixels as floats of 0 to 1: (images, labels) to train on, and to test on."""

    def half(train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = data.load(config.data, train, config.data_root)
        return images[: config.limit].float() / 255, labels[: config.limit]

    return half(True), half(False)


def run(config: Config, report: Callable[[str], object] = print) -> dict[str, Any]:
    """Trains as `config` says; under torchrun in all its ranks, each of which calls this.

    Args:
        config: what to train and how.
        report: takes each line of the table, on rank 0; default print.

    Returns:
        config, torch (its version), threads (of this rank), ranks, epochs (rows of each backend, see
        `Trainer.train_epoch`), and, with both backends, epoch_time_ratio (median of torch's seconds by median of ours)
        and accuracy_difference (ours less torch's after the last epoch, in points).

    Raises:
        FileNotFoundError, ImportError, ValueError: see `Config`, `cnnfast.data.load` and `Trainer.resume`.

    Example:
        >>> result = run(Config(backend="both", epochs=1))  # doctest: +SKIP
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with distributed.join(config.device) as world:
        return _run(config, world, report if world.rank == 0 else lambda line: None)


def _run(config: Config, world: World, report: Callable[[str], object]) -> dict[str, Any]:
    if config.parallel == "fsdp" and not world.grouped:
        raise ValueError(
            f"train: parallel fsdp needs ranks, which torchrun starts, but got parallel={config.parallel!r}"
        )
    backends = tuple(MODELS) if config.backend == "both" else (config.backend,)
    if "cnnfast" in backends and library.load_error:  # all would run on torch, and be called ours
        raise ImportError(f"train: backend cnnfast needs the compiled kernels, but {library.load_error}")
    halves = world.on_rank_0(lambda: load_data(config))
    trainers = [Trainer(backend, config, *halves, world) for backend in backends]
    _resume(trainers) if config.resume else world.on_rank_0(lambda: _refuse_checkpoints(trainers))
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
        "ranks": world.size,
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
    parser.add_argument("--augment", action="store_true", help="change the images to train on at random at each step")
    parser.add_argument("--optimizer", choices=tuple(OPTIMIZERS), default=default.optimizer)
    parser.add_argument("--lr", type=float, help="default 0.001 for adam, 0.01 for sgd")
    parser.add_argument("--dropout", type=float, default=default.dropout)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--threads", type=int, help="of each rank; default torch's, which torchrun sets to 1")
    parser.add_argument("--device", choices=DEVICES, default=default.device)
    parser.add_argument("--parallel", choices=distributed.PARALLEL, default=default.parallel, help="under torchrun")
    parser.add_argument("--limit", type=int, help="use only so many images of each half")
    parser.add_argument("--checkpoint", metavar="DIR", help="write DIR/BACKEND.pt after every epoch")
    parser.add_argument("--checkpoint-every", type=int, default=0, metavar="N", help="and after every N steps")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoints in DIR")
    parser.add_argument("--json", metavar="FILE", help="write the results there, too")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status: 0, or 1 for bad data, checkpoints or options (told on stderr).

    Every rank has the same options and meets rank 0's errors, so that one of each machine tells of them.
    """
    options = vars(_parser().parse_args(arguments))
    path = options.pop("json")
    try:
        result = run(Config(**options))
    except (OSError, ImportError, ValueError) as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"cnnfast.train: {error}", file=sys.stderr)
        return 1
    if path is not None and os.environ.get("RANK", "0") == "0":
        Path(path).write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    distributed.leave(main())

"""What `cnnfast.train` trains and how: its options, the order of the images, and one backend's trainer.

Nothing here starts processes or prints; `cnnfast.distributed` has what the ranks of one training do together.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from . import augment, checkpoint, distributed
from .distributed import World
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
DEVICES = ("cpu", "cuda")
EVALUATION_BATCH = 500


@dataclasses.dataclass(frozen=True)
class Config:
    """What is trained and how; the options of `python -m cnnfast.train` by the same names.

    Attributes:
        backend: `cnnfast`, `torch` or `both`.
        data: what `cnnfast.data.load` takes; default `digits`.
        data_root: folder of `mnist` and `fashion-mnist`; default as in `cnnfast.data.load`.
        epochs: how many in all, those of a resumed run included.
        batch_size: images a step, of all ranks together; the last step of an epoch takes what is left. The mean is over
            these images however they are shared: the number of ranks changes nothing but dropout, augmentation and
            rounding.
        augment: change the images at random at each step, those to train on alone; see `augmentation`.
        optimizer: `adam`, or `sgd` with momentum 0.9; torch's own, fused where it can be.
        lr: learning rate; default 0.001 for adam, 0.01 for sgd.
        dropout: share of the activations that dropout makes zero.
        seed: of weights, dropout and batches; rank r's dropout has seed + r.
        threads: of torch and cnnfast in each rank; default torch's, which torchrun sets to 1.
        device: `cpu`, or `cuda`, a GPU for each rank.
        parallel: `ddp`, a whole model on each rank, or `fsdp`, a part of each layer; only under torchrun.
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
    augment: bool = False
    optimizer: str = "adam"
    lr: float | None = None
    dropout: float = 0.2
    seed: int = 0
    threads: int | None = None
    device: str = "cpu"
    parallel: str = "ddp"
    limit: int | None = None
    checkpoint: str | None = None
    checkpoint_every: int = 0
    resume: bool = False

    def __post_init__(self) -> None:
        for name, choices in (
            ("backend", (*MODELS, "both")),
            ("optimizer", tuple(OPTIMIZERS)),
            ("device", DEVICES),
            ("parallel", distributed.PARALLEL),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"train: {name} must be one of {choices}, but got {name}={getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"train: dropout must be at least 0 and below 1, but got dropout={self.dropout}")
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
        names = ("data", "batch_size", "augment", "optimizer", "lr", "dropout", "seed", "limit", "device", "parallel")
        return {name: getattr(self, name) for name in names}


def augmentation(data: str) -> augment.Compose:
    """The lecture's steps, as far as they leave an image of that set what its label says.

    A mirrored digit is none; clothes of Fashion-MNIST may be mirrored.
    """
    mirror = [augment.RandomHorizontalFlip()] if data == "fashion-mnist" else []
    return augment.Compose(
        [
            augment.RandomRotation(10),
            *mirror,
            augment.RandomZoom((0.9, 1.1)),
            augment.ColorJitter(brightness=0.2),
            augment.RandomCrop(28, padding=2),
            augment.GaussianNoise(sigma=0.02),
        ]
    )


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
        world: the ranks, each of which has such a trainer, and calls the same of its methods; default one by itself.
    """

    def __init__(
        self,
        backend: str,
        config: Config,
        train: tuple[torch.Tensor, torch.Tensor],
        test: tuple[torch.Tensor, torch.Tensor],
        world: World | None = None,
    ) -> None:
        self.backend, self.config = backend, config
        self.world = world = world or World()
        self.images, self.labels = (values.to(world.device) for values in train)
        self.test = tuple(values.to(world.device) for values in test)
        self.rows: list[dict[str, Any]] = []
        self._sums = {"loss": 0.0, "correct": 0.0, "seconds": 0.0}
        # The same weights on every rank and device, made on the CPU.
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(config.seed)
            self.model = MODELS[backend](in_channels=self.images.shape[1], dropout=config.dropout).to(world.device)
            self._rng = torch.get_rng_state()
        if world.rank or world.device.type != "cpu":
            self._rng = torch.Generator(world.device).manual_seed(config.seed + world.rank).get_state()
        self._parallel_model = distributed.parallelize(self.model, config.parallel, world, self.images[:0])
        self._sharded = world.grouped and config.parallel == "fsdp"
        build, options = OPTIMIZERS[config.optimizer]
        if config.lr is not None:
            options = {**options, "lr": config.lr}
        # torch 2.13 has no fused SGD for sharded parameters.
        fused = None if self._sharded and config.optimizer == "sgd" else True
        self.optimizer = build(self.model.parameters(), fused=fused, **options)
        self.sampler = Sampler(len(self.images), config.seed)
        self._augment = augmentation(config.data) if config.augment else None

    @property
    def path(self) -> Path | None:
        """The checkpoint's file."""
        return Path(self.config.checkpoint) / f"{self.backend}.pt" if self.config.checkpoint else None

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Dropout draws from torch's one generator: each backend brings its own state, and leaves the caller's."""
        generator = distributed.generator(self.world.device)
        callers = generator.get_state()
        generator.set_state(self._rng)
        try:
            yield
        finally:
            self._rng = generator.get_state()
            generator.set_state(callers)

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
                    self._rng = distributed.generator(self.world.device).get_state()
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
        model, optimizer, world = self._parallel_model, self.optimizer, self.world
        batches = order.split(self.config.batch_size)
        shares = [world.share(batch).to(world.device) for batch in batches]
        labels = self.labels[torch.cat(shares)]
        kept: list[torch.Tensor] = []
        start = self._clock()
        for batch, share, target in zip(batches, shares, labels.split([len(share) for share in shares])):
            optimizer.zero_grad(set_to_none=True)
            images = self.images.index_select(0, share)
            if self._augment is not None:
                images = self._augment(images)
            logits = model(images)
            # The ranks' gradients are averaged, and their shares may differ: so that the average is that of the batch.
            loss = F.cross_entropy(logits, target, reduction="sum") * (world.size / len(batch))
            loss.backward()
            optimizer.step()
            # Loss and accuracy are read off the logits afterwards: the steps are timed, and reading is not training.
            kept.append(logits.detach())
            advance(1)
        self._sums["seconds"] += self._clock() - start
        logits = torch.cat(kept).double()
        sums = (
            F.cross_entropy(logits, labels, reduction="sum").item(),
            (logits.argmax(1) == labels).sum().item(),
        )
        for name, values in zip(("loss", "correct"), zip(*world.gather(sums))):
            self._sums[name] += sum(values)

    def _clock(self) -> float:
        """Seconds at which what was asked for is done."""
        if self.world.device.type == "cuda":
            torch.cuda.synchronize(self.world.device)
        return time.perf_counter()

    def evaluate(self) -> float:
        """The share of the test images that the model gets right."""
        self.model.eval()
        rank, size = self.world.rank, self.world.size
        with torch.inference_mode():
            # A share of every batch, so that all ranks call the model equally often, as sharded parameters need.
            correct = sum(
                (self.model(images[rank::size]).argmax(1) == labels[rank::size]).sum().item()
                for images, labels in zip(*(half.split(EVALUATION_BATCH) for half in self.test))
            )
        return sum(self.world.gather(correct)) / len(self.test[1])

    @contextmanager
    def _progress(self) -> Iterator[Callable[[int], object]]:
        """A bar of the epoch's steps, on a terminal."""
        if tqdm is None:
            yield lambda steps: None
            return
        done, step = self.sampler.position, self.config.batch_size
        title = f"{self.backend} epoch {len(self.rows) + 1}"
        total = -(-len(self.images) // step)
        disable = True if self.world.rank else None
        with tqdm(desc=title, total=total, initial=done // step, unit="step", leave=False, disable=disable) as bar:
            yield bar.update

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share with the one it goes on from."""
        return {"backend": self.backend, "ranks": self.world.size, **self.config.identity()}

    def state_dict(self) -> dict[str, Any]:
        """All that decides how training goes on, of all ranks; the ranks draw the same batches, so one sampler's.

        Where the parameters are sharded, rank 0 alone gets those of the model and the optimizer.
        """
        return {
            "config": self.identity(),
            **distributed.state_dicts(self.model, self.optimizer, self._sharded),
            "sampler": self.sampler.state_dict(),
            "rng": self.world.gather(self._rng),
            "rows": self.rows,
            "sums": self._sums,
        }

    def save(self) -> None:
        """Writes the checkpoint, if there is a folder for it."""
        path = self.path
        if path is not None:
            state = self.state_dict()
            self.world.on_rank_0(lambda: checkpoint.save(path, state))

    def resume(self) -> None:
        """Goes on from the checkpoint.

        Raises:
            FileNotFoundError: there is none.
            ValueError: it is damaged, or of a run with other options or another number of ranks.
        """
        path = self.path
        assert path is not None
        state = self.world.on_rank_0(lambda: checkpoint.load(path))
        theirs = state.get("config")
        for name, mine in self.identity().items():
            # Runs of before there was a choice had none.
            found = theirs.get(name, False if name == "augment" else None) if isinstance(theirs, dict) else None
            if found != mine and name == "ranks":
                raise ValueError(
                    f"{path}: a run resumes on as many ranks as it began on, since each has random numbers of its own, "
                    f"but got ranks={mine} for a run of ranks={found}"
                )
            if found != mine:
                raise ValueError(f"{path}: expected {name}={mine!r}, but got a run of {name}={found!r}")
        try:
            distributed.load_state_dicts(self.model, self.optimizer, self._sharded, state)
            self.sampler.load_state_dict(state["sampler"])
            self._rng, self.rows, self._sums = state["rng"][self.world.rank], state["rows"], state["sums"]
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: expected a checkpoint of this model and data, but got: {error}") from error

"""Training in several processes, the ranks, that torchrun starts: each takes its part of every batch.

Rank 0 alone reads data and checkpoints, writes checkpoints and prints; what it reads, or the error that it meets, every
rank gets from it. A process that torchrun did not start is rank 0 of 1, and nothing here does anything then.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

# torch.distributed.fsdp and .checkpoint are imported where they are used: they take a second that few runs need.

PARALLEL = ("ddp", "fsdp")
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class World:
    """Who this process is among the ranks; all its methods must be called by every rank, in the same order.

    Attributes:
        rank: from 0.
        size: the number of ranks.
        device: where this rank's model and images are.
        grouped: whether there is a process group: torchrun with one rank has one, too.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    grouped: bool = False

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """Calls `work` on rank 0, and returns its result, or raises its error, on every rank.

        Without the error the other ranks would wait for rank 0 for ever.
        """
        if not self.grouped:
            return work()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks."""
        if not self.grouped:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, batch: Tensor) -> Tensor:
        """This rank's part of the indices of a batch: every `size`-th, from the `rank`-th on; it may be empty.

        So torch's DistributedSampler deals them. Where they do not divide evenly it repeats some, which would then
        count twice in the gradient; those are left out.
        """
        if self.size == 1:
            return batch
        sampler: DistributedSampler[int] = DistributedSampler(batch, self.size, self.rank, shuffle=False)  # type: ignore[arg-type]
        dealt = list(sampler)
        return batch[dealt[: len(range(self.rank, len(batch), self.size))]]


@contextmanager
def join(device: str) -> Iterator[World]:
    """The world of this process: the process group that is there already, else torchrun's, else one rank by itself.

    Args:
        device: `cpu`, where ranks talk through gloo, or `cuda`, a GPU for each rank, through NCCL.

    Raises:
        ValueError: there are fewer GPUs than ranks on this machine.
    """
    place = _place(device)
    started = not dist.is_initialized() and "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if started:
        # Objects (random number states, errors) go through gloo on GPUs as well.
        backend, bound = ("gloo", None) if place.type == "cpu" else ("cpu:gloo,cuda:nccl", place)
        dist.init_process_group(backend, device_id=bound)
    if dist.is_initialized():
        yield World(dist.get_rank(), dist.get_world_size(), place, grouped=True)
    else:
        yield World(device=place)
    # Not after an error: taking leave of ranks that have failed may take for ever, and torchrun ends them all.
    if started:
        dist.destroy_process_group()


def leave(status: int) -> NoReturn:
    """Ends this process as `sys.exit` does, but a rank without Python's clean-up of modules and objects.

    The caches of sharded tensors keep the process group, and with it gloo's threads, beyond `join`. One of about a
    hundred FSDP2 runs on a busy machine aborted, most likely of that: SIGABRT, terminate without an active exception.
    """
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _place(device: str) -> torch.device:
    if device == "cpu":
        return torch.device("cpu")
    ranks, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
    if ranks > gpus:
        raise ValueError(
            f"train: device cuda needs a GPU for each rank of a machine, but got ranks={ranks} GPUs={gpus}"
        )
    place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    torch.cuda.set_device(place)
    torch.cuda.init()  # for its generators
    return place


def generator(device: torch.device) -> torch.Generator:
    """The one that dropout draws from on `device`."""
    return torch.default_generator if device.type == "cpu" else torch.cuda.default_generators[device.index]


def parallelize(model: nn.Module, parallel: str, world: World, no_images: Tensor) -> nn.Module:
    """What to call instead of `model` so that the ranks' gradients are averaged; `model` where there is no group.

    Args:
        model: on its rank's device, with the same weights on every rank.
        parallel: `ddp` keeps a whole model on every rank; `fsdp` shards the parameters of `model` itself, which is then
            what is returned. Optimizers are built afterwards, on the parameters of `model`.
        no_images: an empty batch.
    """
    if not world.grouped:
        return model
    if parallel == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(world.device.type, (world.size,))
        for part in (*model.children(), model):
            fully_shard(part, mesh=mesh)
        return model
    wrapped = DistributedDataParallel(model)
    # After its first backward pass DDP sorts its buckets anew, and with them, for more than two ranks, the order of the
    # sums. Let that be over before the first step: a resumed run would else differ by rounding in the step after it.
    training = model.training
    wrapped.eval()  # draws no random numbers
    wrapped(no_images).sum().backward()
    wrapped.train(training)
    wrapped.zero_grad(set_to_none=True)
    return wrapped


def state_dicts(model: nn.Module, optimizer: torch.optim.Optimizer, sharded: bool) -> dict[str, Any]:
    """The states of both, whole, as `model` and `optimizer`; of sharded ones only rank 0 gets them."""
    if not sharded:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    # From an optimizer that has not begun, torch's helper makes a state by taking a step, which Adam would then count.
    begun = bool(optimizer.state)
    return {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options) if begun else {},
    }


def load_state_dicts(model: nn.Module, optimizer: torch.optim.Optimizer, sharded: bool, state: dict[str, Any]) -> None:
    """Loads what `state_dicts` gave rank 0, and every rank has got from it."""
    if not sharded:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, state["model"], options=options)
    if state["optimizer"]:
        set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)

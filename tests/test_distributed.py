"""cnnfast.train under torchrun: ranks end like one process with the whole batch, and resume exactly after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_data import needs_digits, write_set
from test_train import assert_equal
from torch.utils.data import DistributedSampler

from cnnfast import checkpoint, distributed, train

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available() and os.name == "posix"), reason="needs gloo and signals"
)
TIMEOUT = 120  # seconds; what it starts takes a few, of which importing torch is the most


def torchrun(ranks: int, *program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs `program` in so many ranks, on a free port, to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *program]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except BaseException:
            process.terminate()  # torchrun then ends its ranks, which nothing would after a SIGKILL
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def trained(ranks: int, folder: Path, *options: str, **environment: str) -> dict[str, Any]:
    """The last checkpoint of a run in so many ranks."""
    done = torchrun(ranks, "-m", "cnnfast.train", "--checkpoint", str(folder), *options, **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images/s") == 1, "rank 0 alone prints"
    return checkpoint.load(folder / "cnnfast.pt")


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 12])
def test_shares_are_those_of_torchs_sampler(size: int, count: int):
    batch = torch.randperm(count)
    shares = [distributed.World(rank, size).share(batch) for rank in range(size)]
    assert torch.equal(torch.cat(shares).sort().values, torch.arange(count)), "each image once"
    if count % size == 0:
        for rank, share in enumerate(shares):
            assert share.tolist() == batch[list(DistributedSampler(batch, size, rank, shuffle=False))].tolist()


# The last of the 20 batches has one image, or three: rank 1 has none of it, or fewer than rank 0.
@pytest.mark.parametrize(
    "parallel, count, optimizer",
    [
        ("ddp", 155, "sgd"),
        ("fsdp", 153, "adam"),
        pytest.param("ddp", 153, "sgd", marks=pytest.mark.long),
        pytest.param("fsdp", 155, "sgd", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ranks_end_like_one_process_with_the_whole_batch(
    device: str, parallel: str, count: int, optimizer: str, tmp_path: Path
):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    write_set(tmp_path / "images", count=count)
    options = [f"--data={tmp_path / 'images'}", "--epochs=1", "--batch-size=8", f"--optimizer={optimizer}"]
    options += ["--dropout=0", f"--device={device}", "--threads=1"]
    ranks = 2 if device == "cpu" else min(2, torch.cuda.device_count())
    # Strict: our own kernels take the parameters that DDP and FSDP2 hand them.
    got = trained(ranks, tmp_path / "ranks", *options, f"--parallel={parallel}", CNNFAST_STRICT="1")
    assert train.main([*options, f"--checkpoint={tmp_path / 'one'}"]) == 0
    expected = checkpoint.load(tmp_path / "one/cnnfast.pt")
    assert got["model"].keys() == expected["model"].keys()
    for name, weight in expected["model"].items():
        # Adam divides gradients by their own size: the rounding of those near zero counts as much as of the large.
        tolerance = 1e-6 if optimizer == "sgd" else 1e-4
        torch.testing.assert_close(got["model"][name], weight, rtol=0, atol=tolerance)
    for name in ("loss", "train_accuracy", "test_accuracy"):
        assert got["rows"][0][name] == pytest.approx(expected["rows"][0][name], abs=1e-5)


@needs_digits
@pytest.mark.parametrize(
    "ranks, killed, options",
    [
        (2, 1, ["--parallel=ddp"]),
        pytest.param(2, 0, ["--parallel=ddp", "--optimizer=sgd"], marks=pytest.mark.long),
        # From three ranks on, the order of the gradients' sums depends on DDP's buckets.
        pytest.param(3, 1, ["--parallel=ddp", "--lr=0.01"], marks=pytest.mark.long),
        pytest.param(2, 1, ["--parallel=fsdp"], marks=pytest.mark.long),
        pytest.param(3, 0, ["--parallel=fsdp", "--optimizer=sgd"], marks=pytest.mark.long),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else str(value),
)
def test_killed_rank_resumes_exactly(
    ranks: int, killed: int, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The lecture's network on real images, with dropout, 23 steps an epoch: killed after 30, with 28 in the file."""
    options = ["--data=digits", "--epochs=2", "--checkpoint-every=5", *options]
    expected = trained(ranks, tmp_path / "whole", *options)
    assert len(expected["rows"]) == 2 and len({str(state.tolist()) for state in expected["rng"]}) == ranks

    options.append(f"--checkpoint={tmp_path / 'killed'}")
    program = str(Path(__file__).with_name("killed_training.py"))
    done = torchrun(ranks, program, *options, KILL_RANK=str(killed), KILL_STEP="30")
    assert done.returncode != 0 and str(-signal.SIGKILL) in done.stderr, done.stderr
    left = checkpoint.load(tmp_path / "killed/cnnfast.pt")
    assert len(left["rows"]) == 1 and left["sampler"]["position"] == 5 * 64

    # By itself one process can't go on from there, nor does it touch the file.
    assert train.main([*options[:3], options[-1], "--resume"]) == 1
    assert f"but got ranks=1 for a run of ranks={ranks}" in capsys.readouterr().err

    got = trained(ranks, tmp_path / "killed", *options, "--resume")
    for state in (got, expected):  # torch's helpers for sharded states turn tuples into lists
        for group in state["optimizer"]["param_groups"]:
            group.update({name: list(value) for name, value in group.items() if isinstance(value, tuple)})
    assert_equal(got, expected)


def test_errors_of_rank_0_end_all_and_are_told_once(tmp_path: Path):
    write_set(tmp_path / "images", count=9)
    options = [f"--data={tmp_path / 'images'}", f"--checkpoint={tmp_path / 'run'}", "--epochs=1"]
    assert train.main(options) == 0
    done = torchrun(2, "-m", "cnnfast.train", *options, "--resume")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("cnnfast.train: ")]
    assert len(told) == 1 and told[0].endswith("random numbers of its own, but got ranks=2 for a run of ranks=1")


def test_fsdp_needs_ranks(tmp_path: Path):
    write_set(tmp_path, count=9)
    with pytest.raises(ValueError, match="train: parallel fsdp needs ranks.*but got parallel='fsdp'"):
        train.run(train.Config(data=str(tmp_path), parallel="fsdp"))


def test_modules_with_sharded_parameters():
    done = torchrun(2, str(Path(__file__).with_name("sharded_modules.py")))
    assert done.returncode == 0, done.stderr

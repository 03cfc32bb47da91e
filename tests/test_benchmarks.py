"""The benchmarks' promises: fair rounds, right statistics, nothing wrong is timed, results that can be read again."""

from __future__ import annotations

import copy
import dataclasses
import functools
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import benchmarks.__main__ as command
from benchmarks import environment, lecture, ops, plot, report, small
from benchmarks.case import OURS, Case, NotInstalled, Skipped, discrepancy, measure
from benchmarks.layer import Layer, work_of
from benchmarks.memory import bytes_kept
from benchmarks.results import Entry, Result, Row, load, save
from benchmarks.rivals import RIVALS, contestants
from benchmarks.suites import Options, forward_gflop, work_gflop
from benchmarks.timing import DROPPED_CALLS, PAUSE, Budget, Contestant, Stopwatch, spread, time_contestants
from benchmarks.work import BACKWARD, FORWARD, GRADIENTS, STEP, Work, reference, runner
from cnnfast import library

FEW = Budget(seconds=1e-3, fewest=4, most=4)


class FakeMachine:
    """Time passes only in calls and in sleep; ``slowdown`` grows by ``drift`` with every call."""

    def __init__(self, drift: float = 0.0) -> None:
        self.now, self.slowdown, self.drift = 0.0, 1.0, drift
        self.log: list[str | float] = []

    def stopwatch(self) -> Stopwatch:
        return Stopwatch(clock=lambda: self.now, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.log.append(seconds)

    def contestant(self, name: str, seconds: float, own_threads: bool = False) -> Contestant:
        def call() -> None:
            self.now += seconds * self.slowdown
            self.slowdown += self.drift
            self.log.append(name)

        return Contestant(name, call, dict, own_threads)


def case_of_fakes(machine: FakeMachine, *fakes: Contestant) -> Case:
    return Case("section", "case", "1x1x1x1", 1, 2.0, {c.name: lambda c=c: c for c in fakes}, dict)


# -------------------------------------------------------------------------------------------------------- timing


def test_spread_interpolates_the_quartiles():
    found = spread([4.0, 1.0, 100.0, 3.0, 2.0])
    assert (found.q1, found.median, found.q3, found.iqr) == (2.0, 3.0, 4.0, 2.0)
    assert spread([7.0]).iqr == 0
    with pytest.raises(ValueError, match="at least one sample"):
        spread([])


def test_every_round_calls_everyone_once_and_in_order():
    machine = FakeMachine()
    fakes = [machine.contestant(name, 1e-3) for name in "abc"]
    times = time_contestants(fakes, FEW, machine.stopwatch())
    assert "".join(entry for entry in machine.log if isinstance(entry, str)).endswith("abc" * 4)
    assert {name: len(samples) for name, (samples, _) in times.items()} == {"a": 4, "b": 4, "c": 4}


def test_a_drifting_machine_does_not_move_the_ratio():
    machine = FakeMachine(drift=0.02)
    row = measure(
        case_of_fakes(machine, machine.contestant(OURS, 1e-3), machine.contestant("rival", 3e-3)),
        Budget(seconds=1.0, fewest=20, most=20),
        machine.stopwatch(),
    )
    rival = row.entry("rival")
    assert rival.paired and rival.ratio == pytest.approx(3, rel=0.02)
    # Whereas the samples themselves have drifted far.
    assert rival.q3 > 1.1 * rival.q1
    assert rival.gflops == pytest.approx(2.0 / (rival.median / 1e3))


def test_short_calls_are_sampled_together():
    machine = FakeMachine()
    samples, calls = time_contestants([machine.contestant("a", 30e-6)], FEW, machine.stopwatch())["a"]
    assert calls == 7  # The fewest that last 200 us.
    assert samples == pytest.approx([30e-6] * 4)


def test_a_thread_pool_of_its_own_is_timed_apart_and_after_a_pause():
    machine = FakeMachine()
    fakes = [machine.contestant("a", 1e-3), machine.contestant("b", 1e-3), machine.contestant("pool", 1e-3, True)]
    times = time_contestants(fakes, dataclasses.replace(FEW, fewest=6, most=6), machine.stopwatch())
    blocks = "".join("|" if entry == PAUSE else str(entry)[0] for entry in machine.log).split("|")
    # Three times: two rounds of those who share a pool, then a block of the other, a pause between all of them.
    first, *others, end = blocks[-7:]
    pool = "p" * (DROPPED_CALLS + 2)
    assert first.endswith("abab") and set(first) == {"a", "b"}
    assert others == [pool, "abab", pool, "abab", pool] and end == ""
    assert len(times["pool"][0]) == len(times["a"][0]) == 6


def test_who_is_timed_apart_is_compared_with_our_own_blocks():
    machine = FakeMachine()

    class Cold:
        """Takes three times as long after somebody else's call, as with caches that are not warm."""

        def __call__(self) -> None:
            machine.now += 1e-3 if machine.log and machine.log[-1] == OURS else 3e-3
            machine.log.append(OURS)

    pool = machine.contestant("pool", 2e-3, own_threads=True)
    fakes = [Contestant(OURS, Cold(), dict), machine.contestant("rival", 3e-3), pool]
    row = measure(case_of_fakes(machine, *fakes), dataclasses.replace(FEW, fewest=6, most=6), machine.stopwatch())
    assert row.entry("rival").ratio == pytest.approx(1) and row.ours.median == pytest.approx(3)
    assert row.entry("pool").ratio == pytest.approx(2) and row.ours.block_median == pytest.approx(1)
    blocks = "".join("|" if entry == PAUSE else str(entry)[0] for entry in machine.log).split("|")
    ours, theirs = OURS[0] * (DROPPED_CALLS + 2), "p" * (DROPPED_CALLS + 2)
    # Before each of theirs, ours.
    assert [block for block in blocks if block in (ours, theirs)] == [ours, theirs] * 3


def test_the_budget_bounds_the_rounds():
    for seconds, rounds in ((0.0, 3), (0.021, 10), (5.0, 12)):
        machine = FakeMachine()
        times = time_contestants([machine.contestant("a", 2e-3)], Budget(seconds, 3, 12), machine.stopwatch())
        assert len(times["a"][0]) == rounds


# --------------------------------------------------------------------------------------------------- correctness


def small_work(mode: str, batch: int = 2) -> Work:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.5))
    ours = nn.Sequential(*plain)
    wanted = mode in (BACKWARD, GRADIENTS)
    return Work(ours, plain, torch.randn(batch, 1, 6, 6), mode, wanted, torch.tensor([1, 0])[:batch])


class ZeroGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return torch.zeros_like(grad)


def counted(name: str, work: Work, model: nn.Module, log: list[str]) -> Contestant:
    run = runner(model, work)

    def call():
        log.append(name)
        return run.call()

    return Contestant(name, call, run.outputs)


def conv_case(rival: nn.Module, log: list[str]) -> Case:
    torch.manual_seed(0)
    plain = nn.Conv2d(2, 3, 3)
    work = Work(plain, plain, torch.randn(2, 2, 6, 6), BACKWARD, input_gradient=True)
    rival.load_state_dict(plain.state_dict())
    setups: dict[str, Callable[[], Contestant]] = {
        OURS: lambda: counted(OURS, work, work.ours, log),
        "rival": lambda: counted("rival", work, rival, log),
    }
    return Case("section", "conv", "2x2x6x6", 2, None, setups, lambda: reference(work))


def test_a_wrong_rival_is_shown_as_wrong_and_not_timed():
    class Wrong(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return ZeroGradient.apply(super().forward(x))

    log: list[str] = []
    row = measure(conv_case(Wrong(2, 3, 3), log), FEW)
    rival = row.entry("rival")
    assert rival.status == "wrong" and "grad of parameter 0: max error 1" in rival.reason
    assert rival.error == pytest.approx(1) and rival.median is None and rival.ratio is None
    assert "rival" not in log and OURS in log and row.ours.measured
    assert report._cell(rival) == "wrong (max error 1)"


def test_a_right_rival_is_timed():
    log: list[str] = []
    row = measure(conv_case(nn.Conv2d(2, 3, 3), log), FEW)
    assert all(entry.measured and entry.error < 1e-5 and entry.samples == 4 for entry in row.entries)
    assert log.count("rival") > 4


@pytest.mark.parametrize(
    "spoil",
    [lambda t: t * 1.001, lambda t: t.index_fill(0, torch.tensor([0]), math.nan), lambda t: t[:1], lambda t: t * 0],
    ids=["scaled", "nan", "shape", "zero"],
)
def test_discrepancy_notices(spoil: Callable[[Tensor], Tensor]):
    expected = torch.randn(4, 5, dtype=torch.float64)
    assert discrepancy({"output": expected.float()}, {"output": expected})[1] == ""
    assert discrepancy({"output": spoil(expected).float()}, {"output": expected})[1] != ""
    assert discrepancy({}, {"output": expected})[1] != ""


def test_absent_skipped_and_failing_rivals_do_not_end_the_run():
    def raising(error: Exception) -> Callable[[], Contestant]:
        def setup() -> Contestant:
            raise error

        return setup

    log: list[str] = []
    case = conv_case(nn.Conv2d(2, 3, 3), log)
    case.contestants = {
        OURS: case.contestants[OURS],
        "absent": raising(NotInstalled("no package absent")),
        "skipped": raising(Skipped("not for gradients")),
        "failing": raising(RuntimeError("first line\nsecond line")),
    }
    row = measure(case, FEW)
    assert [entry.status for entry in row.entries] == ["measured", "not installed", "skipped", "failed"]
    assert row.entry("failing").reason == "RuntimeError: first line"
    case.contestants[OURS] = raising(RuntimeError("ours"))
    failed = Result({}, [measure(case, FEW)])
    assert failed.own_failures == ["conv, batch 2: failed"]


@pytest.mark.parametrize("mode", [FORWARD, BACKWARD, GRADIENTS, STEP])
def test_the_reference_agrees_with_torch_in_every_mode(mode: str):
    work = small_work(mode)
    expected = reference(work)
    largest, wrong = discrepancy(runner(work.plain, work).outputs(), expected)
    # The training step's dropout included: its mask is the same in float64.
    assert wrong == "" and largest < 1e-5
    assert all(t.dtype == torch.float64 for t in expected.values())
    assert len(expected) == {FORWARD: 1, BACKWARD: 4, GRADIENTS: 3, STEP: 3}[mode]


@pytest.mark.parametrize("mode", [FORWARD, BACKWARD, GRADIENTS, STEP])
def test_eager_rivals_are_right_in_every_mode(mode: str):
    work = small_work(mode)
    expected = reference(work)
    for name, setup in contestants(work, ["eager", "channels_last"]).items():
        if name != OURS:
            assert discrepancy(setup().outputs(), expected)[1] == "", name


@pytest.mark.long
@pytest.mark.parametrize("key", [key for key in ("onnxruntime", "openvino") if importlib.util.find_spec(key)])
def test_inference_engines_are_right_and_decline_gradients(key: str):
    title = RIVALS[key].title
    work = small_work(FORWARD)
    rival = contestants(work, [key])[title]()
    assert rival.own_threads and discrepancy(rival.outputs(), reference(work))[1] == ""
    with pytest.raises(Skipped, match="inference"):
        contestants(small_work(STEP), [key])[title]()


def test_compile_declines_other_batches_and_says_so(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(Skipped, match="batches 8, 64 and 256"):
        contestants(small_work(FORWARD), ["compile"])["torch.compile"]()
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(NotInstalled, match="compiler"):
        contestants(small_work(FORWARD), ["compile"])["torch.compile"]()


# ------------------------------------------------------------------------------------------------- what is counted


def test_operations_of_the_lecture_network():
    # From the layers' shapes: 12*9*28*28 and 24*12*9*14*14 multiply-adds for an image.
    first, second = 84_672, 508_032
    work = lecture._cnn_layers(2, FORWARD)
    assert forward_gflop(work.plain, work.input) == pytest.approx(2 * 2 * (first + second) / 1e9)
    work.mode = BACKWARD
    assert work_gflop(work) == pytest.approx(2 * 2 * (2 * first + 3 * second) / 1e9)
    transposed = nn.ConvTranspose2d(2, 3, 4, stride=2)
    # Each input element meets 3*4*4 weights.
    assert forward_gflop(transposed, torch.randn(1, 2, 5, 5)) == pytest.approx(2 * 50 * 48 / 1e9)
    assert work_gflop(Work(nn.ReLU(), nn.ReLU(), torch.randn(1, 1, 2, 2), FORWARD)) is None


def test_bytes_kept_counts_each_storage_once():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    x = torch.randn(1, 1, 4, 4)
    # Input 16 floats, ReLU's output 32 floats (kept by it and by the pool), 8 indices of 8 bytes; no parameters.
    assert bytes_kept(model, x) == 16 * 4 + 32 * 4 + 8 * 8


@pytest.mark.parametrize("mode", [FORWARD, BACKWARD, STEP])
def test_lecture_network_agrees_with_its_reference(mode: str):
    work = lecture._network(2, mode)
    assert discrepancy(runner(work.ours, work).outputs(), reference(work))[1] == ""


@pytest.mark.parametrize("mode", [FORWARD, BACKWARD])
@pytest.mark.parametrize("block", small.BLOCKS, ids=lambda block: block.label)
def test_small_blocks_agree_with_their_reference(block: small.Block, mode: str):
    work = small.work_of(block, 2, mode)
    assert discrepancy(runner(work.ours, work).outputs(), reference(work))[1] == ""
    gradients = 3 if mode == BACKWARD and not block.first else 2 if mode == BACKWARD else 0
    assert len(reference(work)) == 1 + gradients


@pytest.mark.parametrize("layer", ops.LAYERS, ids=lambda layer: f"{layer.op}: {layer.label}")
def test_layers_agree_with_torch_on_small_images(layer: Layer):
    n, c, h, w = layer.input
    smaller = dataclasses.replace(layer, input=(1, c, min(h, 14), min(w, 14)))
    work = work_of(smaller, layer.modes[0])
    assert discrepancy(runner(work.ours, work).outputs(), reference(work))[1] == ""


# ------------------------------------------------------------------------------------------------------- results


@functools.cache
def collected() -> dict:
    about = environment.collect("lecture", Options(rivals=list(RIVALS)))
    environment.close(about)
    assert all(0 < share < 1.5 for share in about["processor_share"].values()) and about["copy_gb_per_s"] > 0
    return about


def metadata() -> dict:
    about = copy.deepcopy(collected())
    return about | {"peak_gflops": {"start": 100.0, "end": 99.0}, "processor_share": {"start": 1.0, "end": 0.99}}


def some_result() -> Result:
    ours = Entry(OURS, median=1.0, q1=0.9, q3=1.2, samples=9, calls=1, error=1e-7, gflops=50.0)
    slower = Entry("torch eager", median=4.0, q1=3.9, q3=4.2, samples=9, calls=1, ratio=4.0, paired=True)
    faster = Entry("onnxruntime", median=0.5, q1=0.5, q3=0.5, samples=9, calls=1, ratio=0.5, paired=False)
    wrong = Entry("torch.compile", "wrong", "grad of parameter 0: max error 1", error=1.0)
    lost = Row("Layers", "lost", "64x1x28x28", 64, gflop=0.1, entries=[ours, slower, faster, wrong])
    won = Row("Layers", "won", "1x1x28x28", 1, gflop=0.1, entries=[ours, slower])
    return Result(metadata(), [lost, won])


def test_results_survive_the_file(tmp_path):
    result = some_result()
    result.set_peak(100e9)
    save(result, tmp_path / "deep" / "result.json")
    again = load(tmp_path / "deep" / "result.json")
    assert again == result and again.rows[0].ours.peak_share == pytest.approx(0.5)
    assert json.loads((tmp_path / "deep" / "result.json").read_text())["schema"] == 1


def test_results_refuse_what_breaks_the_contract(tmp_path):
    def refused(change: Callable[[Result], object], match: str) -> None:
        result = some_result()
        change(result)
        with pytest.raises(ValueError, match=match):
            save(result, tmp_path / "result.json")

    refused(lambda r: r.metadata.pop("commit"), "metadata lacks commit")
    refused(lambda r: setattr(r.rows[0].ours, "median", math.nan), "median and quartiles")
    refused(lambda r: setattr(r.rows[0].entries[3], "median", 1.0), "carries a figure")
    refused(lambda r: setattr(r.rows[0].entries[3], "reason", ""), "does not say why")
    refused(lambda r: r.rows[0].entries.reverse(), "first entry is not cnnfast")
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', '{"schema": 1, "rows": [{"nonsense": 1}]}'])
def test_load_names_a_file_that_is_no_result(tmp_path, text: str):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"broken\.json: not a result"):
        load(path)


def test_markdown_marks_losses_and_wrong_rivals():
    text = report.markdown(some_result(), "picture.svg")
    lost, won = (next(line for line in text.splitlines() if f"| {case}" in line) for case in ("lost", "won"))
    assert r"lost \*" in lost and "0.5 (0.50x, slower)" in lost and "4 (4.00x)" in lost
    assert "wrong (max error 1)" in lost and "slower" not in won and "*" not in won
    assert "![Speed-up over each rival](picture.svg)" in text
    assert "torch.compile, lost, batch 64: wrong, grad of parameter 0: max error 1." in text


def test_the_summary_warns_of_what_spoils_times():
    result = some_result()
    assert not any(word in " ".join(report.summary(result)) for word in ("busy", "OpenMP", "own op"))
    result.metadata |= {"processor_share": {"start": 1.0, "end": 0.4}, "openmp_runtimes": ["libgomp.so.1", "libomp.so"]}
    result.metadata["fallbacks"] = {"relu": {"no kernel for torch.int64": 3}}
    notes = " ".join(report.summary(result))
    assert "busy (the run got 40%" in notes and "libgomp.so.1, libomp.so" in notes and "no kernel for" in notes


def test_tables_print_with_and_without_rich(capsys, monkeypatch: pytest.MonkeyPatch):
    report.show(some_result())
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with_rich = capsys.readouterr().out
    report.show(some_result())
    without = capsys.readouterr().out
    for text in (with_rich, without):
        assert "0.5 (0.50x, slower)" in text and "torch.compile" in text and "FMA peak" in text


def test_readme_gets_the_tables_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    save(some_result(), tmp_path / "result.json")
    for _ in range(2):
        assert command.main(["--report", str(tmp_path / "result.json"), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n**Layers**") and text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text and text.count("won") == 1
    readme.write_text("no markers")
    assert command.main(["--report", str(tmp_path / "result.json"), "--readme", str(readme)]) == 2
    assert readme.read_text() == "no markers"


def test_plot_draws_or_says_that_it_cannot(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not plot.draw(some_result(), [tmp_path / "plot.png"]) and not list(tmp_path.iterdir())
    monkeypatch.undo()
    pytest.importorskip("matplotlib")
    assert plot.draw(some_result(), [tmp_path / "plot.png", tmp_path / "plot.svg"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    picture = (tmp_path / "plot.svg").read_text()
    assert "torch eager" in picture and "torch.compile: wrong" in picture and "0.50" in picture


# ------------------------------------------------------------------------------------------------------- command


def test_the_command_writes_what_it_promises(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    def tiny(options: Options) -> Iterator[Case | Row]:
        yield conv_case(nn.Conv2d(2, 3, 3), [])

    monkeypatch.setattr(command, "SUITES", {"cpu": {"lecture": tiny}})
    monkeypatch.setattr(command, "QUICK_BUDGETS", {"lecture": FEW})
    monkeypatch.setattr(environment, "probe", lambda threads: (100.0, 1.0))
    threads = torch.get_num_threads()
    try:
        assert command.main(["--quick", "--threads", "1", "--device", "cpu", "--out", str(tmp_path)]) == 0
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    (written,) = tmp_path.glob("lecture-quick--*--cpu.json")
    result = load(written)
    assert result.metadata["threads"] == 1 and result.metadata["quick"] and "libgomp" in str(result.metadata)
    assert "torch.compile" not in result.metadata["rivals"] and result.rows[0].entry("rival").measured
    assert written.with_suffix(".md").exists() and written.stem in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--rivals", "eager,tensorflow"], ["--threads", "-1"], ["--device", "tpu"], ["--report", "absent"]]
)
def test_nonsense_on_the_command_line_is_refused(arguments: list[str], capsys):
    try:
        code = command.main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2 and arguments[1].split(",")[-1] in capsys.readouterr().err


def test_cuda_that_is_not_there_is_refused(capsys):
    if torch.cuda.is_available() and "cuda" in command.SUITES:
        pytest.skip("this machine can run them")
    assert command.main(["--device", "cuda"]) == 2
    assert "--device cuda: " in capsys.readouterr().err


def test_without_our_library_there_is_nothing_to_time(capsys, monkeypatch):
    monkeypatch.setattr(library, "load_error", "cnnfast._C was not built")
    assert command.main(["--device", "cpu"]) == 2
    assert "nothing of ours to time: cnnfast._C was not built" in capsys.readouterr().err


def test_no_row_is_no_result(capsys, tmp_path):
    arguments = ["--quick", "--suite", "resnet50", "--only", "no such row", "--threads", "1", "--out", str(tmp_path)]
    assert command.main(arguments) == 2
    assert "no row of the suite resnet50 matches --only 'no such row'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())

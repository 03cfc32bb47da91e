"""The suites of networks' layers and of whole models: their tables, what they count, how they judge and draw."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from test_benchmarks import metadata, small_work
from torch import Tensor, nn

import benchmarks.__main__ as command
from benchmarks import environment, models, networks, report, roofline
from benchmarks.case import OURS, NotInstalled, discrepancy
from benchmarks.layer import Layer, work_of
from benchmarks.results import CHANNELS_LAST, EAGER, Entry, Result, Row, load, save
from benchmarks.suites import Options, case_of, work_gbyte, work_gflop
from benchmarks.work import BACKWARD, FORWARD, GRADIENTS, STEP, Work, reference, runner

TORCHS = Options(quick=True, rivals=["eager", "channels_last"])


def torchvision():
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        pytest.skip(f"needs torchvision: {error}")
    return torchvision


# --------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("name", ["resnet50", "vgg16", "mobilenet_v2"])
def test_the_tables_are_the_networks(name: str):
    with torch.device("meta"):
        model = torchvision().models.get_model(name, weights=None)
        image = torch.empty(1, 3, 224, 224)
    found = set()

    def remember(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            about = (layer.out_channels, layer.kernel_size, layer.stride[0], layer.padding[0], layer.groups)
            found.add(("conv2d", inputs[0].shape[1:], *about, layer.bias is not None))
        else:
            found.add(("max_pool2d", inputs[0].shape[1:], layer.kernel_size, layer.stride, layer.padding))

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.MaxPool2d)):
            module.register_forward_hook(remember)
    model(image)
    table = [layer for layer in networks.NETWORKS[name] if layer.op != "avg_pool2d"]
    keys = ("out_channels", "kernel_size", "stride", "padding", "groups", "bias")
    rows = {(x.op, x.input[1:], *(x.arguments[key] for key in keys if key in x.arguments)) for x in table}
    assert rows == found and len(rows) == len(table)


def test_layers_are_judged_by_kind():
    sections = {section: None for layers in networks.NETWORKS.values() for section in map(networks.section_of, layers)}
    assert list(sections) == [
        "first layer", "max_pool2d", "1x1 stride 1", "3x3 stride 1", "3x3 stride 2", "1x1 stride 2", "avg_pool2d",
        "depthwise", "5x10 stride 2", "5x5 stride 1", "5x5 stride 2",
    ]  # fmt: skip


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_layers_agree_with_torch_on_small_images(name: str, monkeypatch: pytest.MonkeyPatch):
    def smaller(layer: Layer) -> Layer:
        return dataclasses.replace(layer, input=(1, layer.input[1], *(min(size, 20) for size in layer.input[2:])))

    monkeypatch.setattr(networks, "NETWORKS", {name: [smaller(layer) for layer in networks.NETWORKS[name]]})
    for case in networks.cases(name, dataclasses.replace(TORCHS, batch=1)):
        expected = case.reference()
        if case.mode == GRADIENTS:
            assert ("grad of input" in expected) == (case.section != "first layer")
        for contestant, setup in case.contestants.items():
            assert discrepancy(setup().outputs(), expected)[1] == "", f"{contestant}: {case.section}, {case.name}"


def test_the_whole_run_has_every_layer_in_both_directions_and_layouts():
    options = Options(rivals=["eager", "compile"], batch=2, only="^1x1 stride 2")
    cases = list(networks.cases("resnet50", options))
    assert len(cases) == 3 * 2 * 2
    assert {(case.mode, case.layout) for case in cases} == {
        (mode, layout) for mode in (FORWARD, GRADIENTS) for layout in ("NCHW", "channels_last")
    }
    assert all(case.batch == 2 and list(case.contestants) == [OURS, EAGER] for case in cases)


def test_ours_has_the_rows_layout_and_the_rivals_their_own():
    seen = {}

    class Seeing(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen[self.name] = x.is_contiguous()
            return super().forward(x)

    ours, plain = Seeing(2, 3, 3), Seeing(2, 3, 3)
    ours.name, plain.name = "ours", "plain"
    work = Work(ours, plain, torch.randn(1, 2, 5, 5), FORWARD)
    case = case_of("section", "name", work, TORCHS, "channels_last")
    assert case.shape == "1x2x5x5, channels_last" and case.row().layout == "channels_last"
    found = []
    for name in (OURS, EAGER, CHANNELS_LAST):
        case.contestants[name]().outputs()
        found.append(seen["ours" if name == OURS else "plain"])
    assert found == [False, True, False]


# ------------------------------------------------------------------------------------------------ what is computed


def test_backward_alone_runs_no_forward():
    work = small_work(GRADIENTS)
    calls = []
    work.plain.register_forward_hook(lambda *_: calls.append(1))
    run = runner(work.plain, work)
    first, again = run.outputs(), run.outputs()
    assert len(calls) == 1
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_gradients_of_a_network_count_as_one_vector():
    work = small_work(STEP)
    apart = reference(work)
    work = dataclasses.replace(work, one_gradient=True)
    together = reference(work)
    gradients = [tensor.flatten() for name, tensor in apart.items() if name != "loss"]
    assert torch.equal(together["grad of all parameters"], torch.cat(gradients))


def test_operations_and_bytes_of_a_layer():
    (layer,) = (x for x in networks.RESNET50 if x.label == "3x3 stride 2, 512->512")
    layer = dataclasses.replace(layer, input=(2, *layer.input[1:]))
    x, weight, y = 2 * 512 * 14 * 14, 512 * 512 * 9, 2 * 512 * 7 * 7
    forward = 2 * 2 * 7 * 7 * 512 * 512 * 9
    expected = {
        FORWARD: (1, x + weight + y),
        GRADIENTS: (2, y + 2 * (x + weight)),
        BACKWARD: (3, 2 * y + 3 * (x + weight)),
    }
    for mode, (times, elements) in expected.items():
        work = work_of(layer, mode)
        assert work_gflop(work) == pytest.approx(times * forward / 1e9)
        assert work_gbyte(work) == pytest.approx(4 * elements / 1e9)
    # An image's gradient: neither computed nor written, and the weights are not read for it.
    work = work_of(layer, GRADIENTS, input_gradient=False)
    assert work_gflop(work) == pytest.approx(forward / 1e9)
    assert work_gbyte(work) == pytest.approx(4 * (y + x + weight) / 1e9)
    (pool,) = (x for x in networks.RESNET50 if x.op == "max_pool2d")
    assert work_gbyte(work_of(pool, GRADIENTS)) == pytest.approx(4 * 64 * (112 * 112 + 56 * 56) / 1e9)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    assert work_gbyte(Work(network, network, torch.randn(1, 1, 6, 6), FORWARD)) is None


def test_counting_changes_no_statistics():
    norm = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    work_gflop(Work(norm, norm, torch.randn(2, 1, 6, 6), STEP))
    assert norm[1].num_batches_tracked == 0 and torch.equal(norm[1].running_mean, torch.zeros(2))


# -------------------------------------------------------------------------------------------------- whole models


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(4 * 4 * 4, models.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.relu(self.norm(self.conv(x)))).flatten(1))


@pytest.fixture
def small_models(monkeypatch: pytest.MonkeyPatch):
    """Instead of torchvision's, which is not needed for what is tested here."""
    monkeypatch.setattr(models, "_torchvision", lambda: lambda name, **_: Small())
    monkeypatch.setattr(models, "SIZE", 8)
    for cached in (models._model, models.work_of):
        cached.cache_clear()
    yield
    for cached in (models._model, models.work_of):
        cached.cache_clear()


def test_models_agree_with_their_reference_in_every_variant(small_models):
    options = Options(rivals=["eager", "channels_last", "onnxruntime"], only="ResNet")
    cases = list(models.cases(options))
    assert [(case.section, case.batch, case.layout) for case in cases] == [
        (section + swapped, batch, layout)
        for section, batch in (("Inference", 1), ("Inference", 8), ("Training step", 8))
        for swapped, layout in (
            ("", "NCHW"),
            ("", "channels_last"),
            (", layers swapped only", "NCHW"),
            (", frozen", "NCHW"),
            (", frozen", "channels_last"),
        )
        if (section, swapped) != ("Training step", ", frozen")
    ]
    for case in cases:
        expected = case.reference()
        assert all(tensor.isfinite().all() for tensor in expected.values())
        for name, setup in case.contestants.items():
            if name != "onnxruntime":
                assert discrepancy(setup().outputs(), expected, case.output_limit, case.gradient_limit)[1] == ""
    assert ["onnxruntime" in case.contestants for case in cases] == [True, False, False, True, True] * 2 + [False] * 3
    assert list(models.cases(dataclasses.replace(options, quick=True)))[0].batch == 2


def test_models_have_the_statistics_of_random_images(small_models):
    norm = models.work_of("ResNet-18", 2, FORWARD).plain.norm
    assert norm.momentum == 0.1 and norm.num_batches_tracked == 1
    assert not torch.equal(norm.running_mean, torch.zeros(4))


def test_a_real_model_agrees_with_its_reference(monkeypatch: pytest.MonkeyPatch):
    torchvision()
    monkeypatch.setattr(models, "SIZE", 64)
    models._model.cache_clear()
    for mode in (FORWARD, STEP):
        case = case_of("section", "name", models.work_of("ResNet-18", 2, mode), TORCHS, "NCHW")
        outputs = case.contestants[OURS]().outputs()
        assert discrepancy(outputs, case.reference(), case.output_limit, models.GRADIENT_LIMIT)[1] == ""
    models._model.cache_clear()
    models.work_of.cache_clear()


def test_without_torchvision_the_suite_is_skipped_and_says_so(tmp_path, capsys, monkeypatch: pytest.MonkeyPatch):
    def absent():
        raise NotInstalled("needs torchvision: No module named 'torchvision'")

    monkeypatch.setattr(models, "_torchvision", absent)
    monkeypatch.setattr(environment, "probe", lambda threads: (100.0, 1.0))
    monkeypatch.setattr(environment, "copy_bandwidth", lambda threads: 40.0)
    arguments = ["--device", "cpu", "--threads", "1", "--out", str(tmp_path)]
    threads = torch.get_num_threads()
    try:
        assert command.main(["--suite", "models", *arguments]) == 2
        assert "the suite models is skipped: needs torchvision" in capsys.readouterr().err
        # Among others it is skipped without failing them.
        monkeypatch.setattr(
            command, "SUITES", {"cpu": {"models": models.cases, "ops": lambda options: iter([a_row()])}}
        )
        monkeypatch.setattr(command, "GROUPS", {"all": ("models", "ops")})
        assert command.main(["--suite", "all", *arguments]) == 0
    finally:
        torch.set_num_threads(threads)
    assert [path.name.partition("--")[0] for path in tmp_path.glob("*.json")] == ["ops"]


# ------------------------------------------------------------------------------------------------ how it is judged


def a_row(case: str = "case", eager: float = 2.0, channels_last: float = 2.0, **others) -> Row:
    def entry(name: str, ratio: float | None, error: float) -> Entry:
        time = ratio or 1.0
        return Entry(
            name, median=time, q1=time, q3=time, samples=5, calls=1, error=error, ratio=ratio, gflops=50 / time
        )

    entries = [entry(OURS, None, 2e-7), entry(EAGER, eager, 1e-7), entry(CHANNELS_LAST, channels_last, 4e-7)]
    about = {"gflop": 0.05, "gbyte": 1e-3, "mode": FORWARD, "layout": "NCHW", **others}
    return Row("3x3", case, "8x64x56x56", 8, entries=entries, **about)


def some_result() -> Result:
    backward = a_row("64->64, backward", 0.5, 3.0, mode=GRADIENTS, gbyte=2e-3)
    pool = a_row("2x2, forward", 1.0, 1.5, gflop=None)
    for entry in pool.entries:
        entry.gflops = None
    rows = [a_row("64->64", 2.0, 4.0), a_row("128->128", 6.0, 4.5), backward, dataclasses.replace(pool, section="pool")]
    return Result(metadata() | {"suite": "resnet50", "copy_gb_per_s": 40.0}, rows)


def test_sections_stand_against_torchs_best_layout(tmp_path):
    result = some_result()
    forward, backward, pool = result.standings()
    assert (forward.mode, forward.rows, forward.geometric_mean) == (FORWARD, 2, pytest.approx(3.0))
    assert (forward.least, forward.least_case) == (2.0, "64->64 (8x64x56x56)")
    assert (backward.mode, backward.least) == (GRADIENTS, 0.5) and pool.section == "pool"
    save(result, tmp_path / "result.json")
    document = json.loads((tmp_path / "result.json").read_text())
    assert document["standings"][0] == dataclasses.asdict(forward)
    assert load(tmp_path / "result.json") == result
    # In suites whose rows are in no layout of ours there is nothing to stand.
    result.rows = [dataclasses.replace(row, layout="") for row in result.rows]
    assert result.standings() == []


def test_tables_show_the_standings_and_the_errors(capsys, monkeypatch: pytest.MonkeyPatch):
    text = report.markdown(some_result())
    assert (
        "- forward, NCHW: 3.00x of torch's best layout (geometric mean of 2), least 2.00x: 64->64 (8x64x56x56)" in text
    )
    (row,) = (line for line in text.splitlines() if line.startswith("| 128->128"))
    assert row.endswith("| 4.50x | 2.0e-07 (2.00x) |")
    (pool,) = (line for line in text.splitlines() if line.startswith("| 2x2"))
    assert "| 1 |" in pool  # GB/s: a megabyte in a millisecond
    assert "torch's best is the faster" in text and "40 GB/s" in text
    report.show(some_result())
    assert "3.00x of torch's best layout" in capsys.readouterr().out


def test_roofline_draws_or_says_that_it_cannot(tmp_path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "roofline.svg"
    for spoil in ({"copy_gb_per_s": None}, {}):
        result = some_result()
        result.metadata |= spoil
        result.rows = result.rows if spoil else result.rows[3:]  # a pool has no operations
        assert not roofline.draw(result, [path])
    pytest.importorskip("matplotlib", exc_type=ImportError)
    assert roofline.draw(some_result(), [path])
    picture = path.read_text()
    assert "40 GB/s" in picture and "100 GFLOP/s" in picture and "3x3" in picture and "pool" not in picture


def test_copies_are_timed():
    assert 0.1 < environment.copy_bandwidth(1, megabytes=1, repeats=2) < 1e5


@pytest.mark.parametrize(
    "arguments",
    [
        ["--batch", "0"],
        ["--only", "("],
        ["--only", "3x3", "--suite", "lecture"],
        ["--batch", "8", "--suite", "ops"],
        ["--suite", "resnet"],
    ],
)
def test_nonsense_on_the_command_line_is_refused(arguments: list[str], capsys):
    suite = [] if "--suite" in arguments else ["--suite", "resnet50"]
    with pytest.raises(SystemExit) as stopped:
        command.main([*arguments, *suite])
    assert stopped.value.code == 2 and arguments[0] in capsys.readouterr().err

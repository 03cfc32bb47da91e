"""python -m benchmarks: runs suites, prints tables, leaves JSON, Markdown and a plot; --report redraws them."""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from . import augment, environment, gpu, lecture, models, networks, ops, plot, report, roofline, small
from .case import Case, NotInstalled, measure
from .results import Result, Row, load, save
from .rivals import RIVALS
from .suites import Options, Suite
from .timing import Budget

ROOT = Path(__file__).parent.parent
# A device's suites; a device without any is refused.
_NETWORKS = {name: functools.partial(networks.cases, name) for name in networks.NETWORKS}
_ALL = {"lecture": lecture.cases, "small": small.cases, "ops": ops.cases, **_NETWORKS, "models": models.cases}
_ALL["augment"] = augment.cases
SUITES: Mapping[str, Mapping[str, Suite]] = {"cpu": _ALL, "cuda": _ALL}
GROUPS = {"layers": tuple(_NETWORKS), "all": tuple(_ALL)}
# What takes --batch and --only.
SIZABLE = (*_NETWORKS, "models")
CHOOSABLE = ("ops", *SIZABLE)
BUDGETS = {"lecture": Budget(seconds=2.0), "small": Budget(seconds=0.7), "models": Budget(seconds=2.0, fewest=5)}
QUICK_BUDGETS = {"lecture": Budget(seconds=1.0)}
# Of the other suites, whose rows are many.
BUDGET, QUICK_BUDGET = Budget(seconds=0.5), Budget(seconds=0.3, fewest=5)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--suite", choices=[*_ALL, *GROUPS], default="lecture")
    parser.add_argument("--quick", action="store_true", help="few cases and rounds, no torch.compile: under 2 minutes")
    parser.add_argument("--threads", type=int, help="torch's and the rivals' threads; 2 by default, or all if fewer")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/local", help="folder of the results")
    parser.add_argument("--rivals", help=f"comma-separated; all by default: {','.join(RIVALS)}")
    parser.add_argument("--batch", type=int, help=f"images, in {', '.join(SIZABLE)}")
    parser.add_argument("--only", default="", metavar="REGEX", help=f"rows that match, in {', '.join(CHOOSABLE)}")
    parser.add_argument("--report", type=Path, metavar="JSON", help="print the Markdown of a result instead of running")
    parser.add_argument("--readme", type=Path, help="with --report: write it between this file's markers instead")
    return parser


def _options(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Options:
    threads = arguments.threads or min(2, os.cpu_count() or 1)
    if threads < 1:
        parser.error(f"--threads: must be at least 1, but got threads={threads}")
    device = environment.choose_device(arguments.device, SUITES)
    # Compiling takes longer than a whole quick run; whoever names it gets it.
    by_default = [
        name
        for name, rival in RIVALS.items()
        if device in rival.devices and not (arguments.quick and name in ("compile", "cuda_graphs"))
    ]
    rivals = by_default if arguments.rivals is None else [r for r in arguments.rivals.split(",") if r]
    if unknown := set(rivals) - set(RIVALS):
        parser.error(f"--rivals: must be among {','.join(RIVALS)}, but got {','.join(sorted(unknown))}")
    if arguments.batch is not None and arguments.batch < 1:
        parser.error(f"--batch: must be at least 1, but got batch={arguments.batch}")
    for name, takers in (("batch", SIZABLE), ("only", CHOOSABLE)):
        if getattr(arguments, name) and not set(_suites(arguments.suite)) <= set(takers):
            parser.error(f"--{name}: --suite must be among {','.join(takers)}, but got {arguments.suite}")
    try:
        re.compile(arguments.only)
    except re.error as error:
        parser.error(f"--only: must be a regular expression, but got {arguments.only!r}: {error}")
    return Options(arguments.quick, threads, rivals, device, arguments.batch, arguments.only)


def _suites(name: str) -> tuple[str, ...]:
    return GROUPS.get(name, (name,))


def run(suite: str, options: Options) -> Result:
    """One suite from beginning to end, its progress on stderr."""
    torch.set_num_threads(options.threads)
    result = Result(environment.collect(suite, options))
    stopwatch = None
    if options.device == "cuda":
        torch.backends.cudnn.benchmark = True  # the rivals' best case: shapes do not change
        stopwatch = gpu.GpuStopwatch()
    budget = QUICK_BUDGETS.get(suite, QUICK_BUDGET) if options.quick else BUDGETS.get(suite, BUDGET)
    for item in _progress(SUITES[options.device][suite](options), suite):
        result.rows.append(item if isinstance(item, Row) else measure(item, budget, stopwatch))
    environment.close(result.metadata)
    result.set_peak(1e9 * max(result.metadata["peak_gflops"].values()))
    return result


def _progress(items: Iterable[Case | Row], suite: str) -> Iterable[Case | Row]:
    if importlib.util.find_spec("tqdm") is None:
        return items
    from tqdm import tqdm

    # disable=None: no bar where stderr is not a terminal.
    return tqdm(items, desc=suite, unit="case", disable=None, leave=False)


def _write(result: Result, folder: Path) -> None:
    about = result.metadata
    name = about["gpu"]["name"] if about["gpu"] else about["cpu"]
    machine = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    stem = f"{about['suite']}{'-quick' if about['quick'] else ''}--{machine}--{about['device']}"
    save(result, folder / f"{stem}.json")
    pictures = [folder / f"{stem}.png", folder / f"{stem}.svg"]
    drawn = plot.draw(result, pictures)
    roofs = [folder / f"{stem}.roofline.png", folder / f"{stem}.roofline.svg"]
    roof = ", .roofline.png, .roofline.svg" if roofline.draw(result, roofs) else ""
    (folder / f"{stem}.md").write_text(report.markdown(result, pictures[1].name if drawn else None))
    why_not = "nothing to draw" if importlib.util.find_spec("matplotlib") else "matplotlib is not installed"
    print(f"\nWritten to {folder}: {stem}.json, .md" + (f", .png, .svg{roof}" if drawn else f"; no plot: {why_not}"))


def _report(path: Path, readme: Path | None) -> None:
    result = load(path)
    picture = path.with_suffix(".svg")
    folder = (readme or path).resolve().parent
    address = os.path.relpath(picture.resolve(), folder).replace(os.sep, "/") if picture.exists() else None
    text = report.markdown(result, address)
    if readme is None:
        print(text, end="")
    else:
        report.into_readme(readme, text)


def main(argv: list[str] | None = None) -> int:
    """0; 1 if cnnfast itself was wrong or failed somewhere; 2 if the run as asked for is not possible."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        if arguments.report:
            _report(arguments.report, arguments.readme)
            return 0
        options = _options(arguments, parser)
    except (environment.Unavailable, OSError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    failures: list[str] = []
    skipped: list[str] = []
    for suite in _suites(arguments.suite):
        try:
            result = run(suite, options)
        except NotInstalled as missing:
            skipped.append(suite)
            print(f"benchmarks: the suite {suite} is skipped: {missing}", file=sys.stderr)
            continue
        if not result.rows:
            skipped.append(suite)
            print(f"benchmarks: no row of the suite {suite} matches --only {options.only!r}", file=sys.stderr)
            continue
        report.show(result)
        _write(result, arguments.out)
        failures += result.own_failures
    for failure in failures:
        print(f"cnnfast: {failure}", file=sys.stderr)
    return 1 if failures else 2 if list(_suites(arguments.suite)) == skipped else 0


if __name__ == "__main__":
    sys.exit(main())

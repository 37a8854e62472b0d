"""The tests that need a GPU or the host, and all timings with their goals, as one JSON and one Markdown table.

    bash benchmarks/gpu.sh [--out runs/gpu] [--minutes 12] [--part features --part points]

Goals are those of an H100. Without a GPU the same runs at small size, and no goal is judged. Each part runs in a
process of its own, ours and the host's by turns in it; one that fails or takes too long is a line of the table. Parts
come in the order of their importance, and what would exceed the time is left out and says so. Tests get what the
timings leave, before and after them. Needs a checkout of the host and the studiogan extra.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch
from common import biggan, machine

from studiogan_guidance import samplers
from studiogan_guidance.config import read_yaml
from studiogan_guidance.host import compat
from studiogan_guidance.host.locate import locate
from studiogan_guidance.host.networks import build
from studiogan_guidance.latents import LabelPlan, view_for

ROOT = Path(__file__).parent.parent
TESTS = "gpu or studiogan"
BLOCK = 16  # tests of a process
OUTCOME = re.compile(r"^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
LEAST_TESTS = 60  # seconds of tests before the timings
CPU_SHARE = 3  # parts at small size may take so many times longer


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: what was measured.
        value: a number, or words.
        unit: of the number.
        goal: the number that it should be, at most, or, if ``at_least``, at least; None if there is none.
        at_least: the direction of the goal.
    """

    what: str
    value: float | str
    unit: str = ""
    goal: float | None = None
    at_least: bool = False

    @property
    def is_reached(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a number."""
        if self.goal is None or isinstance(self.value, str):
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def verdict(self) -> str:
        """Yes, or no and by how much."""
        if self.is_reached is None or isinstance(self.value, str):
            return ""
        if self.is_reached:
            return "yes"
        share = f"{abs(self.value / self.goal - 1):.1%}" if self.goal else f"{abs(self.value):.2g}"
        return f"no: {share} {'below' if self.at_least else 'above'}"

    def cells(self, is_judged: bool) -> str:
        """The line in Markdown."""
        value = self.value if isinstance(self.value, str) else f"{self.value:,.4g}"
        goal = "" if self.goal is None else f"{'>=' if self.at_least else '<='} {self.goal:g}"
        return f"| {self.what} | {value} {self.unit}".rstrip() + f" | {goal} | {self.verdict if is_judged else ''} |"


@dataclass(frozen=True)
class Setting:
    """Where a part runs: the device, whether at small size, a folder for its files, and when it has to be done."""

    device: str
    small: bool
    work: Path
    until: float

    @property
    def num_real(self) -> int:
        """Real images, the same in all parts, so that what is known of them is computed once."""
        return 32 if self.small else 50_000

    def has(self, seconds: float) -> bool:
        """Whether so many seconds are left."""
        return time.time() + seconds < self.until


Measure = Callable[[Setting], Iterable[Row]]


@dataclass(frozen=True)
class Part:
    """A part of the table; ``seconds`` is the most that it may take on an H100."""

    name: str
    seconds: float
    measure: Measure = field(repr=False)


COMPILE = """
import sys
from studiogan_guidance.host.compat.plugins import plugin_modules
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import locate

with inside(locate()), plugin_modules():
    module(f"utils.style_ops.{sys.argv[1]}")._init()
"""


def plugins(at: Setting) -> Iterator[Row]:
    """The host's StyleGAN2 for the first time; before it, on a GPU, all plug-ins are compiled side by side."""
    if at.device != "cpu":
        started = time.perf_counter()
        compilers = {
            name: subprocess.Popen([sys.executable, "-c", COMPILE, name]) for name in compat.PLUGINS["stylegan3"]
        }
        failed = [name for name, process in compilers.items() if process.wait()]
        what = f"; {', '.join(failed)} failed, the host's reference code runs" if failed else ""
        yield Row(f"plug-ins of StyleGAN2 and StyleGAN3, compiled{what}", time.perf_counter() - started, "s")

    started = time.perf_counter()
    checkout = locate()
    keys = read_yaml(checkout.path / "src" / "configs" / "CIFAR10" / "StyleGAN2.yaml")
    view = view_for(build(keys, checkout, torch.device(at.device)))
    next(samplers.create("plain").stream(view, range(2), 2, LabelPlan())).images.cpu()
    yield Row("StyleGAN2, first images", time.perf_counter() - started, "s")


def unlock() -> None:
    """Remove the locks that processes left at plug-ins when they were stopped: others would wait for them for ever."""
    from torch.utils import cpp_extension

    for name in compat.PLUGINS["stylegan3"]:
        folder = Path(cpp_extension._get_build_directory(f"{name}_plugin", verbose=False))
        for lock in folder.glob("*/lock"):
            lock.unlink(missing_ok=True)


def feature_pass(at: Setting) -> Iterator[Row]:
    """The feature pass against its network, and against the host's."""
    import features

    num, repeats, sizes = (8, 1, (8,)) if at.small else (4096, 3, (64, None))
    for size, fast in itertools.product(sizes, (False, True)):
        if not at.has(15):
            yield Row(f"feature pass, batch {size or 'chosen'}{', fast' * fast}", "left out: no time")
            continue
        rates = features.measure(at.work, at.device, num, size, repeats, fast, at.num_real)
        name = f"feature pass{', fast' * fast}, batch {rates.pop('batch'):g}{'' if size else ' (chosen)'}"
        for way, rate in rates.items():
            label = {"computed": "one after the other, computed from both"}.get(way, way)
            yield Row(f"{name}: {label}", rate, "images/s")
        share = None if fast else 0.9
        yield Row(f"{name}: ours / one after the other, computed", rates["ours"] / rates["computed"], "", share, True)
        yield Row(f"{name}: ours / one after the other, measured", rates["ours"] / rates["one after the other"])
        yield Row(f"{name}: ours / the host's", rates["ours"] / rates["host"], "", 9 if fast else 5, True)


def guidance(at: Setting) -> Iterator[Row]:
    """Guided against plain sampling."""
    import guided_vs_plain

    batches, repeats = ((2,), 3) if at.small else ((64, 256), 15)
    for case in guided_vs_plain.measure(at.device, batches, repeats, at.small):
        name = f"{case['generator']} {case['joint']}, batch {case['batch']}"
        yield Row(f"{name}: plain", case["plain_ms"], "ms")
        yield Row(f"{name}: guided / plain", case["ratio"], "", case["goal"])
        yield Row(f"{name}: operations of a guided batch beyond a plain one's", case["more"])


def points(at: Setting, fast: bool = False) -> Iterator[Row]:
    """An evaluation, and more points of a sweep, as many as there is time for."""
    import points

    num, wanted = at.num_real, 1 if at.small else 10
    name = f"eval of {num:,} images, FID and PRDC{', fast' * fast}"
    seconds: list[float] = []
    for what, took, row in points.measure(at.work, at.device, num, wanted, fast=fast):
        if not row:
            yield Row(f"{name}: {what}", took, "s")
            continue
        seconds.append(took)
        if len(seconds) == 1:
            yield Row(f"{name}: first image to row (batch {row['environment'].get('batch_size')})", took, "s", 30)
            yield Row(f"{name}: sampling alone", row["cost"]["sampling_seconds"], "s")
            yield from precision(name, row)
        if not at.has(1.2 * took):
            break

    more = seconds[1:]
    if more:
        label = "more point of a sweep" if len(more) == 1 else f"each of {len(more)} more points of a sweep"
        yield Row(f"{name}: slowest, {label}", max(more), "s", 20)
        yield Row(f"{name}: mean, {label}", sum(more) / len(more), "s", 20)
    if len(more) < wanted:
        yield Row(f"{name}: more points", f"{len(more)} of {wanted}: no time for the others")


def precision(name: str, row: dict[str, Any]) -> Iterator[Row]:
    """What fast mode measured of itself."""
    if facts := row["environment"].get("fast"):
        what = f"{name}: difference of FID in {row['protocol']['fast']}, {facts['num']:,} images"
        yield Row(what, facts["fid_difference"], "", 0.05)


def fast_points(at: Setting) -> Iterator[Row]:
    """The same in fast mode."""
    return points(at, fast=True)


def resizers(at: Setting) -> Iterator[Row]:
    """Pixels of the device against those of the host's resizers."""
    import resizers

    count, repeats = (2, 1) if at.small else (8, 3)
    for case in resizers.table(at.device, count, repeats):
        times = [f"{place} {case[key]:.3f}" for place, key in TIMES.items() if case.get(key) is not None]
        unit = f"of 255 ({case['differing']} of {case['pixels']} pixels, FID {case['fid']:.1g}"
        unit += f"; ms an image: {', '.join(times)})" if times else ")"
        name = f"resizer {case['resizer']} ({case['filter']}), {case['from']} to {case['to']}"
        yield Row(f"{name}: largest difference", case["largest"], unit)


TIMES = {"CPU": "cpu_ms", "device": "device_ms", "host": "host_ms"}


def launches(at: Setting) -> Iterator[Row]:
    """What a batch asks of the GPU."""
    import launches

    on_gpu = at.device.startswith("cuda")
    for fast in (False, True):
        if fast and at.small:
            continue
        for name, counts in launches.measure(at.work, at.device, 2 if at.small else 64, fast, at.num_real).items():
            for kind, words in (ON_GPU if on_gpu else ON_CPU).items():
                goal = 0 if on_gpu and kind in ("waits", "pageable copies") else None
                yield Row(f"{name}{', fast' * fast}: {words} a batch", counts[kind], "", goal)


ON_GPU = {
    "launches": "kernels launched",
    "waits": "synchronisations",
    "events": "waits for an event of an earlier batch",
    "pageable copies": "copies that are not pinned",
}
ON_CPU = {"launches": "operators", "waits": "numbers that Python reads"}


def training(at: Setting) -> Iterator[Row]:
    """Steps of the stage ``joint`` on StyleGAN2: ``latent`` takes no longer than ``adversarial``."""
    import joint_step

    milliseconds = {row["step"]: row["ms"] for row in joint_step.measure_all(at.device, at.small)}
    for step, value in milliseconds.items():
        yield Row(f"training on StyleGAN2, a step: {step}", value, "ms")
    yield Row("training: latent / adversarial", milliseconds["latent"] / milliseconds["adversarial"], "", 1)


def more_gpus(at: Setting) -> Iterator[Row]:
    """``eval`` on all GPUs by torchrun against one."""
    count = torch.cuda.device_count()
    if count < 2:
        yield Row("eval on all GPUs", f"left out: {count} GPUs (two launchers on one machine are among the tests)")
        return

    # The same command by one process and by one a GPU.
    num = 20_000
    cfg = biggan(at.work, num)
    flags = ["-c", f"{cfg.ckpt}/BigGAN.yaml", "--ckpt", cfg.ckpt, "--data", cfg.data, "--num", num, "--json"]
    flags += ["--metrics", "fid", "--sampler", "plain", "--device", "auto", "--out", at.work / "all"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    rates = []
    for processes in (1, count):
        whole = [*command, processes, "-m", "--", "studiogan_guidance", "eval", *flags]
        output = subprocess.run(list(map(str, whole)), check=True, capture_output=True, text=True).stdout
        rates.append(num / json.loads(output)["rows"][0]["seconds"])
        yield Row(f"eval on {processes} GPUs", rates[-1], "images/s")
    yield Row(f"eval on {count} GPUs / on 1", rates[1] / rates[0])


PARTS = (
    Part("plug-ins", 240, plugins),
    Part("guided", 60, guidance),
    Part("points", 250, points),
    Part("features", 130, feature_pass),
    Part("resizers", 40, resizers),
    Part("launches", 40, launches),
    Part("training", 90, training),
    Part("fast points", 120, fast_points),
    Part("gpus", 60, more_gpus),
)


class Tests:
    """The tests marked ``gpu`` or ``studiogan``, a few a process, on all cores; on a GPU those marked gpu come first.

    Args:
        log: a file for what they print.
        has_gpu: whether those marked gpu run, or are skipped.
    """

    def __init__(self, log: Path, has_gpu: bool) -> None:
        self.log = log
        self.log.unlink(missing_ok=True)
        self.has_gpu = has_gpu
        self.stopped = False
        self.expressions = ["gpu", "studiogan and not gpu"][:: 1 if has_gpu else -1]
        self.seconds = 0.0
        self.outcomes: dict[str, str] = {}
        self.wanted: list[str] = []
        self.error = ""

    def collect(self) -> None:
        """Find the tests."""
        for expression in self.expressions:
            command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"]
            done = subprocess.run([*command, "-m", expression], cwd=ROOT, capture_output=True, text=True)
            if done.returncode not in (0, 5):
                self.error = last_line(done.stdout + done.stderr)
            lines = done.stdout.splitlines()
            self.wanted += [line for line in lines if "::" in line and not line.startswith(" ")]  # no warnings

    def run(self, until: float) -> None:
        """Run those that have no outcome yet, until that time."""
        started = time.time()
        left = [test for test in self.wanted if test not in self.outcomes]
        workers = max(1, min(8, (os.cpu_count() or 1) // 2))
        blocks = [left[start : start + BLOCK] for start in range(0, len(left), BLOCK)]
        with ThreadPoolExecutor(workers) as pool:
            for output in pool.map(lambda block: self._block(block, until, workers), blocks):
                self._read(output)
        if self.stopped:
            unlock()
        self.seconds += time.time() - started

    def _block(self, tests: Sequence[str], until: float, workers: int) -> str:
        if time.time() + 5 > until:
            return ""
        command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *tests]
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
        code, output = run_until(command, until, threads)
        self.stopped |= code is None and self.has_gpu
        if code not in (0, 1, 5, None):
            self.error = last_line(output)
        with self.log.open("a") as file:
            file.write(output)
        return output

    def _read(self, output: str) -> None:
        for line in output.splitlines():
            if match := OUTCOME.match(line):
                self.outcomes[match[1]] = match[2]

    def rows(self) -> Iterator[Row]:
        """What came out."""
        if self.error:
            yield Row("tests", f"failed: {self.error}")
        counts = Counter(self.outcomes.values())
        bad = [test for test, outcome in self.outcomes.items() if outcome in ("FAILED", "ERROR")]
        missing = len([test for test in self.wanted if test not in self.outcomes])
        words = ", ".join(f"{count} {word.lower()}" for word, count in sorted(counts.items()))
        yield Row(f"tests marked {TESTS}: {words}; in {self.seconds:.0f} s; failed", len(bad), "", 0)
        if missing:
            yield Row("tests that there was no time for", missing, f"of {len(self.wanted)}")
        for test in bad[:40]:
            yield Row(f"`{test}`", "failed")


def run_until(command: Sequence[str], until: float, variables: dict[str, str] | None = None) -> tuple[int | None, str]:
    """The exit code of a command, None if it was stopped at that time, and what it printed."""
    with tempfile.TemporaryFile("w+") as output:
        environment = {**os.environ, **(variables or {})}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        code: int | None = None
        try:
            code = process.wait(max(1, until - time.time()))
        except subprocess.TimeoutExpired:
            pass
        finally:
            if code is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        return code, output.read()


def last_line(text: str) -> str:
    """The last line of an output that says something, for a cell of the table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[-1] if lines else "no output").replace("|", "/")[:300]


def run_part(part: Part, at: Setting) -> list[Row]:
    """The rows of a part, from a process of its own; a failure is a row, after those that were there before it."""
    path = at.work / "rows.jsonl"
    path.unlink(missing_ok=True)
    command = [sys.executable, __file__, "--one", part.name, "--work", str(at.work), "--until", str(at.until)]
    code, output = run_until([*command, *(["--small"] if at.small else []), "--device", at.device], at.until + 10)

    lines = path.read_text().splitlines() if path.exists() else []
    rows = [Row(**json.loads(line)) for line in lines]
    if code is None:
        rows.append(Row(part.name, "stopped: it took too long"))
        if at.device != "cpu":
            unlock()
    elif code:
        rows.append(Row(part.name, f"failed: {last_line(output)}"))
        click.echo(output[-3000:], err=True)
    return rows


def run_here(name: str, at: Setting) -> None:
    """Measure a part in this process, and leave its rows in a file."""
    measure = next(part.measure for part in PARTS if part.name == name)
    with (at.work / "rows.jsonl").open("a") as file:
        for row in measure(at):
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()


@dataclass
class Report:
    """gpu.json and gpu.md in the folder ``out``, written anew after each part.

    Attributes:
        out: the folder.
        heading: where this runs.
        is_judged: whether it is said if goals are reached.
        rows: those of each part, by its name.
    """

    out: Path
    heading: str
    is_judged: bool
    rows: dict[str, list[Row]] = field(default_factory=dict)

    def add(self, name: str, rows: list[Row]) -> None:
        """Print the rows of a part, and write all."""
        self.rows[name] = rows
        for row in rows:
            click.echo(row.cells(self.is_judged))
        self.write()

    def write(self) -> None:
        """Write both files."""
        (self.out / "gpu.md").write_text(self.text())
        parts = {
            name: [{**asdict(row), "reached": row.is_reached if self.is_judged else None} for row in rows]
            for name, rows in self.rows.items()
        }
        (self.out / "gpu.json").write_text(json.dumps({"machine": self.heading, "parts": parts}, indent=1))

    def text(self) -> str:
        """The heading and the table in Markdown."""
        lines = [self.heading, "", "| what | value | goal | reached |", "|---|---|---|---|"]
        lines += [row.cells(self.is_judged) for rows in self.rows.values() for row in rows]
        return "\n".join(lines) + "\n"


def run_all(parts: Sequence[Part], tests: Tests | None, report: Report, at: Setting) -> None:
    """Run everything until ``at.until``: the first part, tests, the other parts, and the tests that are left.

    The first part compiles the plug-ins, which a test that is stopped would leave half-done.
    """
    for part in parts[:1]:
        report.add(part.name, run_in_time(part, at))
    if tests:
        tests.collect()
        tests.run(max(time.time() + LEAST_TESTS, at.until - sum(part.seconds for part in parts[1:])))
        report.add("tests", list(tests.rows()))

    for part in parts[1:]:
        report.add(part.name, run_in_time(part, at))
    if tests:
        tests.run(at.until)
        report.add("tests", list(tests.rows()))


def run_in_time(part: Part, at: Setting) -> list[Row]:
    """The rows of a part, which may take its own time, or what is left of it."""
    most = part.seconds * (CPU_SHARE if at.small else 1)
    left = at.until - time.time()
    if left < min(30, most):
        return [Row(part.name, "left out: no time")]
    return run_part(part, replace(at, until=time.time() + min(left, most)))


NAMES = ["tests", *(part.name for part in PARTS)]


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/gpu"), show_default=True)
@click.option("--minutes", default=12.0, show_default=True, help="The most that all parts may take.")
@click.option("--part", "chosen", multiple=True, type=click.Choice(NAMES), help="Several times. [all]")
@click.option("--small/--full", default=None, help="[small without a GPU]")
@click.option("--device", default=None, help="cpu or cuda. [a GPU if there is one]")
@click.option("--one", type=click.Choice(NAMES), hidden=True, help="The part that a process of its own measures.")
@click.option("--work", type=click.Path(path_type=Path), hidden=True)
@click.option("--until", type=float, default=0.0, hidden=True)
def main(
    out: Path,
    minutes: float,
    chosen: tuple[str, ...],
    small: bool | None,
    device: str | None,
    one: str | None,
    work: Path | None,
    until: float,
) -> None:
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    small = device == "cpu" if small is None else small
    if one and work:
        run_here(one, Setting(device, small, work, until))
        return

    # Say where this runs.
    started = time.time()
    heading = machine(device) + (", small size" if small else "")
    if device == "cpu":
        heading += "; no GPU: the goals are those of an H100 and are not judged"
    click.echo(heading)
    out.mkdir(parents=True, exist_ok=True)

    # Run what was chosen.
    chosen = chosen or tuple(NAMES)
    parts = [part for part in PARTS if part.name in chosen]
    tests = Tests(out / "tests.log", device != "cpu") if "tests" in chosen else None
    report = Report(out, heading, device != "cpu")
    with tempfile.TemporaryDirectory() as folder:
        run_all(parts, tests, report, Setting(device, small, Path(folder), started + minutes * 60))

    # Say how long it took, and print the whole table.
    report.add("time", [Row("all of this", (time.time() - started) / 60, "minutes", minutes)])
    click.echo("\n" + report.text())


if __name__ == "__main__":
    main()

"""Every table of results on the pages, made from RESULTS/*.json.

    python benchmarks/report.py            # write the tables anew
    python benchmarks/report.py --check    # exit 1, and name the tables, where a page differs

A table stands on a page, any .md of the repository, between ``<!-- table: NAME -->`` and ``<!-- end of table -->``.
Below each table is the command that measured it, the machine, and the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
HIDDEN = {".git", ".venv", "runs", "build", "dist"}  # folders without pages

Facts = Mapping[str, Any]
Cells = Sequence[str]

SPACES = {
    "fid": "FID, chosen in",
    "fid@random": "FID, random network",
    "fid@discriminator": "FID, own D",
    "fid@letters-a": "FID, second letters",
    "kid@efficientnet": "KID, EfficientNet",
    "kid@eff96": "KID, EfficientNet",
}
PASSES = {"synthesis": "G", "discriminator": "D", "backward": "backward", "joint": "small", "weights": "small"}
METRICS = ("fid", "precision", "recall", "density", "coverage", "accuracy")


# ---------------------------------------------------------------------------- cells


def table(headings: Cells, rows: Sequence[Cells]) -> str:
    """A table of Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    texts = [f"| {' | '.join(cells)} |".replace("|  ", "| ") for cells in lines]
    return "\n".join(texts)


def note(facts: Facts) -> str:
    """The line below a table: the command, when it ran if that was earlier, the machine, and the time."""
    parts = [f"`{facts['command']}`"]
    parts += [facts["measured"]] if "measured" in facts else []
    parts += [facts["machine"].replace("ours ", "this package ")]
    parts += ["time: " + (facts.get("time") or duration(facts["seconds"]))]
    return f"({'; '.join(parts)})"


def duration(seconds: float) -> str:
    """A time in words."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def spread(value: Facts, digits: int = 3) -> str:
    """Mean and standard deviation."""
    return f"{value['mean']:.{digits}f} ± {value['std']:.{digits}f}"


def in_per_cent(row: Facts, plain: Facts, key: str) -> str:
    """A paired difference to plain sampling with its standard error, in per cent of plain's value."""
    base = plain["metrics"][key]["mean"]
    difference = row["paired"][key]
    return f"{100 * difference['mean'] / base:+.1f} ± {100 * difference['se'] / base:.1f} %"


def setting(row: Facts) -> str:
    """The options of a row."""
    texts = [f"{key}={value}" for key, value in row["differs"].items()]
    return f"`{' '.join(map(option, texts))}`" if texts else ""


def option(text: str) -> str:
    """An option as the command line takes it; long numbers are shortened, profiles are p:q:r."""
    key, _, value = text.partition("=")
    if re.fullmatch(r"-?\d+\.\d{4,}", value):
        value = f"{float(value):.3g}"
    return f"{key}={value.strip('[]()').replace(', ', ':')}"


def passes(row: Facts) -> str:
    """Passes an image through the networks."""
    cost = {key: row["cost"][key] for key in PASSES if row["cost"].get(key)}
    return ", ".join(f"{value:.3g} {PASSES[key]}" for key, value in cost.items())


# ---------------------------------------------------------------------------- measured rows


def spaces_of(row: Facts) -> list[str]:
    """The distances that have a column: KID rather than FID where a space has too many channels for few images."""
    known = [key for key in SPACES if key in row["metrics"]]
    names = {key.partition("@")[2] for key in known}
    return known + [key for key in row["metrics"] if key.startswith("fid@") and key.partition("@")[2] not in names]


def methods(facts: Facts) -> str:
    """What ``guidance.py`` measured: plain sampling's distances, those of each method relative to it, and the cost."""
    plain = facts["rows"][0]
    spaces = spaces_of(plain)
    rows = []
    for row in facts["rows"]:
        distances = [
            in_per_cent(row, plain, key) if row["paired"] else f"{plain['metrics'][key]['mean']:.4g}" for key in spaces
        ]
        accuracy = row["metrics"].get("accuracy")
        share = f"{accuracy['mean']:.3f}" if accuracy else ""
        rows.append([row["method"], setting(row), *distances, share, passes(row)])
    headings = ["method", "setting", *(SPACES.get(key, key) for key in spaces), "accuracy", "passes an image"]
    return table(headings, rows)


def measured(facts: Facts) -> str:
    """The methods, and how they were measured."""
    return f"{methods(facts)}\n\n{number_of_images(facts)} {note(facts)}"


def number_of_images(facts: Facts) -> str:
    """How many images were compared."""
    protocol = facts["protocol"]
    ranges = len(protocol["seed"])
    return f"{protocol['num']:,} images against {protocol['num_real']:,}, {ranges} ranges of seeds."


def snapshots(facts: Facts) -> str:
    """The best scale at each snapshot of a training, and what it gains."""
    first = facts["snapshots"][0]
    spaces = spaces_of(first["rows"][0])
    rows = []
    for point in facts["snapshots"]:
        plain, guided = point["rows"]
        distances = []
        for key in spaces:
            distances += [f"{plain['metrics'][key]['mean']:.4g}", in_per_cent(guided, plain, key)]
        accuracy = [f"{row['metrics']['accuracy']['mean']:.3f}" for row in (plain, guided)]
        rows.append(
            [f"{point['step']:,}", f"{point['images']:,}", f"{guided['differs']['scale']:g}", *distances, *accuracy]
        )
    columns = [text for key in spaces for text in (f"{SPACES[key]}: plain", "guided")]
    headings = ["step", "images", "scale", *columns, "accuracy: plain", "guided"]
    return f"{table(headings, rows)}\n\n{number_of_images(facts)} {note(facts)}"


# ---------------------------------------------------------------------------- other benchmarks


def curve(facts: Facts) -> str:
    """The built-in's metrics against the scale, on the validation split."""
    rows = [
        [f"{scale:g}", *(spread(values[key]) for key in METRICS)]
        for scale, values in ((point["scale"], point["metrics"]) for point in facts["curves"]["class_mean"])
    ]
    return f"{table(['scale', *METRICS], rows)}\n\n{note(facts)}"


def curve_test(facts: Facts) -> str:
    """The scale that was chosen on the validation split, and plain sampling, on the test split."""
    chosen = facts["chosen"]
    names = {"plain": "plain", "guided": f"`scale={chosen['scale']:g} joint={chosen['joint']}`"}
    rows = [[names[key], *(spread(values[name]) for name in METRICS)] for key, values in facts["test"].items()]
    return f"{table(['sampler', *METRICS], rows)}\n\n{note(facts)}"


def as_given(facts: Facts) -> str:
    """A table that is kept as its cells."""
    return f"{table(facts['headings'], facts['rows'])}\n\n{note(facts)}"


GPU_ROW = re.compile(r"(.*), batch (\d+): (plain|guided / plain|operations.*)")
GPU_COLUMNS = ("plain", "guided / plain", "operations")


def gpu(facts: Facts) -> str:
    """Time of a guided batch against a plain one, on a GPU."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in facts["parts"]["guided"]:
        if match := GPU_ROW.fullmatch(row["what"]):
            found.setdefault((match[1], match[2]), {})[match[3].split(" of ")[0]] = row["value"]
    rows = [
        [name, batch, f"{values['plain']:.1f}", f"{values['guided / plain']:.3f}", f"{values['operations']:g}"]
        for (name, batch), values in found.items()
    ]
    headings = ["generator, joint and its hidden layers", "batch", "plain, ms", "guided / plain", "operations more"]
    return f"{table(headings, rows)}\n\n{gpu_note(facts)}"


def gpu_points(facts: Facts) -> str:
    """Time of an evaluation of 50,000 images on a GPU."""
    rows = []
    for row in facts["parts"]["points"]:
        if isinstance(row["value"], float):
            rows.append([row["what"].partition(": ")[2], f"{row['value']:.1f} {row['unit']}"])
    return f"{table(['50,000 images, FID, precision, recall, density, coverage', 'time'], rows)}\n\n{gpu_note(facts)}"


def gpu_note(facts: Facts) -> str:
    """The line below a table of ``gpu.sh``."""
    minutes = facts["parts"]["time"][0]["value"]
    return note({"command": "bash benchmarks/gpu.sh", "machine": facts["machine"], "seconds": 60 * minutes})


GLEAD_PLACES = {"images": "{:,.0f} images", "seconds": "{:.0f} s of training"}


def glead(facts: Facts) -> str:
    """The host's training with and without the stage glead, where the trainings end."""
    rows = []
    kept: Facts = {}
    for network, kept in facts.items():
        step, ratio = kept["step"], kept["ratio"]
        channels = kept["training"]["channels"] or kept["training"]["MODEL"]["g_conv_dim"]
        name = f"{network}, {channels} channels"
        costs = [
            f"{step['host'][key]:.{digits}f} -> {step['glead'][key]:.{digits}f} (x{ratio[key]:.2f})"
            for key, digits in (("ms", 0), ("gib", 2))
        ]
        for by, differences in kept["differences"].items():
            last = differences[-1]
            distances = []
            for key in ("fid", "fid@efficientnet"):
                unit = 100 / last[key]["host"]
                difference = f"{unit * last[key]['mean']:+.0f} ± {unit * last[key]['se']:.0f} %"
                distances.append(f"{last[key]['host']:.0f}: {difference}")
            rows.append([name, *costs, GLEAD_PLACES[by].format(last[by]), *distances])
            name, costs = "", ["", ""]
    headings = ["", "ms a step", "GiB", "at", "FID letters, without: with", "FID EfficientNet, without: with"]
    return f"{table(headings, rows)}\n\n{note(kept)}"


# ---------------------------------------------------------------------------- the table of the first page


def summary(of: Callable[[str], Facts | None]) -> str:
    """Where guidance does what it promises, then where the best scale is 1 or below."""
    built_in = of("builtin-curve")
    rows: list[Cells] = [promise(built_in)] if built_in else []
    used: dict[str, Facts] = {"builtin-curve": built_in} if built_in else {}
    for file, method, words in SUMMARY:
        facts = of(file)
        row = next((row for row in facts["rows"] if row["method"] == method), None) if facts else None
        if not facts or not row:
            continue
        used[file] = facts
        plain = facts["rows"][0]
        accuracy = [f"{each['metrics']['accuracy']['mean']:.3f}" for each in (plain, row)]
        distances = [in_per_cent(row, plain, key) for key in spaces_of(plain)]
        rows.append([words, setting(row), " -> ".join(accuracy), *distances])

    # How they were made.
    headings = ["generator", "setting", "class accuracy", "FID, chosen in", "second space", "third space"]
    programs = dict.fromkeys(" ".join(facts["command"].split()[:2]) for facts in used.values())
    made = {
        "command": "`, `".join(programs),
        "measured": "options, versions and the time of each: [benchmarks](benchmarks/README.md)",
        "machine": " and ".join(dict.fromkeys(facts["machine"].partition(",")[0] for facts in used.values())),
        "seconds": sum(facts["seconds"] for facts in used.values()),
    }
    return f"{table(headings, rows)}\n\n{note(made)}"


def promise(facts: Facts) -> Cells:
    """The row of the built-in at a large scale: accuracy rises, and so does FID."""
    points = {point["scale"]: point["metrics"] for point in facts["curves"]["class_mean"]}
    plain, guided = points[1.0], points[LARGE_SCALE]
    accuracy = [f"{values['accuracy']['mean']:.3f}" for values in (plain, guided)]
    gain = 100 * (guided["fid"]["mean"] / plain["fid"]["mean"] - 1)
    setting = f"`scale={LARGE_SCALE:g} joint=class_mean`"
    return ["built-in, a large scale", setting, " -> ".join(accuracy), f"{gain:+.0f} %", "", ""]


LARGE_SCALE = 1.5
SUMMARY: tuple[tuple[str, str, str], ...] = (
    ("reference-stylegan2", "scale", "StyleGAN2 of the host, early in its training"),
    ("reference-stylegan2", "scale and psi", "the same, with wider classes"),
    ("reference-built-in", "scale", "built-in, its best scale"),
    ("reference-biggan", "scale", "BigGAN of the host, settled"),
    ("guidance-BigGAN", "learned: amortised", "that BigGAN, a joint that learned from its discriminator"),
)


# ---------------------------------------------------------------------------- pages

BY_FILE: dict[str, tuple[str, Callable[[Facts], str]]] = {
    **{f"reference-{name}": (f"reference-{name}", measured) for name in ("built-in", "stylegan2", "resnet", "biggan")},
    "snapshots": ("reference-snapshots", snapshots),
    "learned-built-in": ("guidance-built-in", measured),
    "learned-biggan": ("guidance-BigGAN", measured),
    "curve": ("builtin-curve", curve),
    "curve-test": ("builtin-curve", curve_test),
    "gpu": ("gpu", gpu),
    "gpu-points": ("gpu", gpu_points),
    "glead": ("glead", glead),
}
EARLIER = "earlier"  # the file of tables that were measured by an earlier version


class Results:
    """The files of results in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def facts(self, name: str) -> Facts | None:
        """What is in a file, if it is there."""
        path = self.folder / f"{name}.json"
        found: Facts | None = json.loads(path.read_text()) if path.exists() else None
        return found

    def table(self, name: str) -> str:
        """A table by its name."""
        earlier = self.facts(EARLIER) or {}
        if name == "summary":
            return summary(self.facts)
        if name in earlier:
            return as_given(earlier[name])
        if name not in BY_FILE:
            raise click.ClickException(f"there is no table {name}: {', '.join([*BY_FILE, *earlier, 'summary'])}")
        file, make = BY_FILE[name]
        facts = self.facts(file)
        return make(facts) if facts else f"(not measured yet: {file}.json is missing)"

    def page(self, text: str) -> str:
        """A page with its tables made anew."""
        return MARKED.sub(lambda match: f"{match[1]}{self.table(match[2])}\n{match[4]}", text)


def pages(root: Path) -> list[Path]:
    """The pages of the repository."""
    return sorted(path for path in root.rglob("*.md") if not HIDDEN & {*path.relative_to(root).parts})


@click.command(help=__doc__)
@click.option("--check", is_flag=True, help="Only compare.")
@click.option("--root", type=click.Path(path_type=Path, exists=True), default=ROOT, help="Of the pages.")
@click.option("--results", "folder", type=click.Path(path_type=Path, exists=True), default=ROOT / "benchmarks/results")
def main(check: bool, root: Path, folder: Path) -> None:
    results = Results(folder)
    stale = []
    for path in pages(root):
        text = path.read_text()
        made = results.page(text)
        if made == text:
            continue
        old = {match[2]: match[3] for match in MARKED.finditer(text)}
        new = {match[2]: match[3] for match in MARKED.finditer(made)}
        stale += [f"{path.relative_to(root)}: {name}" for name in new if old[name] != new[name]]
        if not check:
            path.write_text(made)

    # Say what was done.
    for line in stale:
        click.echo(f"{line}: {'out of date, run python benchmarks/report.py' if check else 'written'}")
    if check and stale:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

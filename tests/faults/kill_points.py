"""Commands that are stopped at random moments: is every file whole, and does the same command go on without a loss?

    python tests/faults/kill_points.py --points 100

Each point starts a command on the built-in GAN in a fresh folder with a fresh cache, sends a signal after a random part
of the time that the command takes, looks at the files, gives the same command again, and compares what is there with an
uninterrupted run. Of two processes on one folder, one is stopped for a while, or killed. Prints one line a point, and
a JSON object with the counts; exit code 1 if anything was lost, repeated or half-written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # tests that import this keep their environment
    os.environ["OMP_NUM_THREADS"] = "1"  # processes are forked, and threads would not be there
    os.environ["STUDIOGAN_GUIDANCE_DEVICE"] = "cpu"

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import studiogan_guidance.evaluation.compare
import studiogan_guidance.evaluation.sample
import studiogan_guidance.evaluation.tune
import studiogan_guidance.training  # noqa: F401
from studiogan_guidance.cli import main
from studiogan_guidance.evaluation import results
from studiogan_guidance.files import TEMPORARY

SMALL = "--num 32 --batch-size 8 --metrics fid"
VERBS = {
    "sample": "sample --num 24 --batch-size 4 --png --scales 1,1.5",
    "eval": f"eval {SMALL},prdc -o scale=1.5",
    "sweep": f"sweep {SMALL} --grid scale=0.9,1.2,1.5",
    "tune": f"tune {SMALL} --budget 9 --repeats 2",
    "compare": f"compare {SMALL} --with gandance:scale=1.2 --with truncation:threshold=1 --repeats 2",
    "train": "train --num 32 -o steps=60 -o batch=4 -o hidden=16 -o save_every=5 -o note_every=1 -o eval_every=20",
    "pool": "sample --num 4 --sampler drs -o burn_in=700 -o calibration_images=100",
    "cache": "eval --num 32 --metrics fid,prdc --no-compare-plain -o joint=class_mean -o scale=1.5",
    "stats": "stats --batch-size 32",
}
OUT = {"stats": "out/reference.npz"}  # the file that a verb writes, where it is no folder
SHARED = ("sweep", "tune", "compare", "train", "eval")  # verbs whose folders two processes may share
APPENDING = ("eval", "cache")  # each run adds its rows again
TIMES = ("compare.json", "compare.txt", "compare.csv", "compare.png", "table.csv", "tuned.json")  # they hold seconds


@dataclass
class Report:
    """What was found at one point: lines that say what is wrong."""

    name: str
    wrong: list[str] = field(default_factory=list)


def start(command: str, folder: Path) -> int:
    """Start a command in a process of its own; its results and its cache are below ``folder``."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.environ["STUDIOGAN_GUIDANCE_CACHE"] = str(folder / "cache")
        said = os.open(folder / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout = os.fdopen(1, "w")
        sys.stderr = os.fdopen(2, "w", buffering=1)
        torch.set_num_threads(1)
        words = command.split()
        main([*words, "--out", str(folder / OUT.get(words[0], "out"))])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(process: int, patience: float = 240) -> int:
    """The exit code of a process, negative for a signal."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return 999  # it hung


def run(command: str, folder: Path) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    return wait(start(command, folder))


def half_written(folder: Path) -> list[str]:
    """The files that cannot be read to their end; temporary files are not among them, as nothing reads them."""
    damaged = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir() or path.name == "said.txt" or TEMPORARY.fullmatch(path.name):
            continue
        try:
            _read(path)
        except Exception as error:
            damaged.append(f"{path.relative_to(folder)}: {type(error).__name__} {error}")
    return damaged


def _read(path: Path) -> None:
    if path.suffix == ".npz":
        with np.load(path) as file:
            for name in file.files:
                file[name]
    elif path.suffix == ".png":
        Image.open(path).load()
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".jsonl":
        content = path.read_bytes()
        assert content == b"" or content.endswith(b"\n"), "its last line has no end"
        for line in content.splitlines():
            json.loads(line)
    elif path.suffix == ".json":
        json.loads(path.read_text())
    elif path.suffix == ".yaml":
        yaml.safe_load(path.read_text())
    elif path.suffix == ".state":
        torch.load(path, weights_only=True)
    elif path.suffix in (".csv", ".txt"):
        assert path.read_text().endswith("\n"), "its last line has no end"
    elif path.suffix != ".lock" and path.parent.name != results.LOCKS:
        raise ValueError("a file that nobody expects")


def rows(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of results.jsonl."""
    path = folder / "out" / results.FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def differences(verb: str, folder: Path, whole: Path) -> list[str]:
    """What a folder has otherwise than that of an uninterrupted run."""
    wrong = []
    names = {path.relative_to(whole / "out") for path in (whole / "out").rglob("*") if path.is_file()}
    found = {path.relative_to(folder / "out") for path in (folder / "out").rglob("*") if path.is_file()}
    found = {name for name in found if not TEMPORARY.fullmatch(name.name)}
    for name in sorted(names ^ found):
        wrong.append(f"{'lost' if name in names else 'too many'}: {name}")

    # Files byte by byte, results by what they measure.
    for name in sorted(names & found):
        is_fixed = name.name not in (*TIMES, results.FILE) and name.suffix not in (".npz", ".state")
        content = (folder / "out" / name).read_bytes().replace(bytes(folder), bytes(whole))
        if is_fixed and (whole / "out" / name).read_bytes() != content:
            wrong.append(f"different: {name}")
    for name in sorted(name for name in names & found if name.suffix == ".npz"):
        with np.load(whole / "out" / name) as one, np.load(folder / "out" / name) as other:
            if one.files != other.files or any(not np.array_equal(one[key], other[key]) for key in one.files):
                wrong.append(f"different: {name}")

    expected = {results.identity(row): row["metrics"] for row in rows(whole)}
    counts = Counter(results.identity(row) for row in rows(folder))
    for row in rows(folder):
        if expected.get(results.identity(row)) != row["metrics"]:
            wrong.append(f"different: a row of {row['sampler']} {row['options']}")
    if set(counts) != set(expected):
        wrong.append(f"lost: {len(set(expected) - set(counts))} rows")
    if verb not in APPENDING and any(count > 1 for count in counts.values()):
        wrong.append(f"repeated: {sum(counts.values()) - len(counts)} rows")
    return wrong


def temporaries(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if TEMPORARY.fullmatch(path.name)]


class Points:
    """Points of all verbs; the uninterrupted run of a verb is made at its first point."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.pick = random.Random(seed)
        self.whole: dict[str, tuple[Path, float]] = {}
        self.number = 0

    def expected(self, verb: str) -> tuple[Path, float]:
        """The folder of the uninterrupted run of a verb, and the seconds that it took."""
        if verb not in self.whole:
            folder = self.folder / f"whole-{verb}"
            started = time.monotonic()
            code = run(VERBS[verb], folder)
            assert code == 0, (folder / "said.txt").read_text()
            self.whole[verb] = (folder, time.monotonic() - started)
            assert not half_written(folder), half_written(folder)
        return self.whole[verb]

    def point(self, verb: str, how: str) -> Report:
        """One point: ``how`` is KILL, TERM, or one of two processes: pair-stop, pair-kill, pair-term."""
        whole, seconds = self.expected(verb)
        self.number += 1
        folder = self.folder / f"{self.number}-{verb}"
        folder.mkdir()
        moment = self.pick.uniform(0.02, 1.0) * seconds
        report = Report(f"{verb} {how} after {moment:.2f} of {seconds:.2f} s")
        if how.startswith("pair"):
            self._pair(verb, how, folder, moment, report)
        else:
            self._single(verb, how, folder, moment, report)

        # The same command again, to its end.
        before = rows(folder)
        code = run(VERBS[verb], folder)
        if code:
            report.wrong.append(f"the same command again: exit code {code}: {self._said(folder)}")
        else:
            after = rows(folder)
            if after[: len(before)] != before:
                report.wrong.append("lost: rows that were there")
            report.wrong += [f"half-written at the end: {line}" for line in half_written(folder)]
            report.wrong += differences(verb, folder, whole)
        if not report.wrong:
            shutil.rmtree(folder)
        return report

    def _single(self, verb: str, how: str, folder: Path, moment: float, report: Report) -> None:
        process = start(VERBS[verb], folder)
        time.sleep(moment)
        self._send(process, signal.SIGKILL if how == "KILL" else signal.SIGTERM)
        code = wait(process)
        wanted = (0, -signal.SIGKILL) if how == "KILL" else (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        if code not in wanted:
            report.wrong.append(f"exit code {code}: {self._said(folder)}")
        if how == "TERM" and temporaries(folder):
            report.wrong.append(f"temporary files: {temporaries(folder)}")
        if how == "TERM" and "Traceback" in (folder / "said.txt").read_text():
            report.wrong.append(f"traceback: {self._said(folder)}")
        report.wrong += [f"half-written: {line}" for line in half_written(folder)]

    def _pair(self, verb: str, how: str, folder: Path, moment: float, report: Report) -> None:
        """Two processes on one folder, of which the first is stopped for a while, or ended."""
        first = start(VERBS[verb], folder)
        time.sleep(self.pick.uniform(0, 0.3))
        second = start(VERBS[verb], folder)
        time.sleep(moment)
        if how == "pair-stop":
            self._send(first, signal.SIGSTOP)
            time.sleep(1.0)
            report.wrong += [f"half-written: {line}" for line in half_written(folder)]
            self._send(first, signal.SIGCONT)
        else:
            self._send(first, signal.SIGKILL if how == "pair-kill" else signal.SIGTERM)

        # A second training is refused; everything else shares the work.
        codes = [wait(first), wait(second)]
        allowed = [{0}, {0}]
        if how != "pair-stop":
            allowed[0] = {0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM}
        if verb == "train":
            allowed = [codes_of | {2} for codes_of in allowed]
        for code, good in zip(codes, allowed):
            if code not in good:
                report.wrong.append(f"exit codes {codes}: {self._said(folder)}")
                break
        report.wrong += [f"half-written: {line}" for line in half_written(folder)]

    def _send(self, process: int, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended
            os.kill(process, number)

    def _said(self, folder: Path) -> str:
        return (folder / "said.txt").read_text()[-1500:]


def plan(points: int, pick: random.Random) -> list[tuple[str, str]]:
    """Verbs and signals in turn: single processes first, then pairs, so that each comes about as often."""
    single = [(verb, how) for verb in VERBS for how in ("KILL", "TERM")]
    pairs = [(verb, how) for verb in SHARED for how in ("pair-stop", "pair-kill", "pair-term")]
    chosen = [*single, *pairs]
    while len(chosen) < points:
        chosen += single
    first = chosen[:points]
    if points < len(single) + len(pairs):
        first = pick.sample([*single, *pairs], points)
    return first


def go() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="verbs, separated by commas")
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="kill-points-") as name:
        points = Points(Path(name), arguments.seed)
        chosen = plan(arguments.points, points.pick)
        if arguments.only:
            chosen = [pair for pair in chosen if pair[0] in arguments.only.split(",")]
        counts = Counter[str]()
        wrong = Counter[str]()
        for verb, how in chosen:
            report = points.point(verb, how)
            counts[f"{verb} {how}"] += 1
            print(report.name, "|", "; ".join(report.wrong) or "whole", file=sys.stderr, flush=True)
            for line in report.wrong:
                wrong[line.partition(":")[0]] += 1
    print(json.dumps({"points": sum(counts.values()), "by verb and signal": counts, "wrong": wrong}))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(go())

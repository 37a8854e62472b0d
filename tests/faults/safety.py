"""What hostile files cost: seconds, and memory above that of the imports, until they are refused.

    python tests/faults/safety.py

Prints a JSON object with the seconds and megabytes of each file; exit code 1 if one was not refused, or code was run.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ["STUDIOGAN_GUIDANCE_DEVICE"] = "cpu"

import fault_files as files
from click.testing import CliRunner
from fault_files import Maker, Place, fixed, joint

import studiogan_guidance.evaluation.evaluation
import studiogan_guidance.evaluation.sample
import studiogan_guidance.training  # noqa: F401
from studiogan_guidance.cli import main

STATE = "joint.state"
WILD = {"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}


def learned(maker: Maker) -> tuple[str | Maker, ...]:
    """A command that reads a learned joint."""
    return ("sample", "--num", "1", "-o", "joint=learned", "-o", files.prefixed("joint_ckpt=", maker))


def network(kind: str, content: bytes) -> tuple[str | Maker, ...]:
    """A command that reads a feature network."""
    maker = files.prefixed(f"{kind}:", fixed("net.pt", content))
    return ("eval", "--num", "20", "--metrics", "fid", "--backbone", maker)


def moments(content: bytes) -> tuple[str | Maker, ...]:
    """A command that reads statistics of real images."""
    return ("eval", "--num", "20", "--metrics", "fid", "--reference-stats", fixed("r.npz", content))


def commands() -> dict[str, tuple[str | Maker, ...]]:
    """A command that reads each hostile file."""
    return {
        "YAML bomb under a known key": ("sample", "-c", files.bomb("classes")),
        "YAML bomb in a list of samplers": ("compare", "-c", files.bomb("compare")),
        "YAML of brackets": ("sample", "-c", files.yaml("k: " + "[" * 5000 + "]" * 5000)),
        "YAML of 20 MB": ("sample", "-c", files.yaml("num: 3\n# " + "x" * 20_000_000)),
        "safetensors, header of 2^63 bytes": learned(fixed("joint.safetensors", files.header(b"{}", 2**63))),
        "safetensors, header of 10^8 bytes": learned(fixed("joint.safetensors", files.header(b"{}", 10**8))),
        "safetensors, tensor of 4 TB": learned(fixed("joint.safetensors", files.header(json.dumps({**WILD}).encode()))),
        "safetensors, width of 10^12": learned(joint({"hidden": 10**12})),
        "safetensors, depth of 10^12": learned(joint({"depth": 10**12})),
        "zip bomb as statistics, 4 GB": moments(files.zip_bomb("mu.npy")),
        "zip bomb as TorchScript, 1 GB": network("torchscript", files.zip_bomb("data.pkl", 1024)),
        "zip bomb as weights, 1 GB": network("dinov2", files.zip_bomb("data.pkl", 1024)),
        "zip bomb as a state, 1 GB": ("train", "@", files.zip_bomb("joint/data.pkl", 1024)),
        "pickle as statistics": moments(files.gadget()),
        "pickle in statistics": moments(files.npz(mu=files.np.array([files.Gadget()], object))),
        "pickle as TorchScript": network("torchscript", files.gadget()),
        "pickle of torch as weights": network("dinov2", files.torch_gadget()),
        "pickle as weights": network("dinov2", files.gadget()),
        "pickle of torch as a state": ("train", "@", files.torch_gadget()),
        "pickle as a joint": learned(fixed("joint.safetensors", files.gadget())),
        "YAML that calls a function": ("sample", "-c", files.yaml("num: !!python/object/apply:os.system ['touch x']")),
    }


def peak() -> float:
    """The most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def go() -> int:
    found = {}
    wrong = []
    with tempfile.TemporaryDirectory(prefix="safety-") as name:
        # Whatever is imported and computed once.
        os.environ["STUDIOGAN_GUIDANCE_CACHE"] = str(Path(name) / "cache")
        for command in ("sample --num 1", "eval --num 20 --metrics fid", "train -o steps=1 -o eval_every=0"):
            CliRunner().invoke(main, [*command.split(), "--out", f"{name}/first"])

        for number, (what, command) in enumerate(commands().items()):
            folder = Path(name) / str(number)
            (folder / "out").mkdir(parents=True)
            os.chdir(folder)
            arguments = [word(Place(folder)) if callable(word) else word for word in command]
            if arguments[1] == "@":  # the state of a training stands in the folder of its results
                (folder / "out" / STATE).write_bytes(arguments[2])
                arguments = arguments[:1]

            before = peak()
            started = time.perf_counter()
            result = CliRunner().invoke(main, [*arguments, "--out", str(folder / "out")])
            seconds = time.perf_counter() - started
            found[what] = {"seconds": round(seconds, 3), "megabytes": round(peak() - before, 1)}
            if result.exit_code != 2 or (folder / files.MARKER).exists() or (folder / "x").exists():
                wrong.append(f"{what}: exit code {result.exit_code}, {result.output[-300:]}")
        os.chdir("/")
    print(json.dumps({"refused": found, "wrong": wrong}, indent=1))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(go())

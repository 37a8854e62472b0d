"""The table of faults: verb and arguments, and the words that the one line of the refusal must hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import fault_files as files
import numpy as np
import torch
from fault_files import Maker, bomb, fixed, joint, rows, torchscript, yaml
from PIL import Image

LONG = "x" * 300  # characters of a name, more than a file system takes
STATE = torch.zeros  # of any shape


@dataclass(frozen=True)
class Fault:
    """One row of the table.

    Attributes:
        kind: of the fault.
        arguments: the verb and what follows; functions make files and return their paths.
        words: all of them stand in the line.
        environment: variables of the environment; functions as in ``arguments``.
        needs_host: whether it is about the host, so that a checkout must be there.
        own_out: whether the row gives ``--out``.
        leaves: names of files that may be left, because the command had begun with what it was asked for.
    """

    kind: str
    arguments: tuple[str | Maker, ...]
    words: tuple[str, ...]
    environment: Mapping[str, str | Maker] = field(default_factory=dict)
    needs_host: bool = False
    own_out: bool = False
    leaves: tuple[str, ...] = ()

    @property
    def verb(self) -> str:
        """The verb."""
        return str(self.arguments[0])


FAULTS: list[Fault] = []


def fault(kind: str, command: str, *more: str | Maker, says: str, **facts: Any) -> None:
    """Add a row: words of the command line, then more of them, and the words of the answer between bars."""
    arguments = (*command.split(), *more)
    FAULTS.append(Fault(kind, arguments, tuple(says.split("|")), **facts))


# Configurations: what YAML allows, and what is no YAML.

for verb, key in (
    ("sample", "classes"),
    ("eval", "metrics"),
    ("sweep --grid scale=1", "which"),
    ("compare", "compare"),
    ("train", "stages"),
    ("sample", "seed"),
    ("eval", "ckpt"),
    ("tune", "k"),
    ("sample", "sampler"),
):
    fault("YAML bomb", f"{verb} -c", bomb(key), says="a.yaml")
fault("YAML bomb", "sample -c", yaml("sampler: {name: gandance, scale: 1}\n" + files.BOMB), says="a.yaml")

fault("recursion", "sample -c", yaml("sampler: &a {name: ddls, base: *a}"), says="a.yaml")
fault("recursion", "eval -c", yaml("classes: &a [*a]"), says="a.yaml")
fault("recursion", "compare -c", yaml("compare: &a [{name: ddls, base: *a}]"), says="a.yaml")
fault("recursion", "sample -c", yaml("k: " + "[" * 5000 + "]" * 5000), says="a.yaml")
fault("recursion", "tune -c", yaml("k: " + "{a: " * 5000 + "1" + "}" * 5000), says="a.yaml")
deep = [f"{'base.' * i}base=ddls" for i in range(40)]
fault("recursion", "sample --sampler ddls", *(word for option in deep for word in ("-o", option)), says="base")
fault("recursion", "compare --with", ",".join(["ddls:steps=1", *deep]), says="base")

for verb, text, says in (
    ("sample", "num: 8\nnum: 9\n", "a.yaml|line 2|'num'|keep one"),
    ("eval", "sampler: {name: gandance, scale: 1, scale: 2}\n", "a.yaml|'scale'|keep one"),
    ("sample", "", "a.yaml|mapping"),
    ("eval", "# nothing\n", "a.yaml|mapping"),
    ("train", "- num\n- 3\n", "a.yaml|mapping|list"),
    ("tune", "3\n", "a.yaml|mapping|int"),
    ("sweep --grid scale=1", "num: [1\n", "a.yaml"),
    ("sample", "num:\t- 3\n\t- 4\n", "a.yaml"),
    ("compare --with plain", "num: *x\n", "a.yaml|alias"),
    ("sample", "num: !!python/object/apply:os.system ['touch code-was-run']\n", "a.yaml|python"),
    ("sample", "num: !!python/name:os.system\n", "a.yaml|python"),
    ("sample", "num: 'x\n", "a.yaml"),
    ("sample", "nun: 3\n", "nun|did you mean 'num'"),
    ("sample", "3: 3\n", "the key 3 is no text"),
    ("sample", "? [a, b]\n: 3\n", "a.yaml"),
    ("sample", "a: 1\n---\nb: 2\n", "a.yaml"),
    ("sample", "'': 1\n", "unknown key"),
):
    fault("YAML", f"{verb} -c", yaml(text), says=says)
fault("YAML", "sample -c", yaml("num: 3\n".encode("utf-16")), says="a.yaml")
fault("YAML", "sample -c", yaml(b"\xff\xfe\x00\x01\x02"), says="a.yaml")
fault("YAML", "sample -c", yaml(b"num: \x003\n"), says="a.yaml")
fault("YAML", "eval -c", files.at("missing.yaml"), says="missing.yaml")
fault("YAML", "eval -c", "", says="configuration")
fault("YAML", "eval -c", "CIFAR10/BigGAN-gandanse.yaml", says="did you mean|CIFAR10/BigGAN-gandance.yaml")
fault("YAML", "tune -c", files.folder("a.yaml"), says="a.yaml|folder")
fault("YAML", "train -c", files.pipe("a.yaml"), says="a.yaml|pipe")
fault("YAML", "sample -c", files.loop("a.yaml"), says="a.yaml")
fault("YAML", "sample -c", "a\0b", says="no configuration")
fault("YAML", "sample -c", f"{LONG}.yaml", says="no configuration")
fault("YAML", "sample -c", yaml("num: 3\n# " + "x" * 20_000_000), says="a.yaml")

for key in ("num", "batch_size", "k", "splits", "seed", "restat"):
    for value in ("abc", ".nan", "[]", "1.5", "true", "{a: 1}"):
        if value in ("abc", ".nan", "[]") or key in ("num", "seed"):
            fault("wrong type", "sample -c", yaml(f"{key}: {value}\n"), says=f"{key}|whole number|found")
for text, says in (
    ("out: []", "out|text"),
    ("out: 3", "out|text|3"),
    ("out: {a: 1}", "out|text"),
    ("data: 3", "data|text"),
    ("ckpt: [a]", "ckpt|text"),
    ("host_config: 3", "host_config|text"),
    ("host_config: [a]", "host_config|text"),
    ("sampler: 3", "sampler|name"),
    ("sampler: {scale: 1}", "sampler|name"),
    ("sampler: {1: 2, name: gandance}", "the key 1 is no text"),
    ("sampler: [gandance]", "sampler|name"),
    ("sampler: {name: 3}", "sampler|name"),
    ("sampler: gandance:scale", "sampler|name"),
    ("classes: {a: 1}", "classes"),
    ("classes: [[1]]", "classes"),
    ("classes: [1.5]", "classes|1.5"),
    ("classes: [true]", "classes"),
    ("metrics: [fid, fed]", "metrics|fed|did you mean 'fid'"),
    ("metrics: [[fid]]", "metrics"),
    ("which: [beste]", "which|beste|did you mean 'best'"),
    ("labels: 3", "labels|text"),
    ("labels: unifrom", "labels|did you mean 'uniform'"),
    ("device: 7", "device|text"),
    ("compare: [3]", "compare|name"),
    ("stages: [3]", "stage|name"),
    ("compile: maybe", "compile|true or false"),
    ("compare_plain: 1", "compare_plain|true or false"),
    ("num: 0", "num|1 up"),
    ("num: -1", "num|1 up"),
    ("k: 0", "k|1 up"),
    ("splits: 0", "splits|1 up"),
    ("batch_size: 0", "batch_size|1 up"),
    ("restat: -1", "restat|0 up"),
    ("seed: -1", "seed|0 up"),
    ("seed: 2147483648", "seed|2147483648"),
    ("seed: 99999999999999999999999999", "seed|99999999999999999999999999"),
    ("num: 1000000000000", "1000000000000"),
):
    fault("wrong value", "eval -c", yaml(f"{text}\n"), says=says, own_out=text.startswith("out"))
fault("wrong value", "train -c", yaml("stages: [foo]\n"), says="unknown stage 'foo'|joint")
fault("wrong value", "sample -c", yaml("DATA: {}\nhost_config: a\n"), says="host_config|keep one")

# Options of samplers and stages.

for option, says in (
    ("scale", "-o takes key=value|'scale'"),
    ("=3", "-o takes key=value|'=3'"),
    ("scale=", "-o takes key=value|'scale='"),
    ("scale=nan", "scale|nan"),
    ("scale=inf", "scale|inf"),
    ("scale=-inf", "scale|inf"),
    ("scale=1e400", "scale|1e400"),
    ("scale=abc", "gandance.scale must be a number|abc"),
    ("scale=1_000", "gandance.scale must be a number|1_000"),
    ("scale=\u0661", "gandance.scale must be a number|\u0661"),
    ("scale=true", "gandance.scale must be a number|true"),
    ("scale=[1]", "gandance.scale must be a number|[1]"),
    ("scal=1", "scal|did you mean 'scale'"),
    ("joint=foo", "foo|known"),
    ("joint_ckpt=/nowhere/joint.safetensors", "joint_ckpt"),
    ("scale.x=1", "scale"),
    ("base=plain", "base"),
    ("rows=5-1", "rows"),
    (f"scale={'9' * 400}", "scale"),
):
    fault("option", "sample -o", option, says=says)
fault("option", "sample -o scale=1 -o scale=2", says="each option once|scale=2")
for verb, says in (
    ("sample --sampler gandanse", "gandanse|did you mean 'gandance'"),
    ("eval --sampler -o", "unknown sampler '-o'"),
    ("eval --sampler ddls:steps=3", "ddls:steps=3|known"),
    ("sample --sampler drs -o base=foo", "foo|known"),
    ("sample --sampler ddls -o steps=-1", "steps|-1"),
    ("sample --sampler ddls -o steps=1e12", "steps"),
    ("sample --sampler ddls -o step=nan", "step|nan"),
    ("sample --sampler hubness -o pool=1e12", "pool"),
    ("eval --sampler hubness -o pool=0", "pool|0"),
    ("sample --sampler simplicial -o cells=1000000", "cells"),
    ("sample --sampler cluster_truncation -o draws=1e14", "draws"),
    ("sample --sampler metropolis -o steps=1e12", "steps"),
    ("sample --sampler isir -o particles=1e12", "particles"),
    ("sample --sampler truncation -o psi=nan", "psi|nan"),
    ("sample --sampler drs -o calibration=foo", "calibration|foo"),
    ("sample --sampler autoguidance", "autoguidance"),
    ("sample --sampler autoguidance -o reference=/nowhere", "/nowhere"),
    ("sample --sampler gandance -o joint=learned", "joint_ckpt"),
    ("sample --sampler gandance -o joint=class_subset -o classes=77", "no option 'classes'|did you mean"),
):
    fault("sampler", verb, says=says)
for stage, says in (
    ("train --stage foo", "foo|joint"),
    ("train -o steps=nan", "steps"),
    ("train -o steps=-1", "steps|-1"),
    ("train -o batch=0", "batch|0"),
    ("train -o batch=1e12", "batch"),
    ("train -o lr=0", "lr|0"),
    ("train -o lr=nan", "lr"),
    ("train -o hidden=0", "hidden|0"),
    ("train -o hidden=1e12", "hidden"),
    ("train -o depth=1e9", "depth"),
    ("train -o distance=foo", "distance|foo"),
    ("train -o latent=0", "objective"),
    ("train -o latent=-1", "objective|-1"),
    ("train -o base=learned", "base|learned"),
    ("train -o scales=", "scales"),
    ("train -o steps=10 -o steps=20", "each option once|steps=20"),
    ("train --log foo", "--log|foo"),
    ("train --stage strengths", "joint"),
):
    fault("stage", stage, says=says)

# Flags.

for command, says in (
    ("sample --num 0", "num|1 up|0"),
    ("sample --num -1", "num|1 up|-1"),
    ("eval --num 1e12", "--num|1e12"),
    ("eval --num 1000000000000", "1000000000000"),
    ("eval --num 3", "at least|3"),
    ("sample --num 1.5", "--num|1.5"),
    ("sample --num", "--num"),
    ("sample --seed -1", "seed|-1"),
    ("sample --seed 2147483648 --num 1", "2147483648"),
    ("sample --seed 2147483640 --num 20", "2147483640"),
    ("sample --seed 4611686018427387904", "4611686018427387904"),
    ("sample --classes 10", "10|0 to 9"),
    ("sample --classes 3,-1", "-1"),
    ("sample --classes 3,,4", "--classes|3,,4"),
    ("sample --classes x", "--classes|x"),
    ("sample --classes 9-0", "9-0"),
    ("sample --classes 0-99999999999", "99999999999|0 to 9"),
    ("sample --scales 1,nan", "nan"),
    ("sample --scales 1,x", "--scales|1,x"),
    ("sample --scales 1 --sampler plain", "scale"),
    ("sample --labels foo", "labels|foo"),
    ("sample --noise-mode foo", "noise_mode|foo"),
    ("sample --device foo", "--device|foo"),
    ("sample --device cuda:99", "cuda:99"),
    ("sample --device cuda:-1", "cuda:-1"),
    ("sample --device meta", "--device|meta"),
    ("sample --batch-size 0", "batch_size|1 up"),
    ("sample --restat -1", "restat|0 up"),
    ("sample --foo", "No such option|--foo"),
    ("sample foo", "unexpected extra argument|foo"),
    ("sample --ckpt /nowhere", "--ckpt|host"),
    ("sample --data /nowhere", "--data|host"),
    ("eval --metrics fed", "metrics|fed|did you mean 'fid'"),
    ("eval --metrics fid, --num 20", "--metrics|fid,"),
    ("eval --reference foo", "reference|foo"),
    ("eval --backbone foo", "--backbone|foo"),
    ("eval --backbone torchscript:/nowhere.pt", "/nowhere.pt"),
    ("eval --backbone dinov2:/nowhere.pth", "/nowhere.pth"),
    ("eval --backbone torchscript:", "--backbone"),
    ("eval --resizer foo", "resizer|foo"),
    ("eval --resize-on foo", "resize_on|foo"),
    ("eval --pre-resizer foo", "pre_resizer|foo"),
    ("sweep --sampler drs", "grid"),
    ("sweep --grid scale", "--grid|scale"),
    ("sweep --grid scale=", "--grid|scale"),
    ("sweep --grid scale=1,,2", "--grid"),
    ("sweep --grid scale=1 --grid scale=2", "once"),
    ("sweep --grid scale=1,nan", "scale|nan"),
    ("sweep --grid scale=1,x", "scale|x"),
    ("sweep --grid scal=1", "did you mean 'scale'"),
    ("sweep --grid joint=foo", "foo"),
    ("tune --over scale", "--over|scale"),
    ("tune --over scale=1", "--over|scale=1"),
    ("tune --over scale=2:1", "scale=2:1"),
    ("tune --over scale=nan:1", "scale=nan:1"),
    ("tune --over scale=1:inf", "scale=1:inf"),
    ("tune --over scale=-1e308:1e308", "scale=-1e+308:1e+308"),
    ("tune --over scal=1:2", "scal|did you mean 'scale'"),
    ("tune --over joint=1:2", "joint"),
    ("tune --objective foo", "objective|foo"),
    ("tune --budget 3", "budget|3"),
    ("tune --budget -1", "budget|-1"),
    ("tune --repeats 1", "repeats"),
    ("tune --repeats 1e9", "--repeats|1e9"),
    ("tune --per-layer -1", "--per-layer"),
    ("tune --per-layer 1000000000", "1000000000"),
    ("tune --min-recall nan", "min-recall|nan"),
    ("tune --min-recall 2", "min-recall|2"),
    ("tune --min-recall -1", "min-recall|-1"),
    ("tune --sampler plain", "plain"),
    ("compare", "--with"),
    ("compare --with foo", "foo|known"),
    ("compare --with gandance:scale", "--with|gandance:scale"),
    ("compare --with gandance:scale=x", "scale|x"),
    ("compare --with :scale=1", "--with|:scale=1"),
    ("compare --with plain --all", "--all"),
    ("compare --with plain --repeats 0", "--repeats|0"),
    ("compare --with plain --repeats 99999999999", "--repeats|99999999999"),
    ("compare --with plain --repeats x", "--repeats|x"),
    ("compare --all /nowhere", "RESULTS|--all"),
):
    fault("flag", command, says=says)
fault("flag", "eval --num 1" + "0" * 30, says="num")
fault(
    "flag",
    "sweep --grid",
    "steps=" + ",".join(map(str, range(1000))),
    "--grid",
    "scale=" + ",".join(map(str, range(1000))),
    says="1000000 points",
)
fault(
    "flag",
    "sweep --grid",
    "scale=" + ",".join(map(str, range(1000))),
    "--grid",
    "psi=" + ",".join(f"0.{i}" for i in range(1000)),
    says="points",
)

# The other verbs.

for command, says in (
    ("list foo", "foo|known"),
    ("list gandanse", "did you mean 'gandance'"),
    ("list a b", "unexpected extra argument"),
    ("list --foo", "No such option"),
    ("foo", "no command is called 'foo'"),
    ("evl", "did you mean 'eval'"),
    ("report /nowhere", "/nowhere is no folder"),
    ("models --foo", "No such option"),
    ("completion tcsh", "bash|zsh|fish"),
    ("setup --source /nowhere", "/nowhere"),
    ("doctor --studiogan", "requires an argument"),
    ("doctor foo", "unexpected extra argument"),
    ("run --script foo", "foo|main|evaluate"),
    ("run --device foo", "foo|auto"),
    ("run --processes 0", "--processes|0"),
    ("run --studiogan /nowhere -- -t", "/nowhere"),
):
    fault("other verbs", command, says=says, own_out=True)

# Where results go.

fault("out", "sample --num 1 --out", fixed("o", b"x"), says="cannot write into|another --out", own_out=True)
fault("out", "eval --num 20 --out", files.prefixed("", fixed("o/p", b"x")), says="cannot write into", own_out=True)
fault("out", "sweep --grid scale=1 --out", "a\0b", says="cannot write into|null", own_out=True)
fault("out", "tune --out", LONG, says="cannot write into|long", own_out=True)
fault("out", "train --out", "/proc/nowhere", says="cannot write into|/proc/nowhere", own_out=True)
fault("out", "compare --with plain --out", "/sys", says="cannot write into|/sys", own_out=True)
fault("out", "eval --num 20 --out", files.loop("o"), says="cannot write into", own_out=True)
fault("out", "sample --num 1 --out", files.pipe("o"), says="cannot write into", own_out=True)
for verb in ("eval", "sweep --grid scale=1", "tune", "compare --with plain"):
    fault(
        "out",
        f"{verb} --num 20 --out",
        files.within("o", files.folder("results.jsonl")),
        says="results.jsonl",
        own_out=True,
    )
    fault(
        "out",
        f"{verb} --num 20 --out",
        files.within("o", files.pipe("results.jsonl")),
        says="results.jsonl",
        own_out=True,
    )
fault("out", "train --out", files.within("o", files.pipe("joint.state")), says="joint.state|remove", own_out=True)
fault("out", "train --out", files.within("o", fixed("joint.state", b"PK\3\4")), says="joint.state|remove", own_out=True)
fault(
    "out",
    "train --out",
    files.within("o", fixed("joint.state", files.torch_gadget())),
    says="joint.state",
    own_out=True,
)
for damage in ({}, {"identity": "{}"}, {"identity": "[]", "result": "{}", "step": 3}, {"identity": 3, "result": 3}):
    fault(
        "out",
        "train --out",
        files.within("o", fixed("joint.state", files.torch_bytes(damage))),
        says="joint.state|remove",
        own_out=True,
    )

# Feature networks.

for kind, says in (
    ("nan", "net.pt|finite"),
    ("nan for bright images", "net.pt|finite"),
    ("one number", "net.pt|features"),
    ("half the images", "net.pt|features"),
    ("raises", "net.pt|failed"),
):
    fault("feature network", "eval --num 20 --metrics fid --backbone", torchscript(kind), says=says)
fault("feature network", "sweep --grid scale=1.5 --num 20 --metrics fid --backbone", torchscript("nan"), says="finite")
fault("feature network", "compare --with plain --num 20 --metrics prdc --backbone", torchscript("nan"), says="finite")
fault("feature network", "tune --num 20 --backbone", torchscript("nan"), says="finite")
fault(
    "feature network",
    "train -o steps=2 --num 20 --backbone",
    torchscript("nan"),
    says="finite",
    leaves=("joint.jsonl",),
)
for spec in ("torchscript:", "dinov2:"):
    for maker, says in (
        (fixed("net.pt", b""), "net.pt"),
        (fixed("net.pt", files.LFS), "net.pt|Git LFS"),
        (fixed("net.pt", files.HTML), "net.pt"),
        (fixed("net.pt", b"PK\3\4" + bytes(100)), "net.pt"),
        (fixed("net.pt", files.torch_gadget()), "net.pt"),
        (fixed("net.pt", files.gadget()), "net.pt"),
        (fixed("net.pt", files.torch_bytes({"a": torch.zeros(3)})), "net.pt"),
        (fixed("net.pt", files.zip_bomb("data.pkl", 1024)), "net.pt"),
        (files.pipe("net.pt"), "net.pt|pipe"),
        (files.folder("net.pt"), "net.pt|folder"),
        (files.loop("net.pt"), "net.pt"),
    ):
        fault("feature network", "eval --num 20 --metrics fid --backbone", files.prefixed(spec, maker), says=says)

# Learned joints.


def _learned(maker: Maker, says: str) -> None:
    path = files.prefixed("joint_ckpt=", maker)
    fault("learned joint", "sample --num 1 -o joint=learned -o", path, says=f"joint.safetensors|{says}")


for metadata in (
    {"depth": -1},
    {"depth": 10**12},
    {"depth": 1.5},
    {"depth": "two"},
    {"depth": float("nan")},
    {"depth": None},
    {"hidden": -8},
    {"hidden": 10**12},
    {"hidden": "wide"},
    {"hidden": [8]},
    {"base": ["class_mean"]},
    {"base": "foo"},
    {"base": "learned"},
    {"base": None},
    {"format": 99},
    {"format": "x"},
    {"z_width": 10**12},
    {"rows": 10**12},
    {"generator_sha256": "0" * 64},
    {"generator_sha256": 3},
    {"backbone": "big_resnet"},
):
    _learned(joint(metadata), "")
_learned(joint(tensors=lambda state: state.update(more=STATE(3))), "more")
_learned(joint(tensors=lambda state: state.pop("unit")), "unit")
_learned(joint(tensors=lambda state: state.update(unit=STATE(3))), "unit")
_learned(joint(tensors=lambda state: state.update(unit=STATE(state["unit"].shape) * float("nan"))), "")
_learned(joint(tensors=lambda state: state.clear()), "")
for content, says in (
    (b"", ""),
    (b"\0" * 8, ""),
    (files.LFS, "Git LFS"),
    (files.HTML, ""),
    (files.gadget(), ""),
    (files.joint_bytes()[:-1], ""),
    (files.joint_bytes()[:200], ""),
    (files.joint_bytes() + b"0", ""),
    (files.header(b"{}", 2**63), ""),
    (files.header(b"{}", 10**8), ""),
    (files.header(b"[" * 100_000), ""),
    (files.header(b"not json"), ""),
    (files.header(json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()), ""),
    (files.header(json.dumps({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}).encode()) + bytes(4), ""),
    (files.header(json.dumps({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}).encode()) + bytes(4), ""),
    (files.header(json.dumps({"__metadata__": {"studiogan_guidance.joint": "{"}}).encode()), ""),
    (files.header(json.dumps({"__metadata__": {"studiogan_guidance.joint": "3"}}).encode()), ""),
    (files.header(json.dumps({"__metadata__": {"studiogan_guidance.joint": "[" * 9000}}).encode()), ""),
):
    _learned(fixed("joint.safetensors", content), says)
_learned(files.pipe("joint.safetensors"), "pipe")
_learned(files.folder("joint.safetensors"), "folder")
_learned(files.loop("joint.safetensors"), "")
_learned(files.at("joint.safetensors"), "train --stage joint")

# Results that are read again.

for maker, says in (
    (files.at("results.jsonl"), "results.jsonl"),
    (files.folder("nothing"), "results.jsonl"),
    (files.pipe("results.jsonl"), "results.jsonl|pipe"),
    (rows(b""), "no results"),
    (rows(b"\x00\xff\xfe binary"), "no results"),
    (rows(b'{"sampler": "plain", "options": {}, "metr'), "no results"),
    (rows([1, 2]), "no results"),
    (rows(b"3", b"null", b'"x"', b"[" * 100_000, b'{"a":' * 100_000), "no results"),
    (rows({"metrics": 3}), "no results"),
    (rows({"metrics": {"fid": "low"}}), "no results"),
    (rows({"metrics": {"fid": 10**400}}), "no results"),
    (rows({"cost": {"synthesis": []}}), "no results"),
    (rows({"seconds": "long"}), "no results"),
    (rows({"protocol": [1]}), "no results"),
    (rows({"generator": "x"}), "no results"),
    (rows({"sampler": 3}), "no results"),
    (rows({"options": "scale=1"}), "no results"),
    (rows({}, {"sampler": "ddls", "protocol": {"num": 11, "seed": 0}}), "different num"),
    (rows({}, {"sampler": "ddls", "protocol": {"num": 10, "seed": 5}}), "different seed"),
    (rows({}, {"sampler": "ddls", "generator": {"sha256": "b"}}), "different generator"),
):
    fault("results", "compare", maker, says=says)
fault("results", "compare --repeats 3", rows({}), says="RESULTS|--repeats")
fault("results", "compare", "a\0b", says="no results")

# The environment.

for name, value, command, says in (
    ("WORLD_SIZE", "two", "eval --num 20", "WORLD_SIZE|two"),
    ("WORLD_SIZE", "-1", "sample --num 1", "WORLD_SIZE|-1"),
    ("WORLD_SIZE", "0", "eval --num 20", "WORLD_SIZE|0"),
    ("WORLD_SIZE", "2", "sample --num 1", "sample|one process"),
    ("WORLD_SIZE", "2", "eval --num 20", "torchrun"),
    ("LOCAL_RANK", "first", "sample --num 1", "LOCAL_RANK|first"),
    ("STUDIOGAN_GUIDANCE_DEVICE", "tpu", "sample --num 1", "STUDIOGAN_GUIDANCE_DEVICE|tpu"),
    ("STUDIOGAN_GUIDANCE_DEVICE", "cuda:99", "eval --num 20", "STUDIOGAN_GUIDANCE_DEVICE|cuda:99"),
    ("STUDIOGAN_ROOT", "/nowhere", "run -- -t", "/nowhere"),
):
    fault("environment", command, says=says, environment={name: value}, own_out=command.startswith("run"))

fault(
    "environment", "eval --num 20", says="torchrun", environment={"WORLD_SIZE": "2", "RANK": "x", "MASTER_ADDR": "::1"}
)

# Statistics of real images as files.

for content, says in (
    (b"", ""),
    (b"text", ""),
    (files.LFS, "Git LFS"),
    (files.HTML, ""),
    (files.gadget(), ""),
    (files.npz(a=np.zeros(3)), "mu|sigma"),
    (files.npz(mu=np.zeros(64)), "sigma"),
    (files.npz(sigma=np.eye(64)), "mu"),
    (files.npz(mu=np.zeros(3), sigma=np.eye(3)), "3"),
    (files.npz(mu=np.zeros(64), sigma=np.eye(3)), "sigma"),
    (files.npz(mu=np.zeros((2, 64)), sigma=np.eye(64)), "mu"),
    (files.npz(mu=np.full(64, np.nan), sigma=np.eye(64)), "finite"),
    (files.npz(mu=np.zeros(64), sigma=np.full((64, 64), np.inf)), "finite"),
    (files.npz(mu=np.array(["a"] * 64), sigma=np.eye(64)), "mu"),
    (files.npz(mu=np.array([None] * 64), sigma=np.eye(64)), "mu"),
    (files.npz(mu=np.zeros(64), sigma=np.array([files.Gadget()], object)), "sigma"),
    (files.npz(mu=np.zeros(64), sigma=np.arange(4096.0).reshape(64, 64)), "sigma"),
    (files.npz(mu=np.zeros(64), sigma=np.eye(64))[:-30], ""),
    (files.archive(**{"mu.npy": b"\x93NUMPY\x01\x00", "sigma.npy": b"x"}), ""),
    (files.zip_bomb("mu.npy"), ""),
):
    fault(
        "reference statistics",
        "eval --num 20 --metrics fid --reference-stats",
        fixed("r.npz", content),
        says=f"r.npz|{says}",
    )
for maker, says in (
    (files.pipe("r.npz"), "r.npz|pipe"),
    (files.folder("r.npz"), "r.npz|folder"),
    (files.at("r.npz"), "r.npz"),
):
    for verb in ("eval", "sweep --grid scale=1", "compare --with plain"):
        fault("reference statistics", f"{verb} --num 20 --metrics fid --reference-stats", maker, says=says)

for command, says in (
    ("stats --reference foo", "reference|foo"),
    ("stats --backbone foo", "--backbone|foo"),
    ("stats --backbone torchscript:/nowhere.pt", "/nowhere.pt"),
    ("stats --device tpu", "--device|tpu"),
    ("stats --batch-size 0", "batch_size|1 up"),
    ("stats --data /nowhere", "--data|host"),
    ("stats --foo", "No such option|--foo"),
):
    fault("reference statistics", command, says=says)
fault("reference statistics", "stats --backbone", torchscript("nan"), says="net.pt|finite")
fault("reference statistics", "stats -c", bomb("classes"), says="a.yaml")

# The host: configurations, checkpoints, images.


def host(kind: str, command: str, *more: str | Maker, says: str, **facts: Any) -> None:
    """As ``fault``, about the host."""
    fault(kind, command, *more, says=says, needs_host=True, **facts)


for verb, sections, says in (
    ("sample", {"DATA": {"img_size": 96}}, "img_size|96|32"),
    ("sample", {"DATA": {"img_size": "big"}}, "img_size"),
    ("sample", {"DATA": {"num_classes": 0}}, "num_classes|0"),
    ("sample", {"DATA": {"num_classes": "four"}}, "num_classes"),
    ("eval", {"DATA": None}, "DATA"),
    ("eval", {"MODEL": None}, "MODEL"),
    ("eval", {"MODEL": [1]}, "MODEL"),
    ("train", {"MODEL": {"backbone": "resnett"}}, "resnett"),
    ("tune", {"MODEL": {"z_dim": "N/A"}}, "z_dim"),
    ("sample", {"MODEL": {"z_dim": -1}}, "z_dim"),
    ("sample", {"MODEL": {"g_conv_dim": "N/A"}}, "g_conv_dim"),
    ("sample", {"MODEL": {"foo": 3}}, "foo"),
    ("sample", {"FOO": {"a": 3}}, "FOO"),
    ("sample", {"MODEL": {"g_cond_mtd": "foo"}}, "g_cond_mtd|foo"),
):
    host("host configuration", f"{verb} -c", files.changed(**sections), "--ckpt", "@", says=says)
host("host configuration", "sample -c", yaml("DATA: 3\nMODEL: {}\n"), "--ckpt", "@", says="DATA")
host("host configuration", "sample -c", files.configuration, says="ckpt")
host("host configuration", "eval -c", files.configuration, "--ckpt", "/nowhere", says="/nowhere")
host("host configuration", "sample -c", yaml("host_config: CIFAR10/BigGANN.yaml\n"), "--ckpt", ".", says="BigGANN")

for maker, says in (
    (files.checkpoint(lambda content: files.LFS), "model=G|Git LFS"),
    (files.checkpoint(lambda content: files.HTML), "model=G"),
    (files.checkpoint(lambda content: b""), "model=G"),
    (files.checkpoint(lambda content: content[:-100]), "model=G"),
    (files.checkpoint(lambda content: content[:1000]), "model=G"),
    (files.checkpoint(lambda content: files.gadget()), "model=G"),
    (files.checkpoint(lambda content: files.torch_gadget()), "model=G"),
    (files.checkpoint(lambda content: files.zip_bomb("archive/data.pkl", 1024)), "model=G"),
    (files.checkpoint(lambda content: files.torch_bytes([1, 2])), "model=G"),
    (files.checkpoint(lambda content: files.torch_bytes({"state_dict": 3})), "model=G"),
    (files.checkpoint(lambda content: files.torch_bytes({})), "model=G"),
    (files.state(lambda saved: {**saved, "state_dict": {}}), "model=G|missing"),
    (
        files.state(lambda saved: {**saved, "state_dict": {f"x{k}": v for k, v in saved["state_dict"].items()}}),
        "model=G",
    ),
    (
        files.state(lambda saved: {**saved, "state_dict": {k: v[..., None] for k, v in saved["state_dict"].items()}}),
        "model=G",
    ),
    (
        files.state(
            lambda saved: {**saved, "state_dict": {k: v.to(torch.complex64) for k, v in saved["state_dict"].items()}}
        ),
        "model=G",
    ),
    (
        files.state(
            lambda saved: {**saved, "state_dict": {k: v * float("nan") for k, v in saved["state_dict"].items()}}
        ),
        "finite",
    ),
    (files.checkpoint_of_pipes, "pipe"),
    (files.above_the_checkpoint, "model=G|ckpt"),
    (files.folder("empty"), "no"),
    (fixed("ckpt", b"x"), "ckpt"),
    (files.loop("ckpt"), "ckpt"),
    (files.at("missing"), "missing"),
):
    host("checkpoint", "sample --num 1 -c", files.configuration, "--ckpt", maker, says=says)

half = files.png(Image.effect_noise((32, 32), 50).convert("RGB"))
for maker, says in (
    (files.images(a_png=half[: len(half) // 2]), "a.png"),
    (files.images(a_png=b"no picture"), "a.png"),
    (files.images(a_png=b""), "a.png"),
    (files.images(a_png=files.LFS), "a.png|Git LFS"),
    (files.images(a_png=files.png(files.GREY)), "a.png|more than 8 bits"),
    (files.images(a_png=files.png(np.zeros((33, 34, 3), np.uint8))), "a.png|33|--pre-resizer"),
    (files.images(a_png=files.png(np.zeros((32, 32, 4), np.uint8))), "a.png|transparent"),
    (files.image_pipe, "9.png|pipe"),
    (files.renamed("train", "trian"), "train|trian"),
    (files.folder("empty"), "empty"),
    (files.at("missing"), "missing"),
    (fixed("data.zip", files.archive(a=b"x")), "data.zip"),
):
    host(
        "images",
        "eval --num 20 --metrics fid --backbone builtin --ckpt @ -c",
        files.configuration,
        "--data",
        maker,
        says=says,
    )
host(
    "images",
    "eval --num 20 --metrics fid --backbone builtin --reference valid --ckpt @ -c",
    files.configuration,
    "--data",
    files.renamed("valid", "val"),
    says="valid|val",
)

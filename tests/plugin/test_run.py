"""The host's own programs, start to end: through ``run``, through the patch, in one process and in two."""

from __future__ import annotations

import dataclasses
import filecmp
import itertools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok, run
from host_models import assert_same_images, write_yaml
from image_kinds import REFUSED, encoded
from PIL import Image
from torch.backends import cudnn

from studiogan_guidance import config, devices
from studiogan_guidance import host as host_package
from studiogan_guidance.host import compat
from studiogan_guidance.host.compat import RUN_SHIMS
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.modules import swapped
from studiogan_guidance.host.source import HostSource
from studiogan_guidance.plugin import hooks, seam
from studiogan_guidance.training.stage import STAGES, DiscriminatorStep, Stage, Trained

pytestmark = pytest.mark.studiogan
TRAIN = ("-t", "-metrics", "none", "--print_freq", 1, "--save_freq", 4, "--num_workers", 0, "--seed", 3)
LOOK = ("-metrics", "none", "-v", "-sf", "-sf_num", 10, "-sefa", "-sefa_axis", 2, "-sefa_max", 2, "--seed", 3)


@pytest.fixture(scope="module", autouse=True)
def _no_wandb() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


def bare(checkout: Checkout, *arguments: object) -> None:
    """The host with nothing but the shims, without which it does not run at all here."""
    with inside(checkout), compat.active(RUN_SHIMS):
        hooks.execute(checkout.path / "src" / "main.py", tuple(map(str, arguments)))


def guided(checkout: Checkout, *arguments: object) -> None:
    hooks.start(checkout, "main", tuple(map(str, arguments)))


def files(folder: Path, *parts: str) -> dict[str, Path]:
    return {
        str(path.relative_to(folder)): path for part in parts for path in (folder / part).rglob("*") if path.is_file()
    }


def yaml(folder: Path, scale: float | None) -> Path:
    extra = "" if scale is None else f"sampler: {{name: gandance, scale: {scale}}}"
    model = folder / "m"
    model.mkdir(exist_ok=True)
    return write_yaml(model / "tiny.yaml", "big_resnet", extra)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, checkout: Checkout, data: Path) -> dict[str, Path]:
    """The same training run without the plugin and with ``sampler: gandance``."""
    runs = {}
    for name, scale, start in (("bare", None, bare), ("guided", 1.5, guided)):
        folder = runs[name] = tmp_path_factory.mktemp(name)
        start(checkout, *TRAIN, "-cfg", yaml(folder, scale), "-data", data, "-save", folder, "-ref", "valid")
    return runs


@pytest.fixture(scope="module")
def ckpt(trained: dict[str, Path]) -> Path:
    return next((trained["bare"] / "checkpoints").iterdir())


def test_training_is_the_same_with_and_without_the_plugin(trained: dict[str, Path]) -> None:
    losses = [np.load(next(folder.rglob("losses.npy")), allow_pickle=True).item() for folder in trained.values()]
    assert losses[0] == losses[1]
    assert len(losses[0]["dis_loss"]) == 4  # the host does one step more than total_steps
    assert len(set(losses[0]["dis_loss"])) == 4
    saved = [{path.name: path for path in folder.rglob("*.pth")} for folder in trained.values()]
    assert set(saved[0]) == set(saved[1])
    assert len(saved[0]) == 2
    for name in saved[0]:
        with compat.active(RUN_SHIMS[:1]):
            first, second = (torch.load(found[name])["state_dict"] for found in saved)
        trained_keys = [key for key in first if not key.endswith(("weight_u", "weight_v"))]  # the canvas moves these
        assert all(torch.equal(first[key], second[key]) for key in trained_keys)
    canvases = [files(folder, "figures") for folder in trained.values()]
    assert [len(found) for found in canvases] == [1, 1]


def test_at_scale_1_every_file_is_that_of_the_host_alone(
    tmp_path: Path, checkout: Checkout, data: Path, ckpt: Path
) -> None:
    made = {}
    for name, scale, start in (("bare", None, bare), ("neutral", 1, guided), ("guided", 1.5, guided)):
        folder = tmp_path / name
        folder.mkdir()
        start(checkout, *LOOK, "-cfg", yaml(folder, scale), "-ckpt", ckpt, "-data", data, "-save", folder)
        made[name] = files(folder, "figures", "samples")
    assert len(made["bare"]) == 1 + 10 + 8  # a canvas, 10 images, a SeFa canvas for each image of the batch
    assert set(made["bare"]) == set(made["neutral"])
    assert all(filecmp.cmp(made["bare"][key], made["neutral"][key], shallow=False) for key in made["bare"])
    figures = [key for key in made["bare"] if key.startswith("figures")]
    assert not any(filecmp.cmp(made["bare"][key], made["guided"][key], shallow=False) for key in figures)


@pytest.fixture(scope="module")
def measured(
    tmp_path_factory: pytest.TempPathFactory, checkout: Checkout, data: Path, ckpt: Path, hub: None
) -> dict[str, Any]:
    """The line that a guided evaluation in the host's own run writes, and what the host itself logged."""
    folder = tmp_path_factory.mktemp("measured")
    arguments = ["-cfg", yaml(folder, 1.5), "-ckpt", ckpt, "-data", data, "-save", folder, "-ref", "valid"]
    guided(checkout, *arguments, "-metrics", "is", "prdc", "--seed", 11, "--num_workers", 0, "--num_eval", 2)
    log = next((folder / "logs").iterdir()).read_text()
    row, again = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    return {"row": row, "again": again, "log": log, "arguments": [*arguments, "--seed", 11]}


def test_the_host_and_our_own_evaluation_agree(
    measured: dict[str, Any], tmp_path: Path, data: Path, ckpt: Path
) -> None:
    common = ["--data", data, "--ckpt", ckpt, "--reference", "valid", "--seed", "11", "--batch-size", "8"]
    (own,) = ok("eval", "-c", yaml(tmp_path, 1.5), *common, "--metrics", "is,prdc", "--no-compare-plain",
                "--out", tmp_path)["rows"]  # fmt: skip
    row = measured["row"]
    assert set(row["metrics"]) == {"is", "precision", "recall", "density", "coverage"}
    assert row["metrics"] == pytest.approx(own["metrics"], rel=1e-6)
    assert row["protocol"] == own["protocol"]
    assert (row["sampler"], row["options"]) == (own["sampler"], own["options"])
    assert row["cost"]["synthesis"] == own["cost"]["synthesis"]


def test_repeated_evaluations_take_other_seeds(measured: dict[str, Any]) -> None:
    first, second = measured["row"], measured["again"]
    assert second["protocol"] == {**first["protocol"], "seed": 11 + 12}
    assert second["metrics"]["is"] != first["metrics"]["is"]


def test_the_hosts_log_carries_the_sampler_and_its_cost(measured: dict[str, Any], trained: dict[str, Path]) -> None:
    log = measured["log"]
    assert "Sampler: gandance scale=1.5 joint=class_mean subset=8" in log
    assert "passes per image: synthesis 1" in log
    assert '"name": "gandance"' in next((trained["guided"] / "logs").iterdir()).read_text()  # among cfgs.RUN
    assert f"Inception score (Step: 0, 12 generated images): {measured['row']['metrics']['is']}" in log


def test_two_processes_measure_what_one_does(measured: dict[str, Any], tmp_path: Path) -> None:
    arguments = ["--num_workers", 1, "-metrics", "is", "prdc", "-DDP", "--backend", "gloo", *measured["arguments"]]
    arguments[arguments.index("-save") + 1] = tmp_path
    command = [sys.executable, "-m", "studiogan_guidance", "run", "--device", "cpu", "--processes", 2, "--", *arguments]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    row = json.loads((tmp_path / "results.jsonl").read_text())
    assert row["metrics"] == pytest.approx(measured["row"]["metrics"], rel=1e-5)
    assert {**row["protocol"]} == measured["row"]["protocol"]
    assert row["environment"]["device"] == "cpu, 2 processes"


def test_rows_of_a_run_and_of_our_own_evaluation_are_compared_together(
    measured: dict[str, Any], tmp_path: Path, data: Path, ckpt: Path
) -> None:
    """The data set was copied in between: it is the same one, though its files have other times."""
    copy = Path(shutil.copytree(data, tmp_path / "copy", copy_function=shutil.copyfile))
    for path in copy.rglob("*.png"):
        os.utime(path, (1, 1))
    common = ["--data", copy, "--ckpt", ckpt, "--reference", "valid", "--seed", "11", "--batch-size", "8"]
    plain, ours = ok("eval", "-c", yaml(tmp_path, 1.2), *common, "--metrics", "is,prdc", "--out", tmp_path)["rows"]
    row = measured["row"]
    assert row["protocol"] == ours["protocol"] == plain["protocol"]
    for key in ("sha256", "model_sha256"):
        assert row["generator"][key] == ours["generator"][key]
        assert len(row["generator"][key]) in (16, 64)

    run_folder = tmp_path / "of-the-run"
    run_folder.mkdir()
    (run_folder / "results.jsonl").write_text(json.dumps(row) + "\n")
    compared = ok("compare", "--out", tmp_path / "compared", tmp_path / "results.jsonl", run_folder)
    assert [record["label"] for record in compared["rows"]] == ["plain", "gandance", "gandance scale=1.5"]
    scores = [record["metrics"]["is"]["mean"] for record in compared["rows"]]
    assert scores == [one["metrics"]["is"] for one in (plain, ours, row)]


def test_the_weights_of_a_row_are_those_of_the_checkpoint_though_the_hosts_sampling_moves_spectral_norms(
    measured: dict[str, Any], tmp_path: Path, checkout: Checkout, data: Path, ckpt: Path
) -> None:
    arguments = ["-cfg", yaml(tmp_path, 1), "-ckpt", ckpt, "-data", data, "-save", tmp_path, "-ref", "valid"]
    guided(checkout, *arguments, "-metrics", "is", "--num_workers", 0)
    neutral = json.loads((tmp_path / "results.jsonl").read_text())
    assert neutral["cost"] == {}
    digests = {row["generator"]["sha256"] for row in (neutral, measured["row"], measured["again"])}
    source = HostSource(config.load(str(yaml(tmp_path, 1)), {"ckpt": str(ckpt)}))
    assert digests == {source.networks(torch.device("cpu")).digest}


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory, checkout: Checkout, data: Path) -> Iterator[list[Any]]:
    """Two workers in one process, each after a short training with a sampler on, still inside of the host."""
    made: list[Any] = []
    with inside(checkout):
        host_package.register()
        loader = module("loader")

        class Kept(loader.WORKER):  # type: ignore[misc, name-defined]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                made.append(self)

        try:
            for scale, seed in ((1.5, 3), (2.0, 90)):
                folder = tmp_path_factory.mktemp("worker")
                arguments = (*TRAIN, "-cfg", yaml(folder, scale), "-data", data, "-save", folder, "--seed", seed)
                with swapped(loader, "WORKER", Kept):
                    hooks.execute(checkout.path / "src" / "main.py", tuple(map(str, arguments)))
            yield made
        finally:
            host_package.unregister()


@pytest.fixture(scope="module")
def worker(workers: list[Any]) -> Any:
    """The first of the two."""
    return workers[0]


def test_two_workers_in_one_process_do_not_see_each_other(workers: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The second looks at its images in the middle of the first one's analysis, and nothing changes."""
    canvases: list[torch.Tensor] = []
    session = seam.Session.images
    monkeypatch.setattr(module("utils.misc"), "plot_img_canvas", lambda images, **_: canvases.append(images))
    monkeypatch.setattr(module("wandb"), "log", lambda *_, **__: None)
    for one in workers:
        one.visualize_fake_images(num_cols=4, current_step=1)
    alone = canvases[:]
    canvases.clear()
    assert not torch.equal(*alone)

    pending = [workers[1]]
    used: list[tuple[int, int, float]] = []

    def images(self: Any, count: int, plan: Any) -> Any:
        if pending:
            pending.pop().visualize_fake_images(num_cols=4, current_step=1)
        used.append((self.seed, self.state.position, self.sampler.scale))
        return session(self, count, plan)

    monkeypatch.setattr(seam.Session, "images", images)
    workers[0].visualize_fake_images(num_cols=4, current_step=1)
    second, first = canvases
    assert torch.equal(first, alone[0])
    assert torch.equal(second, alone[1])
    assert used == [(90, 0, 2.0), (3, 0, 1.5)]
    assert workers[0].run_state.folder != workers[1].run_state.folder
    assert all(one.run_state.companions.discriminator() is one.Dis for one in workers)


@pytest.mark.parametrize("analysis", ["visualize_fake_images", "run_linear_interpolation", "evaluate"])
def test_an_analysis_that_fails_leaves_the_state_as_it_was(
    worker: Any, monkeypatch: pytest.MonkeyPatch, analysis: str
) -> None:
    def fails(self: Any, *args: Any) -> Any:
        used = self._next_seeds(4)
        assert seam.current() is worker.run_state
        assert used == range(3 + worker.run_state.first, 7 + worker.run_state.first)
        raise ZeroDivisionError

    arguments: dict[str, Any] = {
        "visualize_fake_images": {"num_cols": 4, "current_step": 1},
        "run_linear_interpolation": {"num_rows": 2, "num_cols": 4, "fix_z": True, "fix_y": False, "num_saves": 1},
        "evaluate": {"step": 1, "metrics": ["is"]},
    }[analysis]
    monkeypatch.setattr(seam.Session, "images", fails)
    monkeypatch.setattr(seam.Session, "decode", fails)
    monkeypatch.setattr(worker, "eval_model", SimpleNamespace(eval=lambda: None))
    monkeypatch.setattr(worker, "_evaluations", 2)
    before = dataclasses.replace(worker.run_state)
    with pytest.raises(ZeroDivisionError):
        getattr(worker, analysis)(**arguments)
    assert worker.run_state == before
    assert (before.session, before.position, before.direct, before.first) == (None, 0, False, 0)
    assert seam.current() is not worker.run_state


@pytest.mark.parametrize(("fix_z", "fix_y"), [(True, False), (False, True)])
def test_interpolated_classes_are_guided(
    worker: Any, monkeypatch: pytest.MonkeyPatch, fix_z: bool, fix_y: bool
) -> None:
    seen: list[tuple[Any, Any]] = []
    drawn: list[Any] = []
    decode = seam.Session.decode
    monkeypatch.setattr(seam.Session, "decode", lambda self, z, y: seen.append((z, y)) or decode(self, z, y))
    monkeypatch.setattr(module("utils.misc"), "plot_img_canvas", lambda images, **_: drawn.append(images))
    worker.run_linear_interpolation(num_rows=2, num_cols=5, fix_z=fix_z, fix_y=fix_y, num_saves=1)
    ((z, weights),), (images,) = seen, drawn
    weights = weights.view(2, 5, 4)
    assert torch.allclose(weights[:, 2], (weights[:, 0] + weights[:, 4]) / 2)
    assert torch.equal(weights[:, 0].max(1).values, torch.ones(2))
    table = worker.Gen.shared.weight
    code = table.mean(0) + 1.5 * (weights.view(10, 4) @ table - table.mean(0))
    with torch.no_grad():
        worker.Gen.eval()  # the host's own call with the guided code
        expected = worker.Gen(z, None, shared_label=code, eval=True)
    assert_same_images(images, expected)


def test_sefa_moves_the_noise_of_guided_images(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, Any]] = []
    drawn: list[Any] = []
    decode = seam.Session.decode
    monkeypatch.setattr(seam.Session, "decode", lambda self, z, y: seen.append((z, y)) or decode(self, z, y))
    monkeypatch.setattr(module("utils.misc"), "plot_img_canvas", lambda images, **_: drawn.append(images))
    with swapped(worker.OPTIMIZATION, "batch_size", 1):
        worker.run_semantic_factorization(num_rows=2, num_cols=3, maximum_variations=2.0)
    ((z, labels),), (canvas,) = seen, drawn
    assert torch.equal(z[0], z[3])  # both rows start at the image itself
    assert not torch.allclose(z[0], z[2])
    table = worker.Gen.shared.weight
    with torch.no_grad():
        worker.Gen.eval()  # the host's own call with the guided code
        expected = worker.Gen(z, None, shared_label=table.mean(0) + 1.5 * (table[labels] - table.mean(0)), eval=True)
    assert_same_images(canvas, expected)


def test_classifier_scores_run_on_guided_images(worker: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The shim "classifier_mode": without it the host fails after its first epoch."""
    misc, accuracy, calls = module("utils.misc"), module("utils.misc").accuracy, []
    session = seam.Session.images
    monkeypatch.setattr(seam.Session, "images", lambda self, n, plan: calls.append(n) or session(self, n, plan))
    monkeypatch.setattr(misc, "accuracy", lambda output, target, topk: accuracy(output, target, (1, 4)))  # 4 classes
    monkeypatch.setattr(worker.DATA, "name", "CIFAR10")
    monkeypatch.setattr(worker.RUN, "ckpt_dir", str(tmp_path))
    monkeypatch.setitem(worker.MISC.cas_setting, "CIFAR10", {**worker.MISC.cas_setting["CIFAR10"], "epochs": 1})
    for kind, mode in (("GAN_train", "fake"), ("GAN_test", "real")):
        worker.compute_GAN_train_or_test_classifier_accuracy_score(**{kind: True})
        assert (tmp_path / f"model=C-{mode}_trained-best-weights.pth").exists()
    assert calls == [8, 8, 8, 8]  # two batches to train on, two to test with
    host = module("worker").WORKER.compute_GAN_train_or_test_classifier_accuracy_score
    contents = [cell.cell_contents for cell in host.__closure__]
    without = next(one for one in contents if getattr(one, "__name__", "").startswith("compute_GAN_train"))
    with pytest.raises(UnboundLocalError, match="mode"):
        without(worker, GAN_train=True)


def test_a_stage_follows_the_loop_and_adds_its_loss(
    tmp_path: Path, checkout: Checkout, data: Path, trained: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import dataclass

    steps: list[DiscriminatorStep] = []
    runs: list[tuple[Trained, int]] = []

    @dataclass(frozen=True)
    class Probe(Stage):
        weight: float = 0.0

        def after_training(self, run: Trained) -> None:
            runs.append((run, len(steps)))
            assert next(run.real(8))[0].shape == (8, 3, 32, 32)
            assert [len(labels) for _, labels in itertools.islice(run.real(3), 4)] == [3, 3, 3, 3]  # cut from 8: 3, 3
            run.log("the probe was here")

        def discriminator_loss(self, step: DiscriminatorStep) -> torch.Tensor:
            steps.append(step)
            return torch.tensor(self.weight)

    monkeypatch.setattr(STAGES, "_entries", dict(STAGES._entries))
    STAGES.register("probe", "a test", "none")(Probe)
    path = write_yaml(tmp_path / "tiny.yaml", "big_resnet", "stages: [{name: probe, weight: 5.0}]")
    guided(checkout, *TRAIN, "-cfg", path, "-data", data, "-save", tmp_path, "-ref", "valid")
    base, extra = (np.load(next(f.rglob("losses.npy")), allow_pickle=True).item() for f in (trained["bare"], tmp_path))
    np.testing.assert_allclose(np.array(extra["dis_loss"]) - base["dis_loss"], 5.0, atol=1e-5)  # a constant, so
    assert extra["gen_loss"] == base["gen_loss"]  # nothing else changes
    assert len(steps) == 4
    for step in steps:
        assert step.real_images.shape == step.fake_images.shape == (8, 3, 32, 32)
        assert {"adv_output"} <= set(step.real_outputs) & set(step.fake_outputs)
        assert step.fake_images.abs().max() <= 1
    ((trained_run, when),) = runs
    assert (when, trained_run.rank, trained_run.world_size, trained_run.seed) == (4, 0, 1, 3)
    saved = torch.load(next(tmp_path.rglob("model=G-current*.pth")))["state_dict"]
    assert all(torch.equal(saved[key], value) for key, value in trained_run.networks.generator.state_dict().items())
    assert "the probe was here" in next((tmp_path / "logs").iterdir()).read_text()


def test_the_command_says_mistakes_in_one_line(tmp_path: Path, data: Path) -> None:
    def message(*arguments: object, dashes: tuple[str, ...] = ("--",)) -> str:
        result = run("run", "--device", "cpu", *dashes, "-data", data, "-save", tmp_path / "o", "-sf", *arguments)
        assert result.exit_code == 2, result.output
        assert "Traceback" not in result.output
        assert not (tmp_path / "o").exists()
        return result.stderr

    path = write_yaml(tmp_path / "a.yaml", "big_resnet", "sampler: gandanc")
    assert "did you mean 'gandance'" in message("-cfg", path, "-metrics", "none", "-ckpt", tmp_path)
    assert "no configuration" in message("-cfg", tmp_path / "b.yaml", "-metrics", "none")
    assert "Specify -ckpt CHECKPOINT_FOLDER" in message("-cfg", yaml(tmp_path, 2), "-metrics", "fid")
    assert "unrecognized arguments: --nothing" in message("--nothing")
    assert "did you mean 'gandance'" in message("-cfg", path, "-metrics", "none", "-ckpt", tmp_path, dashes=())


@pytest.mark.parametrize(
    ("content", "workers", "words"),
    [
        (encoded(Image.new("RGB", (33, 34))), 0, "is 33x34, the configuration wants 32x32: add --pre_resizer"),
        (REFUSED["RGBA"][0](), 1, "without a guess: it has transparent pixels"),
    ],
)
def test_a_training_refuses_an_image_in_one_line(
    tmp_path: Path, data: Path, content: bytes, workers: int, words: str
) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    image = copy / "train" / "2" / "1.png"
    image.write_bytes(content)
    arguments = (*TRAIN, "-cfg", yaml(tmp_path, None), "-data", copy, "-save", tmp_path / "o", "-ref", "valid")
    result = run("run", "--device", "cpu", "--", *arguments, "--num_workers", workers)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    assert f"image {image}" in last
    assert words in last


def process_state() -> dict[str, Any]:
    """Much of what a run could leave behind in its process, by value or by identity."""
    cuda = ("is_available", "device_count", "current_device", "set_device", "manual_seed", "manual_seed_all")
    accelerator = ("is_available", "device_count", "current_accelerator")
    root_logger = logging.getLogger()
    of_runs = [logging.getLogger(name) for name in root_logger.manager.loggerDict if "-train-" in name]
    passing = ("wandb", "QueueFeederThread")  # W&B's, and those of loading processes, which end a little later
    threads = [one.name for one in threading.enumerate() if not one.name.startswith(passing)]
    return {
        "environment": dict(os.environ),
        "arguments": list(sys.argv),
        "path": list(sys.path),
        "folder": Path.cwd(),
        "host": sorted(name for name in sys.modules if name.partition(".")[0] in HOST_NAMES),
        "filters": list(warnings.filters),
        "random": random.getstate(),
        "numpy": str(np.random.get_state()),
        "torch": torch.get_rng_state().tolist(),
        "cudnn": (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "anomalies": torch.is_anomaly_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threads),
        "signals": [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)],
        "cuda": [getattr(torch.cuda, name) for name in cuda],
        "accelerator": [getattr(torch.accelerator, name) for name in accelerator],
        "queued": len(torch.cuda._queued_calls),
        "handlers": (list(root_logger.handlers), [one.handlers for one in of_runs if one.handlers]),
        "excepthook": (sys.excepthook, threading.excepthook),
        "streams": (sys.stdout, sys.stderr),
        "start": torch.multiprocessing.get_start_method(allow_none=True),
        "spawn": torch.multiprocessing.spawn,
        "load": torch.utils.cpp_extension.load,
        "distributed": torch.distributed.is_initialized(),
        "modes": torch.overrides._get_current_function_mode_stack(),
    }


HOST_NAMES = {
    "config",
    "loader",
    "worker",
    "utils",
    "models",
    "metrics",
    "data_util",
    "sync_batchnorm",
    "pkg_resources",
}


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_on_the_cpu_beside_a_gpu_leaves_the_process_as_it_was(
    tmp_path: Path, checkout: Checkout, data: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    """The GPU is imitated; the run would stop at the first call that really needs one."""
    monkeypatch.setenv(devices.DEVICE, "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    path = write_yaml(
        tmp_path / "tiny.yaml", "big_resnet", "sampler: {name: gandance, scale: 1.5}", batch_size=8 * processes
    )
    more = ("--num_workers", 1, "-DDP", "--backend", "gloo", "--truncation_factor", 0.9) if processes > 1 else ()
    arguments = (*TRAIN, "-cfg", path, "-data", data, "-save", tmp_path / "out", "-ref", "valid", *more)
    command = ("run", "--device", "cpu", "--processes", processes, "--", *arguments)
    with inside(checkout):
        module("loader")  # libraries that are imported stay

    first = process_state()
    assert process_state() == first
    result = run(*command)
    assert result.exit_code == 0, result.output
    after = process_state()
    assert {name: (first[name], after[name]) for name in after if after[name] != first[name]} == {}
    assert len(list(tmp_path.rglob("model=G-current*.pth"))) == 1
    refused = run("run", "--device", "cpu", "--", "-cfg", path, "-metrics", "fid")
    assert refused.exit_code == 2
    after = process_state()
    assert {name: (first[name], after[name]) for name in after if after[name] != first[name]} == {}
    assert run("run", "--processes", 2, "--", *arguments).stderr.startswith("Error: --processes is for runs without")


def test_stylegan2_trains_and_is_looked_at_on_each_device(tmp_path: Path, data: Path, device: str) -> None:
    """On a GPU with its plug-ins, where they can be compiled."""
    path = write_yaml(tmp_path / "tiny.yaml", "stylegan2", "sampler: {name: gandance, scale: 1.5}")
    arguments = (*TRAIN, "-cfg", path, "-data", data, "-save", tmp_path, "-ref", "valid", "--pre_resizer", "lanczos")
    result = run("run", "--device", device, "--", *arguments)
    assert result.exit_code == 0, result.output
    losses = np.load(next(tmp_path.rglob("losses.npy")), allow_pickle=True).item()
    assert len(losses["gen_loss"]) == 4
    assert np.isfinite(losses["gen_loss"] + losses["dis_loss"]).all()
    saved = torch.load(next(tmp_path.rglob("model=G-current*.pth")), map_location="cpu")["state_dict"]
    assert all(value.isfinite().all() for value in saved.values())
    assert len(list((tmp_path / "figures").rglob("*.png"))) == 1


def test_evaluate_runs_on_a_folder_with_an_empty_class_in_one_process_and_in_two(
    tmp_path: Path, data: Path, hub: None, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "9").mkdir()
    (tmp_path / "0").symlink_to(data / "valid" / "0")
    (tmp_path / "1").symlink_to(data / "valid" / "1")
    common = ["--num_workers", 1, "--batch_size", 4, "-metrics", "is"]
    result = run("run", "--device", "cpu", "--script", "evaluate", "--", "--dset1", data / "valid", "--dset2", tmp_path,
                 *common)  # fmt: skip
    assert result.exit_code == 0, result.output
    both = [
        "--script",
        "evaluate",
        "-DDP",
        "--backend",
        "gloo",
        "--dset1",
        data / "valid",
        "--dset2",
        tmp_path,
        *common,
    ]
    command = [sys.executable, "-m", "studiogan_guidance", "run", "--device", "cpu", "--processes", 2, *both]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    texts = result.output + capfd.readouterr().out, done.stdout
    said = [text.partition("dset2 (6 images): ")[2].split() for text in texts]
    assert float(said[0][0]) == pytest.approx(float(said[1][0]), rel=1e-5)


def test_the_patch_is_the_other_door(tmp_path: Path, root: Path, checkout: Checkout, data: Path, ckpt: Path) -> None:
    """On a real checkout: apply, run main.py and evaluate.py, compare with ``run``, take it back."""
    patch, copy = root / "patches" / "studiogan-947b35e.patch", tmp_path / "host"

    def git(*arguments: object) -> str:
        return subprocess.run(
            ["git", *map(str, arguments)], cwd=copy, check=True, capture_output=True, text=True
        ).stdout

    subprocess.run(["git", "clone", "-q", str(checkout.path), str(copy)], check=True)
    git("checkout", "-q", "947b35e")
    git("apply", "--unidiff-zero", patch)
    added = [line for line in git("diff", "--unified=0").splitlines() if line[:1] in "+-" and line[:3] not in "+++---"]
    assert added
    assert all(line.startswith("+") for line in added)
    sampled = {}
    for name in ("patched", "run"):
        folder = tmp_path / name
        folder.mkdir()
        flags = ["-metrics", "none", "-sf", "-sf_num", 10, "--seed", 3, "-cfg", yaml(folder, 1.5), "-ckpt", ckpt,
                 "-save", folder]  # fmt: skip
        if name == "run":
            guided(checkout, *flags)
        else:
            command = [sys.executable, "src/main.py", *map(str, flags)]
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
            flags[flags.index("-cfg") + 1] = write_yaml(tmp_path / "bad.yaml", "big_resnet", "sampler: gandanc")
            command = [sys.executable, "src/main.py", *map(str, flags)]
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
            assert done.returncode == 2
            assert done.stderr.splitlines()[-1].startswith("Error: unknown sampler 'gandanc'")
            command = [sys.executable, "src/evaluate.py", "--help"]
            done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-3000:]
        sampled[name] = files(folder, "samples")
    assert len(sampled["run"]) == 10
    assert set(sampled["run"]) == set(sampled["patched"])
    assert all(filecmp.cmp(sampled["run"][key], sampled["patched"][key], shallow=False) for key in sampled["run"])
    git("apply", "--unidiff-zero", "-R", patch)
    assert git("status", "--porcelain", "--untracked-files=no") == ""

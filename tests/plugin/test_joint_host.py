"""The learned joint on host networks: the critic, the stage on every backbone, and both inside of a host run."""

from __future__ import annotations

import filecmp
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok, run
from host_models import BACKBONES, both, save, write_yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from studiogan_guidance import config, samplers
from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.errors import UserError
from studiogan_guidance.host import compat
from studiogan_guidance.host.compat import RUN_SHIMS
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.source import HostSource
from studiogan_guidance.latents import LabelPlan, Networks, learned, view_for
from studiogan_guidance.plugin import hooks, seam
from studiogan_guidance.plugin.worker import GuidedWorker
from studiogan_guidance.training import train

pytestmark = pytest.mark.studiogan
CPU = torch.device("cpu")
EMBED = {"d_embed_dim": 8, "normalize_d_embed": True}
CONDITIONAL = [
    ("big_resnet", {"d_cond_mtd": "PD"}),
    ("big_resnet", {"d_cond_mtd": "MD"}),
    ("big_resnet_deep_legacy", {"d_cond_mtd": "PD"}),
    ("big_resnet_deep_studiogan", {"d_cond_mtd": "PD"}),
    ("resnet", {"d_cond_mtd": "PD"}),
    ("deep_conv", {"d_cond_mtd": "PD"}),
    ("stylegan2", {"d_cond_mtd": "SPD"}),
    ("stylegan2", {"d_cond_mtd": "MD"}),
]
UNCONDITIONAL = [
    ("big_resnet", {"d_cond_mtd": "AC"}),
    ("big_resnet", {"d_cond_mtd": "AC", "normalize_d_embed": True}),
    ("big_resnet", {"d_cond_mtd": "2C", **EMBED}),
    ("big_resnet", {"d_cond_mtd": "D2DCE", **EMBED}),
    ("big_resnet", {"d_cond_mtd": "W/O"}),
    ("stylegan2", {"d_cond_mtd": "AC"}),
]


def _ids(cases: list[tuple[str, dict[str, Any]]]) -> list[str]:
    return [f"{name}-{'-'.join(map(str, model.values()))}" for name, model in cases]


# ---------------------------------------------------------------------------- the critic


def host_answer(discriminator: nn.Module, images: Tensor, label: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = discriminator(images, label=torch.full((len(images),), label), eval=True)
    return found


def pictures(made: Networks) -> Tensor:
    """Four images: two groups of StyleGAN2's minibatch statistics."""
    gen = torch.Generator().manual_seed(5)
    return torch.rand(4, 3, made.image_size, made.image_size, generator=gen) * 2 - 1


@pytest.mark.parametrize(("name", "model"), CONDITIONAL, ids=_ids(CONDITIONAL))
def test_logits_are_the_hosts_for_every_class(name: str, model: dict[str, Any], checkout: Checkout) -> None:
    made, discriminator = both(name, checkout, **model)
    state = {key: value.clone() for key, value in discriminator.state_dict().items()}
    images = pictures(made).requires_grad_()
    critic = Critic(discriminator)
    features, logits = critic(images)
    assert logits.shape == (4, made.num_classes)
    for label in range(made.num_classes):
        expected = host_answer(discriminator, images, label)
        torch.testing.assert_close(logits[:, label], expected["adv_output"].reshape(-1), atol=1e-5, rtol=1e-5)
        assert torch.equal(features, expected["h"])
    assert logits.std(1).min() > 1e-4  # the classes really differ
    same, score = critic.marginal(images)
    assert torch.equal(same, features)
    torch.testing.assert_close(score, logits.exp().mean(1).log(), atol=1e-5, rtol=1e-5)
    (slope,) = torch.autograd.grad(score.sum(), images)
    assert slope.flatten(1).abs().sum(1).min() > 0
    assert all(torch.equal(value, state[key]) for key, value in discriminator.state_dict().items())


@pytest.mark.parametrize(("name", "model"), UNCONDITIONAL, ids=_ids(UNCONDITIONAL))
def test_the_one_logit_is_the_hosts_whatever_the_label(name: str, model: dict[str, Any], checkout: Checkout) -> None:
    made, discriminator = both(name, checkout, **model)
    images = pictures(made).requires_grad_()
    critic = Critic(discriminator)
    features, logits = critic(images)
    for label in range(made.num_classes):
        expected = host_answer(discriminator, images, label)
        assert torch.equal(logits, expected["adv_output"].reshape(4, 1))
        assert torch.equal(features, expected["h"])
    assert logits.std() > 1e-4
    score = critic.marginal(images)[1]
    torch.testing.assert_close(score, logits[:, 0])
    (slope,) = torch.autograd.grad(score.sum(), images)
    assert slope.flatten(1).abs().sum(1).min() > 0


@pytest.mark.parametrize(("name", "kind"), [("big_resnet", "MH"), ("stylegan2", "MH"), ("stylegan2", "PD")])
def test_a_discriminator_without_a_marginal_is_refused(name: str, kind: str, checkout: Checkout) -> None:
    discriminator = both(name, checkout, d_cond_mtd=kind)[1]
    with pytest.raises(UserError, match=f"discriminators with d_cond_mtd {kind} have no real-or-fake logit"):
        Critic(discriminator)


# ---------------------------------------------------------------------------- the discriminator's file


def test_the_discriminator_beside_the_generator_is_loaded(tmp_path: Path, checkout: Checkout, data: Path) -> None:
    yaml, folder = save("big_resnet", checkout, tmp_path)

    def load(*which: str) -> nn.Module:
        cfg = config.load(str(yaml), {"ckpt": str(folder), "which": which})
        return HostSource(cfg).discriminator(CPU)

    saved = torch.load(folder / "model=D-current-weights-step=7.pth")["state_dict"]
    for which in ((), ("ema",), ("raw", "current")):  # ema and raw are about generators
        found = load(*which)
        assert set(found.state_dict()) == set(saved)
        assert all(torch.equal(value, saved[key]) for key, value in found.state_dict().items())
        assert not any(part.training for part in found.modules())
        assert not any(value.requires_grad for value in found.parameters())
    with pytest.raises(
        UserError, match=r"no checkpoint model=G_ema-best-weights-step\*\.pth or .*; it holds model=D-curr"
    ):
        load("best")
    best = {key: value + 1 if value.is_floating_point() else value for key, value in saved.items()}
    torch.save({"state_dict": best}, folder / "model=D-best-weights-step=3.pth")
    assert torch.equal(load().linear1.bias, saved["linear1.bias"])  # type: ignore[union-attr, arg-type]
    (folder / "model=D-current-weights-step=7.pth").rename(tmp_path / "kept")
    with pytest.raises(UserError, match=r"no discriminator of step 7 .*, only model=D-best-weights-step=3.pth"):
        load()
    (tmp_path / "kept").rename(folder / "model=D-current-weights-step=7.pth")
    (folder / "model=G-current-weights-step=7.pth").rename(folder / "model=G-best-weights-step=3.pth")
    assert torch.equal(load("raw").linear1.bias, saved["linear1.bias"] + 1)  # type: ignore[union-attr, arg-type]
    (folder / "model=G-best-weights-step=3.pth").rename(folder / "model=G-current-weights-step=7.pth")
    for path in folder.glob("model=D-*"):
        path.unlink()
    steps = ["-o", "adversarial=1", "-o", "eval_every=0", "-o", "batch=4"]
    result = run("train", "-c", yaml, "--ckpt", folder, "--data", data, "--out", tmp_path / "o", *steps)
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert "no checkpoint model=D-*-weights-step=7.pth beside" in line


# ---------------------------------------------------------------------------- every backbone


@pytest.fixture(scope="module", params=BACKBONES)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, checkout: Checkout
) -> tuple[str, list[str]]:
    yaml, folder = save(request.param, checkout, tmp_path_factory.mktemp("ckpt"))
    return request.param, ["-c", str(yaml), "--ckpt", str(folder)]


def images_of(view: Any, **options: Any) -> Tensor:
    stream = samplers.create("gandance", {"scale": 1.5, **options}).stream(view, range(1), 1, LabelPlan())
    return next(stream).images


def test_a_joint_of_no_steps_samples_as_its_base_bit_for_bit(
    model: tuple[str, list[str]], tmp_path: Path, checkout: Checkout
) -> None:
    name, where = model
    result = ok("train", *where, "--out", tmp_path, "-o", "steps=0", "-o", "eval_every=0")
    assert result == {"joint": str(tmp_path / "joint.safetensors"), "step": 0}
    nets = HostSource(config.load(where[1], {"ckpt": where[3]})).networks(CPU)
    view = view_for(nets)
    estimator = "class_shift" if name.startswith("stylegan") else "class_mean"
    expected = images_of(view, joint=estimator)
    assert torch.equal(images_of(view, joint="learned", joint_ckpt=result["joint"]), expected)
    if name != "stylegan3":  # slow on a CPU
        assert not torch.allclose(images_of(view, scale=1), expected, atol=1e-5)


class Kept:
    """The networks that ``train`` opens, in training mode and in part with gradients, as a host leaves its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.modules: list[nn.Module] = []
        generator, discriminator = HostSource.networks, HostSource.discriminator
        monkeypatch.setattr(HostSource, "networks", lambda source, device: self._stirred(generator(source, device)))
        monkeypatch.setattr(
            HostSource, "discriminator", lambda source, device: self._stirred(discriminator(source, device))
        )

    def _stirred(self, found: Any) -> Any:
        network = found.generator if isinstance(found, Networks) else found
        for i, part in enumerate(network.modules()):
            part.training = i % 3 != 1
        for i, value in enumerate(network.parameters()):
            value.requires_grad_(i % 3 != 1)
        self.modules.append(network)
        self.before = [*getattr(self, "before", []), self._look(network)]
        return found

    @staticmethod
    def _look(network: nn.Module) -> tuple[dict[str, Tensor], list[bool], list[bool], list[bool]]:
        return (
            {key: value.clone() for key, value in network.state_dict().items()},
            [part.training for part in network.modules()],
            [value.requires_grad for value in network.parameters()],
            [value.grad is not None for value in network.parameters()],
        )

    def assert_untouched(self) -> None:
        assert len(self.modules) == 2
        for network, before in zip(self.modules, self.before):
            now = self._look(network)
            assert now[1:] == before[1:]
            assert set(now[0]) == set(before[0])
            for key, value in now[0].items():
                assert torch.equal(value, before[0][key]), key


def test_adversarial_steps_change_the_joint_and_nothing_else(
    model: tuple[str, list[str]], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, where = model
    if name == "stylegan3":
        pytest.skip("slow on a CPU; the same view as stylegan2")
    kept = Kept(monkeypatch)
    given = {"ckpt": where[3], "data": str(data), "out": str(tmp_path), "pre_resizer": "lanczos", "device": "cpu"}
    options = {"steps": 2, "batch": 2 if name == "stylegan2" else 4, "latent": 0, "adversarial": 1, "eval_every": 0,
               "hidden": 8, "note_every": 1, "r1": 1e4, "marginal": True}  # fmt: skip
    result = train(config.load(where[1], given), "joint", options)
    kept.assert_untouched()
    state = load_file(result["joint"])
    assert state["residual.4.weight"].abs().max() > 0  # zero at the start
    assert all(value.isfinite().all() for value in state.values())
    notes = [json.loads(line) for line in (tmp_path / "joint.jsonl").read_text().splitlines()]
    assert [(note["step"], sorted(set(note) - {"step"})) for note in notes] == [
        (1, ["adversarial", "head"]),
        (2, ["adversarial", "head"]),
    ]
    assert notes[0]["head"] > 10 * notes[1]["head"]  # with R1, on the first step only


# ---------------------------------------------------------------------------- another checkpoint


def test_a_joint_of_other_weights_of_the_same_run_is_refused(tmp_path: Path, checkout: Checkout) -> None:
    yaml, folder = save("big_resnet", checkout, tmp_path)
    where = ["-c", yaml, "--ckpt", folder]
    ok("train", *where, "--out", folder, "-o", "steps=0", "-o", "eval_every=0")  # of the moving average
    sample = ["sample", *where, "--num", 2, "--out", tmp_path / "o", "-o", "joint=learned"]
    result = run(*sample, "--which", "raw")
    assert result.exit_code == 2, result.output
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("Note: ")]
    assert f"the joint {folder / learned.FILE} was learned on another generator: its generator_sha256 is" in line
    assert not (tmp_path / "o" / "samples.npz").exists()
    ok(*sample, "--which", "ema")


# ---------------------------------------------------------------------------- inside a host run

STAGE = "stages: [{name: joint, steps: 3, batch: 4, hidden: 8, latent: 1, adversarial: 1, lr: 0.05}]\n"
SAMPLER = "sampler: {{name: gandance, joint: {joint}, scale: 1.5}}\n"
SEEDED = ("--seed", 3, "--num_workers", 0, "-ref", "valid")
TRAIN = ("-t", "--print_freq", 1, "--save_freq", 4, *SEEDED)
SAVE = ("-sf", "-sf_num", 10)


@pytest.fixture(scope="module", autouse=True)
def _no_wandb() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        yield


def host(checkout: Checkout, *arguments: object) -> None:
    hooks.start(checkout, "main", tuple(map(str, arguments)))


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, checkout: Checkout, data: Path, hub: None
) -> dict[str, tuple[Path, Path]]:
    """(folder, YAML) of the same host training with the estimator by arithmetic, and with the stage."""
    made = {}
    for name, text in (
        ("plain", SAMPLER.format(joint="class_mean")),
        ("stage", SAMPLER.format(joint="learned") + STAGE),
    ):
        folder = tmp_path_factory.mktemp(name)
        (folder / "m").mkdir()
        yaml = write_yaml(folder / "m" / "tiny.yaml", "big_resnet", text)
        with pytest.MonkeyPatch.context() as patch:
            workers = record_workers(patch)
            host(checkout, *TRAIN, *SAVE, "-metrics", "is", "-cfg", yaml, "-data", data, "-save", folder)
        made[name] = folder, yaml
        assert [worker.run_state.folder for worker in workers] == [str(checkpoints(folder))]
    return made


def record_workers(patch: pytest.MonkeyPatch) -> list[Any]:
    """The workers that the host makes from now on."""
    workers: list[Any] = []
    init = GuidedWorker.__init__

    def recorded(self: Any, *args: Any, **kwargs: Any) -> None:
        workers.append(self)
        init(self, *args, **kwargs)

    patch.setattr(GuidedWorker, "__init__", recorded)
    return workers


def checkpoints(folder: Path) -> Path:
    (found,) = (folder / "checkpoints").iterdir()
    return found


def saved_images(folder: Path) -> dict[str, Path]:
    return {
        str(path.relative_to(folder / "samples")).split("/", 1)[1]: path for path in folder.rglob("samples/**/*.png")
    }


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_training_is_the_same_with_and_without_the_stage(runs: dict[str, tuple[Path, Path]]) -> None:
    folders = [folder for folder, _ in runs.values()]
    losses = [np.load(next(folder.rglob("losses.npy")), allow_pickle=True).item() for folder in folders]
    assert losses[0] == losses[1]
    assert len(losses[0]["gen_loss"]) == 4
    saved = [{path.name: path for path in checkpoints(folder).glob("*.pth")} for folder in folders]
    assert set(saved[0]) == set(saved[1])
    assert {name.split("-")[0] for name in saved[0]} == {"model=G", "model=D"}
    for name in saved[0]:
        with compat.active(RUN_SHIMS[:1]):
            first, second = (torch.load(found[name])["state_dict"] for found in saved)
        moved = [key for key in first if not torch.equal(first[key], second[key])]
        assert all(key.endswith(("weight_u", "weight_v")) for key in moved), name


def test_the_stage_leaves_its_files_beside_the_checkpoint(runs: dict[str, tuple[Path, Path]]) -> None:
    folder = checkpoints(runs["stage"][0])
    assert {path.name for path in folder.iterdir()} >= {"joint.safetensors", "joint-last.safetensors", "joint.jsonl"}
    assert load_file(folder / "joint.safetensors")["residual.4.weight"].abs().max() > 0
    assert not (checkpoints(runs["plain"][0]) / "joint.safetensors").exists()
    log = next((runs["stage"][0] / "logs").iterdir()).read_text()
    assert f"The joint of step 3 is in {folder / 'joint.safetensors'}" in log
    said = [line.partition("Sampler: ")[2] for line in log.splitlines() if "passes per image" in line]
    assert [line.split()[:3] for line in said] == [
        ["gandance", "scale=1.5", "joint=class_mean"],  # it stands in while the training goes on
        ["gandance", "scale=1.5", "joint=learned"],
    ]


def test_images_after_training_are_those_of_a_later_run_and_of_our_own_sampler(
    runs: dict[str, tuple[Path, Path]], tmp_path: Path, checkout: Checkout
) -> None:
    (folder, yaml), data = runs["stage"], "unused"
    images = saved_images(folder)
    assert len(images) == 10
    ckpt = checkpoints(folder)
    host(checkout, *SEEDED, *SAVE, "-metrics", "none", "-cfg", yaml, "-ckpt", ckpt, "-data", data, "-save", tmp_path)
    later = saved_images(tmp_path)
    assert set(later) == set(images)
    assert all(filecmp.cmp(images[key], later[key], shallow=False) for key in images)
    pixels, arithmetic = {}, {}
    for found, joint in ((pixels, "learned"), (arithmetic, "class_mean")):
        out = tmp_path / joint
        ok("sample", "-c", yaml, "--ckpt", ckpt, "--num", 10, "--seed", 3, "--batch-size", 5, "--out", out,
           "-o", f"joint={joint}")  # fmt: skip
        with np.load(out / "samples.npz") as file:
            for i, (image, label) in enumerate(zip(file["images"], file["labels"])):
                found[f"fake/{label}/{i}.png"] = image.astype(int)
    assert set(pixels) == set(images)
    for key, path in images.items():
        assert np.abs(np.asarray(Image.open(path)).astype(int) - pixels[key]).max() <= 1, key
    assert any(np.abs(pixels[key] - arithmetic[key]).max() > 1 for key in images)  # the stage has learned something


def test_rows_of_the_training_say_what_stood_in_and_the_last_one_is_learned(
    runs: dict[str, tuple[Path, Path]], checkout: Checkout
) -> None:
    folder, yaml = runs["stage"]
    *during, last = results(folder)
    assert during
    assert [row["options"]["joint"] for row in during] == ["class_mean"] * len(during)
    assert not any("joint_sha256" in row["generator"] for row in during)
    plain = results(runs["plain"][0])
    assert [row["metrics"] for row in during] == [row["metrics"] for row in plain[:-1]]
    assert last["options"]["joint"] == "learned"
    nets = HostSource(config.load(str(yaml), {"ckpt": str(checkpoints(folder))})).networks(CPU)
    assert last["generator"]["joint_sha256"] == learned.of_view(view_for(nets), None).digest()
    assert math.isfinite(last["metrics"]["is"])
    assert last["metrics"] != plain[-1]["metrics"]


def test_an_evaluation_without_the_file_fails_at_the_start_in_one_line(
    runs: dict[str, tuple[Path, Path]], tmp_path: Path, data: Path
) -> None:
    folder, yaml = runs["stage"]
    ckpt = tmp_path / checkpoints(folder).name
    shutil.copytree(checkpoints(folder), ckpt, ignore=shutil.ignore_patterns("joint*"))
    result = run("run", "--device", "cpu", "--", *SEEDED, *SAVE, "-metrics", "is", "-cfg", yaml, "-ckpt", ckpt,
                 "-data", data, "-save", tmp_path / "o")  # fmt: skip
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert f"no learned joint {ckpt / 'joint.safetensors'}: make it with" in line
    assert not saved_images(tmp_path / "o")
    assert not (tmp_path / "o" / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("stages", "name", "message"),
    [
        ("[joint, {name: strengths, per: class}]", "big_resnet", "strengths needs validation data"),
        ("[{name: joint, adversarial: 1}]", "mh", "discriminators with d_cond_mtd MH have no real-or-fake logit"),
    ],
)
def test_what_the_stage_cannot_do_is_said_before_the_training(
    tmp_path: Path, data: Path, stages: str, name: str, message: str
) -> None:
    yaml = write_yaml(tmp_path / "tiny.yaml", "big_resnet", f"stages: {stages}")
    if name == "mh":
        yaml.write_text(yaml.read_text().replace("PD", "MH").replace("hinge", "MH"))
    result = run("run", "--device", "cpu", "--", *TRAIN, "-metrics", "none", "-cfg", yaml, "-data", data,
                 "-save", tmp_path / "o")  # fmt: skip
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not list((tmp_path / "o").rglob("*.pth"))


def test_processes_without_a_folder_of_their_own_find_the_file(
    runs: dict[str, tuple[Path, Path]], checkout: Checkout
) -> None:
    """In a new -DDP run the host knows its folder in the first process only; the worker tells the others."""
    folder, yaml = runs["stage"]
    ckpt = checkpoints(folder)
    nets = HostSource(config.load(str(yaml), {"ckpt": str(ckpt)})).networks(CPU)
    spec = {"name": "gandance", "joint": "learned", "scale": 1.5}
    asked = SimpleNamespace(ckpt_dir=None, batch_statistics=False, truncation_factor=-1, truncation_cutoff=None,
                            sampler=spec, restat=0, seed=3)  # fmt: skip
    model = SimpleNamespace(**{**nets_facts(nets), "info_type": "N/A"})
    state = seam.RunState(folder=str(ckpt))
    session = seam.Session(state, nets.generator, asked, model, nets.num_classes, "cpu")
    assert session.images(2, LabelPlan())[0].shape == (2, 3, 32, 32)
    with pytest.raises(UserError, match="no learned joint"):
        seam.Session(seam.RunState(), nets.generator, asked, model, nets.num_classes, "cpu")


def nets_facts(nets: Networks) -> dict[str, Any]:
    return {name: getattr(nets, name) for name in ("backbone", "z_dim", "z_prior", "g_cond_mtd")}


def test_the_stage_of_a_host_run_is_the_commands_and_starts_anew_where_training_went_on(
    tmp_path: Path, checkout: Checkout, data: Path
) -> None:
    text = "stages: [{name: joint, steps: 3, batch: 4, hidden: 8, lr: 0.05}]"
    common = [*TRAIN, "-metrics", "none", "-data", data, "-save", tmp_path]
    yaml = write_yaml(tmp_path / "tiny.yaml", "big_resnet", text)
    host(checkout, *common, "-cfg", yaml)
    ckpt = checkpoints(tmp_path)
    first = load_file(ckpt / learned.FILE)
    ok("train", "-c", yaml, "--ckpt", ckpt, "--out", tmp_path / "own", "--seed", 3, "-o", "eval_every=0")
    own = load_file(tmp_path / "own" / learned.FILE)
    assert set(own) == set(first)
    assert all(torch.equal(value, first[key]) for key, value in own.items())
    longer = write_yaml(tmp_path / "longer.yaml", "big_resnet", text, total_steps=7)
    host(checkout, *common, "-cfg", longer, "-ckpt", ckpt)
    nets = HostSource(config.load(str(yaml), {"ckpt": str(ckpt)})).networks(CPU)
    assert nets.source.endswith("step=8.pth")
    learned.load(ckpt / learned.FILE, view_for(nets))  # it belongs to the new weights
    assert len((ckpt / "joint.jsonl").read_text().splitlines()) == 1

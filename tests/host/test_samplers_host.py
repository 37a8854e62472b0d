"""The samplers on the host's networks: its discriminators, its own Langevin sampling, its runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TOLERANCES, ok
from contract import REAL, keeps_the_contract
from host_models import BACKBONES, UNCONDITIONAL, both, write_yaml

from studiogan_guidance import samplers
from studiogan_guidance.critics import critic
from studiogan_guidance.critics.critic import Critic
from studiogan_guidance.errors import UserError
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.latents import LabelPlan, view_for
from studiogan_guidance.latents.base import Companions, Networks
from studiogan_guidance.plugin import hooks
from studiogan_guidance.samplers import SAMPLERS
from studiogan_guidance.samplers.ddls import ula

pytestmark = pytest.mark.studiogan
KINDS: list[tuple[str, dict[str, Any]]] = [
    *(("big_resnet", {"d_cond_mtd": kind}) for kind in ("PD", "W/O", "AC", "MD")),
    *(("big_resnet", {"d_cond_mtd": kind, "d_embed_dim": 8, "normalize_d_embed": True}) for kind in ("2C", "D2DCE")),
    ("big_resnet", {"d_cond_mtd": "AC", "aux_cls_type": "ADC"}),
    *((name, {}) for name in ("resnet", "deep_conv", "big_resnet_deep_legacy", "big_resnet_deep_studiogan")),
    *(("stylegan2", {"d_cond_mtd": kind}) for kind in ("SPD", "W/O", "AC", "MD")),
    *((name, {}) for name in UNCONDITIONAL if "stylegan3" not in name),
]


def gan(name: str, checkout: Checkout, device: str = "cpu", **model: Any) -> Networks:
    """Networks with their discriminator; held-out images are smooth noise, a snapshot has parameters half as large."""
    made, discriminator = both(name, checkout, device, **model)

    def halved(path: str) -> torch.nn.Module:
        generator = both(name, checkout, device, **model)[0].generator
        for parameter in generator.parameters():
            parameter.mul_(0.5)
        return generator

    def held_out(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        gen = torch.Generator().manual_seed(4)
        images = torch.rand(count, 3, made.image_size, made.image_size, generator=gen) * 2 - 1
        return torch.nn.functional.avg_pool2d(images, 3, 1, 1), torch.arange(count) % made.num_classes

    companions = Companions(lambda: discriminator, held_out, lambda: "noise", halved)
    return Networks(**{**vars(made), "companions": companions})


@pytest.mark.parametrize(("name", "model"), KINDS, ids=["-".join([n, *map(str, m.values())]) for n, m in KINDS])
def test_a_score_is_the_hosts_logit_whatever_its_shape_and_companions(
    name: str, model: dict[str, Any], checkout: Checkout
) -> None:
    made = gan(name, checkout, **model)
    judge = critic.of_view(view_for(made))
    images, labels = made.companions.held_out(5)  # type: ignore[union-attr]
    images.requires_grad_()
    features, scores = judge.judge(images, labels)
    assert scores.shape == (5,)
    assert features.shape[0] == 5
    for i in range(5):  # one by one: shapes [], [1] and [1, 1]
        torch.testing.assert_close(judge.judge(images[i : i + 1], labels[i : i + 1])[1], scores[i : i + 1])
    companions = judge.minibatch.count
    assert (companions > 0) == ("stylegan2" in name)
    if companions:
        view = view_for(made)
        inputs = view.draw(range(2**31, 2**31 + companions), 0, LabelPlan(), "const")
        with torch.no_grad():
            others = view.decode(view.encode(inputs.z, inputs.labels), inputs.z, None)
            batch, of = torch.cat([images[:1], others]), torch.cat([labels[:1], inputs.labels])  # one group
            answer = judge.module(batch, of, eval=True)["adv_output"].reshape(-1)[:1]
    else:
        answer = judge.module(images, labels, eval=True, adc_fake=False)["adv_output"].reshape(-1)[:1]
    torch.testing.assert_close(scores[:1], answer, atol=1e-5, rtol=1e-5)
    (slope,) = torch.autograd.grad(scores[0], images)
    assert slope[0].abs().sum() > 0
    assert slope[1:].abs().sum() == 0  # no image has a say in the score of another


@pytest.mark.parametrize("group", [3, 4, 8])
def test_companions_fill_a_group_of_any_size(group: int, checkout: Checkout) -> None:
    """The host's configurations have 4, 8 and 32 (here: 2, above)."""
    made = gan("stylegan2", checkout)
    assert made.companions
    discriminator = made.companions.discriminator()
    for layer in discriminator.modules():
        if type(layer).__name__ == "MinibatchStdLayer":
            layer.group_size = group
    view = view_for(made)
    judge = critic.of_view(view)
    images, labels = made.companions.held_out(3)
    scores = judge.judge(images, labels)[1]
    inputs = view.draw(range(2**31, 2**31 + group - 1), 0, LabelPlan(), "const")
    others = view.decode(view.encode(inputs.z, inputs.labels), inputs.z, None)
    for i in range(3):
        whole = torch.cat([images[i : i + 1], others]), torch.cat([labels[i : i + 1], inputs.labels])
        expected = discriminator(*whole, eval=True)["adv_output"].reshape(-1)[:1]
        torch.testing.assert_close(scores[i : i + 1], expected, atol=1e-5, rtol=1e-5)


REFUSED = {  # what has no meaning on a view, and says so
    "conditional_truncation": ("big_resnet", "resnet", "deep_conv"),
    "cluster_truncation": ("big_resnet", "resnet", "deep_conv"),
    "autoguidance": ("resnet", "deep_conv"),
}


ON_CPU = [*(name for name in BACKBONES if name != "stylegan3"), "big_resnet+info"]  # a half-minute a sampler and more
ON_GPU = ["big_resnet", "stylegan2", "stylegan3"]


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize(
    ("backbone", "device"),
    [
        *((backbone, "cpu") for backbone in ON_CPU),
        *(pytest.param(backbone, "cuda", marks=pytest.mark.gpu) for backbone in ON_GPU),
    ],
)
@pytest.mark.parametrize("name", [name for name in REAL if name != "repgan"])  # which walks as ddls does
def test_every_sampler_on_every_view(backbone: str, device: str, name: str, checkout: Checkout) -> None:
    reason = keeps_the_contract(view_for(gan(backbone, checkout, device)), name, TOLERANCES[device].chain)
    family = backbone.partition("_deep")[0] if "+" not in backbone else backbone.partition("+")[0]
    uniform = backbone == "resnet"
    expected = family in REFUSED.get(name, ()) or (name == "truncation" and uniform)
    assert (reason is not None) == expected, reason
    assert reason is None or "\n" not in reason


WITHOUT_W = {"cluster_truncation": "needs a generator with w", "autoguidance": "has none beside z"}
FAMILIES = ("deep_conv", "resnet", "stylegan2", "resnet+info")  # uniform z: resnet


@pytest.mark.parametrize("backbone", FAMILIES)
@pytest.mark.parametrize("name", [name for name in REAL if "classes" not in SAMPLERS[name].needs and name != "repgan"])
def test_every_sampler_that_needs_no_class_on_views_without_labels(
    backbone: str, name: str, checkout: Checkout
) -> None:
    made = gan(f"{backbone}+unconditional", checkout)
    chain = 2e-2 if backbone == "stylegan2" else TOLERANCES["cpu"].chain  # rounding flips a leaky ReLU of one image
    reason = keeps_the_contract(view_for(made), name, chain)
    if name in WITHOUT_W and backbone != "stylegan2":
        assert reason
        assert WITHOUT_W[name] in reason
    elif name == "truncation" and made.z_prior == "uniform":
        assert reason
        assert "needs a gaussian prior" in reason
    else:
        assert reason is None


@pytest.mark.parametrize(("name", "kind"), [("big_resnet", "MH"), ("stylegan2", "PD")])
def test_what_has_no_meaning_is_refused(name: str, kind: str, checkout: Checkout) -> None:
    view = view_for(gan(name, checkout, d_cond_mtd=kind))
    with pytest.raises(UserError, match=f"discriminators with d_cond_mtd {kind} have no real-or-fake logit"):
        samplers.create("ddls").check(view)
    assert isinstance(Critic(both("big_resnet", checkout)[1]), Critic)


def test_the_hosts_langevin_has_the_wrong_variance_and_ours_the_right_one(
    checkout: Checkout, capsys: pytest.CaptureFixture[str]
) -> None:
    """G = identity, d(z) = z / 2: the target is N(1/2, 1). A step of 0.1 makes its variance tau^2 / (1 - 0.1 / 4)."""
    rate, steps, chains = 0.1, 120, 40_000
    lines = ["noise  expected  the host  ours"]
    with inside(checkout), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        langevin = module("utils.sample").langevin_sampling
        for noise in (0.1, 0.5, 1.0):
            host = langevin(
                zs=torch.randn(chains, 1),
                z_dim=1,
                fake_labels=None,
                generator=lambda z, y, eval: z,
                discriminator=lambda x, y, eval: {"adv_output": x[:, 0] / 2},
                batch_size=chains,
                langevin_rate=rate,
                langevin_noise_std=noise,
                langevin_decay=0,
                langevin_decay_steps=0,
                langevin_steps=steps,
                device="cpu",
            ).detach()
            z = torch.randn(chains, 1)
            for _ in range(steps):
                z, _ = ula(z, lambda u: u.square().sum(1) / 2 - u[:, 0] / 2, rate, torch.randn(chains, 1), noise)
            expected = noise**2 / (1 - rate / 4)
            lines.append(f"{noise:<6} {expected:<9.4f} {float(host.var()):<9.4f} {float(z.var()):.4f}")
            assert z.mean() == pytest.approx(0.5, abs=0.02)
            assert z.var() == pytest.approx(expected, rel=0.03)
            assert host.mean() == pytest.approx(0.5, abs=0.02)
            assert host.var() == pytest.approx(noise / (1 - rate / 4), rel=0.03)  # its standard deviation is a variance
    with capsys.disabled():
        print("\n" + "\n".join(lines))


@pytest.fixture
def _no_wandb(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return


@pytest.mark.usefixtures("hub", "_no_wandb")
def test_a_host_run_calibrates_and_samples_as_eval_does(tmp_path: Path, checkout: Checkout, data: Path) -> None:
    sampler = "{name: ddls, steps: 2, step: 0.1, base: {name: gandance, scale: 1.5}}"
    yaml = write_yaml(tmp_path / "tiny.yaml", "big_resnet", f"sampler: {sampler}")
    common = ["-cfg", yaml, "-data", data, "-ref", "valid", "--num_workers", "0", "--seed", "3"]
    train = ["-t", "-metrics", "none", "--print_freq", "1", "--save_freq", "4", "-save", tmp_path / "a"]
    hooks.start(checkout, "main", tuple(map(str, [*common, *train])))
    ckpt = next((tmp_path / "a" / "checkpoints").iterdir())
    look = ["-metrics", "is", "prdc", "-ckpt", ckpt, "-save", tmp_path / "b"]
    hooks.start(checkout, "main", tuple(map(str, [*common, *look])))
    (row,) = map(json.loads, (tmp_path / "b" / "results.jsonl").read_text().splitlines())
    (own,) = ok("eval", "-c", yaml, "--data", data, "--ckpt", ckpt, "--reference", "valid", "--seed", 3, "--metrics",
                "is,prdc", "--batch-size", 8, "--no-compare-plain", "--out", tmp_path / "c")["rows"]  # fmt: skip
    assert row["metrics"] == pytest.approx(own["metrics"], rel=1e-5)
    assert row["options"] == own["options"]
    assert row["generator"]["discriminator_sha256"] == own["generator"]["discriminator_sha256"]
    assert row["cost"]["backward"] == own["cost"]["backward"] == 2
    refused = [*common, "-metrics", "none", "-itp", "-ckpt", str(ckpt), "-save", str(tmp_path / "d")]
    with pytest.raises(UserError, match=r"-itp \(which mixes classes\) cannot be combined with sampler 'ddls'"):
        hooks.start(checkout, "main", tuple(map(str, refused)))

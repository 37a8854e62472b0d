"""The keys in the host's configuration, the image seam, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from host_models import assert_same_images, networks, write_yaml

from studiogan_guidance import host as host_package
from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.latents import LabelPlan, Networks, view_for
from studiogan_guidance.options import Spec
from studiogan_guidance.plugin import seam
from studiogan_guidance.samplers import choices

pytestmark = pytest.mark.studiogan
GUIDED = "sampler: {name: gandance, scale: 1.5}"
ON_A_BASE = "sampler: {name: ddls, calibration: none, base: {name: gandance, scale: 1.5}}"


@pytest.fixture
def host(checkout: Checkout, tmp_path: Path) -> Iterator[None]:
    """The host with hooks registered, as a user's own script would, in a folder with the checkpoints of a run.

    It has no part in ``monkeypatch``: what a test replaces meanwhile must be undone before the shims are.
    """
    (tmp_path / "d").mkdir()
    for name in ("G", "G_ema", "D"):
        torch.save({}, tmp_path / "d" / f"model={name}-current-weights-step=1.pth")
    with inside(checkout), pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("WANDB_MODE", "disabled")
        host_package.register()
        try:
            with seam.active(seam.RunState()):
                yield
        finally:
            host_package.unregister()


def run_flags(**given: Any) -> dict[str, Any]:
    """What the host's command line gives by default."""
    names = (
        "vis_fake_images k_nearest_neighbor interpolation frequency_analysis tsne_analysis intra_class_fid GAN_train "
        "GAN_test semantic_factorization save_real_images langevin_sampling distributed_data_parallel train "
        "load_train_hdf5 load_data_in_memory batch_statistics standing_statistics synchronized_bn mixed_precision"
    )
    flags: dict[str, Any] = dict.fromkeys(names.split(), False)
    flags.update(freezeD=-1, ckpt_dir="d", data_dir="d", save_fake_images=True, eval_metrics=["none"], save_freq=100)
    flags.update(eval_backbone="InceptionV3_tf", post_resizer="legacy", pre_resizer="wo_resize", ref_dataset="train")
    flags.update(save_dir="d", load_best=False, num_workers=0, num_eval=1, save_fake_images_num=1)
    flags.update(calc_is_ref_dataset=False, langevin_rate=1.0, langevin_noise_std=1.0, langevin_steps=1)
    flags.update(
        standing_max_batch=8, standing_step=8, print_freq=50, truncation_factor=-1.0, truncation_cutoff=None, seed=5
    )
    return {**flags, **given}


def configured(path: Path, **given: Any) -> Any:
    cfgs = module("config").Configurations(str(path))
    cfgs.update_cfgs(run_flags(**given), super="RUN")
    cfgs.OPTIMIZATION.world_size = 1
    cfgs.check_compatability()
    return cfgs


@pytest.mark.parametrize(
    "text",
    [
        "sampler: gandance",
        "sampler: {name: gandance, scale: 1.2}",
        "RUN: {sampler: gandance}",
        "RUN: {sampler: {name: gandance, joint: class_mean}}",
    ],
)
def test_every_accepted_form_means_the_same(host: None, tmp_path: Path, text: str) -> None:
    cfgs = configured(write_yaml(tmp_path / "a.yaml", "big_resnet", text))
    options = samplers.options(samplers.create("gandance"))
    assert cfgs.RUN.sampler == {"name": "gandance", **options}
    assert cfgs.DATA.num_classes == 4


def test_without_our_keys_the_host_reads_its_file_as_ever(host: None, tmp_path: Path) -> None:
    cfgs = configured(write_yaml(tmp_path / "a.yaml", "big_resnet"))
    assert (cfgs.RUN.sampler, cfgs.RUN.stages, cfgs.RUN.restat) == (None, (), None)
    assert cfgs.MODEL.g_shared_dim == 8


def test_a_file_of_ours_that_names_the_hosts_works_in_the_host(host: None, tmp_path: Path) -> None:
    cfgs = configured(Path("CIFAR10/BigGAN-gandance.yaml"))
    assert (cfgs.MODEL.backbone, cfgs.RUN.sampler["scale"]) == ("big_resnet", 1.2)


@pytest.mark.parametrize(("name", "backbone"), [("StyleGAN2", "stylegan2"), ("BigGAN", "big_resnet")])
def test_the_configurations_of_glead_train_in_the_host(host: None, name: str, backbone: str) -> None:
    cfgs = configured(Path(f"CIFAR10/{name}-glead.yaml"), train=True, save_freq=1000)
    assert cfgs.MODEL.backbone == backbone
    assert [stage["name"] for stage in cfgs.RUN.stages] == ["glead"]


def test_a_name_among_the_hosts_own_configurations_is_found(host: None) -> None:
    assert configured(Path("CIFAR10/BigGAN.yaml")).MODEL.backbone == "big_resnet"


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("smpler: gandance", {}, "did you mean 'sampler'"),
        ("sampler: gandanc", {}, "did you mean 'gandance'"),
        ("sampler: {name: gandance, scal: 2}", {}, "did you mean 'scale'"),
        ("sampler: 3", {}, "must be a name or a mapping"),
        ("sampler: gandance\nRUN: {sampler: plain}", {}, "has sampler twice"),
        ("sampler: gandance\nnum: 100", {}, "has num, which only 'studiogan-guidance sample' and 'eval' read"),
        ("RUN: {sede: 3}", {}, "the host has no key RUN.sede"),
        ("stages: [nothing]", {}, "unknown stage 'nothing'"),
        ("restat: 4", {}, "restat needs a sampler"),
        ("sampler: {name: gandance, scale: auto}", {"train": True}, "scale=auto stands for a choice for finished"),
        (GUIDED, {"seed": 2**31}, "choose a seed of at most 2147483647"),
        ("restat: many", {}, "restat must be a whole number"),
        (GUIDED, {"langevin_sampling": True, "vis_fake_images": True}, r"-lgv .* sampler 'gandance'"),
        ("sampler: {name: truncation, threshold: 1}", {"truncation_factor": 0.5}, "--truncation_factor cannot be"),
        ("sampler: {name: ddls, calibration: none}", {"truncation_factor": 0.5}, "--truncation_factor cannot be"),
        (ON_A_BASE, {"interpolation": True}, r"-itp \(which mixes classes\) cannot be"),
        (ON_A_BASE, {"semantic_factorization": True, "num_semantic_axis": 2}, "-sefa cannot be"),
        (GUIDED + "\nrestat: 2", {"standing_statistics": True}, "-std_stat, when restat is on"),
        (GUIDED + "\nrestat: 2", {"batch_statistics": True}, "-batch_stat, when restat is on"),
        (GUIDED + "\nrestat: 2", {"synchronized_bn": True}, "-sync_bn, when restat is on"),
        (GUIDED, {"batch_statistics": True, "standing_statistics": True}, "the host refuses this run: You can't turn"),
        ("", {"train": True, "ckpt_dir": None, "save_freq": 100}, "--save_freq 100 is more than the 3 steps"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    host: None, tmp_path: Path, text: str, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        configured(write_yaml(tmp_path / "a.yaml", "big_resnet", text), **given)


def test_psi_beyond_its_range_is_refused_for_stylegan(host: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--truncation_factor is 1.5: for stylegan2"):
        configured(write_yaml(tmp_path / "a.yaml", "stylegan2", GUIDED), truncation_factor=1.5)
    with pytest.raises(UserError, match=r"restat \(stylegan2 has no batch norms\) cannot be"):
        configured(write_yaml(tmp_path / "a.yaml", "stylegan2", GUIDED + "\nrestat: 3"))
    configured(write_yaml(tmp_path / "b.yaml", "stylegan2", GUIDED), truncation_factor=0.5)
    configured(write_yaml(tmp_path / "c.yaml", "big_resnet", GUIDED), truncation_factor=1.5)


def test_latent_optimisation_is_refused(host: None, tmp_path: Path) -> None:
    cfgs = configured(write_yaml(tmp_path / "a.yaml", "big_resnet", GUIDED))
    cfgs.LOSS.apply_lo = True
    cfgs.LOSS.lo_steps4eval = 0  # in training only
    cfgs.check_compatability()
    cfgs.LOSS.lo_steps4eval = 1
    with pytest.raises(UserError, match=r"LOSS.apply_lo \(latent optimisation\) cannot be combined"):
        cfgs.check_compatability()


def test_the_host_keeps_its_own_langevin_where_the_sampler_is_neutral(host: None, tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "a.yaml", "big_resnet", "sampler: {name: gandance, scale: 1}")
    configured(path, langevin_sampling=True, vis_fake_images=True)


def test_register_twice_is_once_and_unregister_puts_all_back(checkout: Checkout) -> None:
    with inside(checkout):
        places = [
            (module("config").Configurations, "_overwrite_cfgs"),
            (module("config").Configurations, "check_compatability"),
            (module("utils.sample"), "generate_images"),
            (module("metrics.features"), "generate_images_and_stack_features"),
            (module("utils.misc").GeneratorController, "prepare_generator"),
            (module("loader"), "WORKER"),
            (torch.multiprocessing, "spawn"),
        ]
        before = [getattr(owner, name) for owner, name in places]
        host_package.register()
        once = [getattr(owner, name) for owner, name in places]
        host_package.register()
        assert [getattr(owner, name) for owner, name in places] == once
        assert not set(map(id, once)) & set(map(id, before))
        host_package.unregister()
        host_package.unregister()
        assert [getattr(owner, name) for owner, name in places] == before


def test_without_a_host_it_says_where_to_call_it() -> None:
    with pytest.raises(UserError, match=r"register\(\) must be called where the host's src folder is importable"):
        host_package.register()


def model_section(made: Networks) -> dict[str, Any]:
    """What is read of the host's MODEL section."""
    names = ("backbone", "z_dim", "z_prior", "g_cond_mtd")
    return {**{name: getattr(made, name) for name in names}, "info_type": "N/A"}


def generate(made: Networks, run: dict[str, Any], count: int = 6, y: Any = "totally_random", **more: Any) -> Any:
    """The host's generate_images as its evaluation calls it."""
    generator: Any = made.generator
    is_stylegan = "stylegan" in made.backbone
    given: dict[str, Any] = {
        "z_prior": made.z_prior,
        "truncation_factor": run["truncation_factor"],
        "batch_size": count,
        "z_dim": made.z_dim,
        "num_classes": made.num_classes,
        "y_sampler": y,
        "radius": "N/A",
        "generator": generator,
        "discriminator": None,
        "is_train": False,
        "LOSS": SimpleNamespace(lo_steps4eval=0, lo_steps4train=0, apply_lo=False),
        "RUN": SimpleNamespace(**run),
        "MODEL": SimpleNamespace(**model_section(made)),
        "device": torch.device("cpu"),
        "is_stylegan": is_stylegan,
        "generator_mapping": getattr(generator, "mapping", None),
        "generator_synthesis": getattr(generator, "synthesis", None),
        "style_mixing_p": 0.0,
        "stylegan_update_emas": False,
        "cal_trsp_cost": False,
    }
    return module("utils.sample").generate_images(**{**given, **more})


def spec(sampler: Any, **given: Any) -> dict[str, Any]:
    return {**run_flags(**given), "sampler": sampler, "stages": None, "restat": given.get("restat")}


def stream(made: Networks, name: str, options: dict[str, Any], seeds: range, plan: LabelPlan | None = None) -> Any:
    sampler = samplers.create(name, options)
    (batch,) = sampler.stream(view_for(made), seeds, len(seeds), plan or LabelPlan())
    return batch


@pytest.mark.parametrize("run", [None, {"name": "gandance", "scale": 1.0}, {"name": "gandance", "scale": 2.0}])
def test_training_calls_and_neutral_samplers_are_the_hosts_own(checkout: Checkout, run: dict[str, Any] | None) -> None:
    made = networks("big_resnet", checkout)
    training = {"is_train": bool(run and run["scale"] == 2)}

    def images() -> tuple[Any, Any, Any]:
        torch.manual_seed(4)
        found = generate(made, spec(run), **training)
        return found[0], found[1], torch.get_rng_state()

    made.generator.train(training["is_train"])
    state = {key: value.clone() for key, value in made.generator.state_dict().items()}
    with inside(checkout):
        plain = images()
        made.generator.load_state_dict(state)
        host_package.register()
        try:
            hooked = images()
        finally:
            host_package.unregister()
    assert all(torch.equal(a, b) for a, b in zip(plain, hooked))


@pytest.mark.parametrize("name", ["big_resnet", "resnet", "stylegan2"])
def test_guided_images_are_those_of_our_own_evaluation(host: None, checkout: Checkout, name: str) -> None:
    made = networks(name, checkout)
    run = spec({"name": "gandance", "scale": 1.5})
    first, second = generate(made, run), generate(made, run, 4)
    ours = stream(made, "gandance", {"scale": 1.5}, range(5, 15))
    assert_same_images(torch.cat([first[0], second[0]]), ours.images)
    assert torch.equal(torch.cat([first[1], second[1]]), ours.labels)
    assert not first[0].requires_grad
    assert not any(module.training for module in made.generator.modules())


def test_scale_auto_is_the_choice_for_the_weights(host: None, checkout: Checkout, tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "a.yaml", "big_resnet", "sampler: {name: gandance, scale: auto}")
    run = configured(path).RUN.sampler
    assert run == {"name": "gandance", "scale": "auto"}
    made = networks("big_resnet", checkout)
    choices.keep(choices.facts(view_for(made), Spec("gandance", {"scale": 1.7, "profile": [1.0, 0.5]})))
    images, *_ = generate(made, spec(run))
    ours = stream(made, "gandance", {"scale": 1.7, "profile": [1.0, 0.5]}, range(5, 5 + len(images)))
    assert_same_images(images, ours.images)


@pytest.mark.parametrize("y", [2, "acending_all", "acending_some"])
def test_the_host_chooses_the_labels_of_canvases(host: None, checkout: Checkout, y: Any) -> None:
    made = networks("big_resnet", checkout)
    np.random.seed(0)
    images, labels, *_ = generate(made, spec({"name": "gandance", "scale": 1.5}), 16, y)
    np.random.seed(0)
    wanted = module("utils.sample").sample_y(y, 16, 4, torch.device("cpu"))
    assert torch.equal(labels, wanted)
    plan = LabelPlan(tuple(wanted.tolist()))
    ours = stream(made, "gandance", {"scale": 1.5}, range(5, 5 + len(wanted)), plan)
    assert torch.equal(images, ours.images)


@pytest.mark.parametrize("y", ["totally_random", 2, "acending_all"])
@pytest.mark.parametrize("name", ["resnet+unconditional", "stylegan2+unconditional"])
def test_images_without_labels_are_those_of_our_own_evaluation(
    host: None, checkout: Checkout, name: str, y: Any
) -> None:
    made = networks(name, checkout)
    sampler = {"name": "hubness", "pool": 100, "threshold": 7}
    images, labels, *_ = generate(made, spec(sampler), 6, y, num_classes=4)  # of the data
    assert len(images) == (32 if y == "acending_all" else 6)
    assert labels.tolist() == [0] * len(images)
    options = {"pool": 100, "threshold": 7}
    assert torch.equal(images, stream(made, "hubness", options, range(5, 5 + len(images))).images)


def test_what_calls_the_generator_by_itself_may_give_any_labels_to_one_without(host: None, checkout: Checkout) -> None:
    made = networks("stylegan2+unconditional", checkout)
    run, model = (SimpleNamespace(**part) for part in (spec({"name": "truncation", "psi": 0.5}), model_section(made)))
    session = seam.Session(seam.current(), made.generator, run, model, 4, "cpu")
    z = torch.randn(3, made.z_dim, generator=torch.Generator().manual_seed(0))
    images = session.decode(z, torch.tensor([3, 1, 2]))
    view = view_for(made)
    with torch.no_grad():
        code = view.global_mean().lerp(view.encode(z, torch.zeros(3, dtype=torch.int64)), 0.5)
        assert_same_images(images, view.decode(code, z, None))


@pytest.mark.parametrize(
    ("sampler", "given", "message"),
    [
        (
            "gandance",
            {},
            r"sampler 'gandance' needs a conditional generator, but this generator is unconditional \(MODEL.g",
        ),
        (
            "{name: drs, base: gandance}",
            {},
            "sampler 'gandance' needs a conditional generator, .*: use plain, truncation",
        ),
        ("{name: drs}", {"intra_class_fid": True}, "-ifid needs a conditional .*: drop it, or the sampler"),
        ("{name: drs}", {"langevin_sampling": True, "vis_fake_images": True}, "-lgv .* cannot be combined"),
    ],
)
def test_what_needs_classes_is_refused_by_name(
    host: None, tmp_path: Path, sampler: str, given: dict[str, Any], message: str
) -> None:
    path = write_yaml(tmp_path / "a.yaml", "deep_conv+unconditional", f"sampler: {sampler}")
    with pytest.raises(UserError, match=message):
        configured(path, **given)


def test_what_needs_no_class_is_accepted(host: None, tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "a.yaml", "deep_conv+unconditional", "sampler: {name: drs, percentile: 90}")
    assert configured(path).RUN.sampler["percentile"] == 90


def test_truncation_factor_keeps_its_meaning_for_w(host: None, checkout: Checkout) -> None:
    made = networks("stylegan2", checkout)
    found = generate(made, spec({"name": "plain"}, truncation_factor=0.6, truncation_cutoff=2))
    ours = stream(made, "truncation", {"psi": 0.6, "cutoff": 2}, range(5, 11))
    assert torch.equal(found[0], ours.images)
    with seam.active(seam.RunState()):
        guided = generate(made, spec({"name": "gandance", "scale": 1.5}, truncation_factor=0.6))
    view, sampler = view_for(made), samplers.create("gandance", {"scale": 1.5})
    with view.frozen(), torch.no_grad():  # truncation and guidance are both affine: pulling the guided code is the same
        inputs = view.draw(range(5, 11), 0, LabelPlan())
        code = sampler.guided(view, inputs, view.encode(inputs.z, inputs.labels))  # type: ignore[attr-defined]
        expected = view.decode(view.global_mean() + 0.6 * (code - view.global_mean()), inputs.z, inputs.noise)
    torch.testing.assert_close(guided[0], expected, atol=1e-4, rtol=0)


def test_truncation_factor_keeps_its_meaning_for_z(host: None, checkout: Checkout) -> None:
    made = networks("big_resnet", checkout)
    found = generate(made, spec({"name": "plain"}, truncation_factor=0.5))
    assert torch.equal(found[0], stream(made, "truncation", {"threshold": 0.5}, range(5, 11)).images)
    uniform = networks("resnet", checkout)  # the host ignores the factor for a uniform prior
    with seam.active(seam.RunState()):
        found = generate(uniform, spec({"name": "plain"}, truncation_factor=0.5))
    assert torch.equal(found[0], stream(uniform, "plain", {}, range(5, 11)).images)


def test_batch_statistics_are_the_statistics_of_the_batch(host: None, checkout: Checkout) -> None:
    made = networks("big_resnet", checkout)
    run = spec({"name": "gandance", "scale": 1.5}, batch_statistics=True)
    misc = module("utils.misc")
    made.generator.eval()
    made.generator.apply(misc.set_bn_trainable)
    made.generator.apply(misc.untrack_bn_statistics)
    state = {key: value.clone() for key, value in made.generator.state_dict().items()}
    images = generate(made, run)[0]
    view = view_for(made)
    inputs = view.draw(range(5, 11), 0, LabelPlan())
    table = made.generator.shared.weight
    code = table.mean(0) + 1.5 * (table[inputs.labels] - table.mean(0))
    with torch.no_grad():  # the host's own call, its batch norms in training mode, all else in evaluation mode
        expected = made.generator(inputs.z, None, shared_label=code, eval=True)
    assert_same_images(images, expected)
    assert not torch.allclose(images, stream(made, "gandance", {"scale": 1.5}, range(5, 11)).images, atol=1e-2)
    assert all(torch.equal(state[key], value) for key, value in made.generator.state_dict().items())


def test_restat_uses_the_statistics_of_guided_images(host: None, checkout: Checkout) -> None:
    from studiogan_guidance.samplers import restat

    made = networks("big_resnet", checkout)
    images = generate(made, spec({"name": "gandance", "scale": 1.5}, restat=3))[0]
    sampler = samplers.create("gandance", {"scale": 1.5})
    with restat.applied(restat.accumulate(view_for(made), sampler, 3)):
        ours = stream(made, "gandance", {"scale": 1.5}, range(5, 11)).images
    assert torch.equal(images, ours)
    assert not torch.allclose(images, stream(made, "gandance", {"scale": 1.5}, range(5, 11)).images, atol=1e-2)


def test_processes_take_consecutive_blocks_of_images(
    host: None, checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host joins by rank is the sequence of seeds of one process, and the next analysis continues it."""
    made = networks("resnet", checkout)
    run = spec({"name": "gandance", "scale": 1.5})
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)

    def as_the_host_does(num_generate: int, batch_size: int) -> list[torch.Tensor]:
        return [generate(made, run, batch_size)[0] for _ in range(-(-num_generate // batch_size) // 3 + 1)]

    blocks = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        with seam.active(seam.RunState()):
            blocks += seam.in_blocks(as_the_host_does, "num_generate")(num_generate=20, batch_size=4)
            assert seam.current().position == 20
    ours = stream(made, "gandance", {"scale": 1.5}, range(5, 25)).images
    assert_same_images(torch.cat(blocks)[:20], ours)


def test_what_the_host_splits_among_gpus_is_made_in_as_many_parts(
    host: None, checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = networks("resnet", checkout)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    sizes: list[int] = []
    made.generator.register_forward_hook(lambda module, args, images: sizes.append(len(images)))
    images = generate(made, spec({"name": "gandance", "scale": 1.5}), 8)[0]
    assert sizes == [3, 3, 2]
    ours = stream(made, "gandance", {"scale": 1.5}, range(5, 13)).images
    assert_same_images(images, ours)

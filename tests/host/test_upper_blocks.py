"""The upper blocks of the host's generators, and the features of its discriminators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from host_models import STYLE_RUN, both, networks, sections
from torch import Tensor, nn

from studiogan_guidance.errors import UserError
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.networks import build_both
from studiogan_guidance.latents import Networks
from studiogan_guidance.training.decoder import DiscriminatorFeatures
from studiogan_guidance.training.upper_blocks import Latent, UpperBlocks, upper_blocks, usual_resolution

pytestmark = pytest.mark.studiogan

RESOLUTIONS = {
    "stylegan2": (4, 8),
    "big_resnet": (8, 16),
    "big_resnet+unconditional": (8, 16),
    "big_resnet_deep_legacy": (4, 8, 16),
    "big_resnet_deep_studiogan": (4, 8, 16),
}
EVERY = [(name, side) for name, sides in RESOLUTIONS.items() for side in sides]
COUNT = 2


@pytest.fixture(scope="module")
def known(checkout: Checkout) -> Callable[[str], Networks]:
    made: dict[str, Networks] = {}

    def get(name: str) -> Networks:
        if name not in made:
            made[name] = networks(name, checkout)
        made[name].generator.eval().requires_grad_(False)
        return made[name]

    return get


def inputs(made: Networks, seed: int = 0) -> tuple[Tensor, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(COUNT, made.z_dim, generator=draws), torch.arange(COUNT) % made.num_classes


def ordinary(made: Networks, z: Tensor, labels: Tensor) -> Tensor:
    """G(z) by the host itself, with constant noise."""
    if made.backbone != "stylegan2":
        return made.generator(z, labels)
    one_hot = nn.functional.one_hot(labels, made.num_classes)
    return made.generator(z, one_hot, noise_mode="const")


def true_latent(made: Networks, upper: UpperBlocks) -> tuple[Latent, Tensor, Tensor]:
    """The latent of some images, their labels and the images."""
    z, labels = inputs(made)
    with upper.listening() as latents, torch.no_grad():
        images = ordinary(made, z, labels)
    assert len(latents) == 1
    return latents[0], labels, images


def copied(latent: Latent) -> Latent:
    return Latent(*(None if value is None else value.clone() for value in latent))


def present(latent: Latent) -> Iterator[Tensor]:
    return (value for value in latent if value is not None)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize(("name", "resolution"), EVERY)
def test_the_true_latent_gives_the_image(
    name: str, resolution: int, training: bool, known: Callable[[str], Networks]
) -> None:
    made = known(name)
    made.generator.train(training)
    upper = upper_blocks(made, resolution)
    latent, labels, images = true_latent(made, upper)

    # Its shapes are those that the upper blocks announce.
    assert latent.feature.shape == (COUNT, upper.channels, resolution, resolution)
    assert latent.code.shape == (COUNT, upper.code_width)
    assert upper.has_image == (latent.image is not None)

    # The very bits, twice, from a latent that is not changed.
    before = copied(latent)
    assert torch.equal(upper(latent, labels, "const"), images)
    assert torch.equal(upper(latent, labels, "const"), images)
    assert all(map(torch.equal, present(latent), present(before)))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_half_precision_is_that_of_the_blocks(training: bool, checkout: Checkout) -> None:
    made, discriminator = both("stylegan2", checkout)
    made.generator.train(training)
    for network in (made.generator.synthesis, discriminator):
        network.b8.use_fp16 = True
        network.b16.use_fp16 = True
    upper = upper_blocks(made, 8)
    latent, labels, images = true_latent(made, upper)
    assert latent.feature.dtype == latent.code.dtype == images.dtype == torch.float32
    assert torch.equal(latent.feature.half().float(), latent.feature)
    assert torch.equal(upper(latent, labels, "const"), images)

    # So are the features of the discriminator.
    passes: list[dict[int, Tensor]] = []
    with DiscriminatorFeatures(made, discriminator).listening(passes), torch.no_grad():
        discriminator(images[:2], labels[:2])
    assert {maps.dtype for maps in passes[0].values()} == {torch.float32}


@pytest.mark.parametrize("name", RESOLUTIONS)
def test_a_call_leaves_the_generator_as_it_was(name: str, known: Callable[[str], Networks]) -> None:
    made = known(name)
    made.generator.train().requires_grad_(True)
    frozen = next(made.generator.parameters()).requires_grad_(False)
    upper = upper_blocks(made, 8)
    latent, labels, _ = true_latent(made, upper)

    # All that it holds, before and after a call, and after one that fails.
    def everything() -> list[Any]:
        modules = list(made.generator.modules())
        flags = [parameter.requires_grad for parameter in made.generator.parameters()]
        return [[module.training for module in modules], flags, [id(b) for b in made.generator.buffers()]]

    state = {key: value.clone() for key, value in made.generator.state_dict().items()}
    held = everything()
    upper(latent, labels)
    wide = torch.cat([latent.feature, latent.feature], 1)
    with pytest.raises((AssertionError, RuntimeError)):
        upper(latent._replace(feature=wide), labels)

    assert everything() == held
    assert not frozen.requires_grad
    assert all(torch.equal(value, state[key]) for key, value in made.generator.state_dict().items())


def test_norms_that_always_track_are_left_as_they_were(checkout: Checkout) -> None:
    made = networks("big_resnet", checkout)
    with inside(checkout):
        synchronised = module("sync_batchnorm.batchnorm").convert_model(made.generator)
    made = dataclasses.replace(made, generator=synchronised)
    made.generator.train()
    upper = upper_blocks(made, 8)
    latent, labels, images = true_latent(made, upper)
    state = {key: value.clone() for key, value in made.generator.state_dict().items()}
    assert torch.equal(upper(latent, labels), images)
    assert all(torch.equal(value, state[key]) for key, value in made.generator.state_dict().items())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", RESOLUTIONS)
def test_gradients_reach_the_latent_alone(name: str, training: bool, known: Callable[[str], Networks]) -> None:
    made = known(name)
    made.generator.train(training).requires_grad_(True)
    upper = upper_blocks(made, 8)
    latent, labels, images = true_latent(made, upper)

    # Ask for all gradients that there are.
    leaves = Latent(*(None if value is None else value.detach().requires_grad_() for value in latent))
    target = images.roll(1, 0)
    (upper(leaves, labels, "const") - target).square().mean().backward()
    assert all(parameter.grad is None for parameter in made.generator.parameters())
    for leaf in present(leaves):
        assert leaf.grad is not None
        per_image = leaf.grad.abs().flatten(1).sum(1)
        assert torch.isfinite(per_image).all()
        assert (per_image > 0).all()


def test_every_chunk_of_the_noise_reaches_one_block(known: Callable[[str], Networks]) -> None:
    made = known("big_resnet")
    upper = upper_blocks(made, 8)
    latent, labels, images = true_latent(made, upper)
    z, _ = inputs(made)
    chunk = made.generator.chunk_size  # of four: of the first layer, and of the blocks
    assert upper.code_width == 2 * chunk
    assert torch.equal(latent.code, z[:, 2 * chunk :])

    # Other noise for the upper blocks alone.
    other, _ = inputs(made, 1)
    mixed = torch.cat([z[:, : 2 * chunk], other[:, 2 * chunk :]], 1)
    with torch.no_grad():
        expected = ordinary(made, mixed, labels)
        assert torch.equal(upper(latent._replace(code=other[:, 2 * chunk :]), labels), expected)
    assert not torch.equal(expected, images)


def test_labels_are_read_by_biggan_alone(known: Callable[[str], Networks]) -> None:
    for name, reads in (("big_resnet", True), ("big_resnet_deep_legacy", True), ("stylegan2", False)):
        upper = upper_blocks(known(name), 8)
        latent, labels, images = true_latent(known(name), upper)
        others = upper(latent, (labels + 1) % 4, "const")
        assert torch.equal(others, images) != reads


def test_random_noise_is_that_of_the_global_generator(known: Callable[[str], Networks]) -> None:
    made = known("stylegan2")
    upper = upper_blocks(made, 4)
    latent, labels, _ = true_latent(made, upper)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        images = upper(latent, labels)
        torch.manual_seed(5)
        noise = [torch.randn(COUNT, 1, side, side) for side in (8, 8, 16, 16)]

    # The same noise as a constant of each layer.
    synthesis = made.generator.synthesis
    layers = [synthesis.b8.conv0, synthesis.b8.conv1, synthesis.b16.conv0, synthesis.b16.conv1]
    constants = [layer._buffers["noise_const"] for layer in layers]
    for layer, batch in zip(layers, noise):
        layer._buffers["noise_const"] = batch
    assert torch.equal(upper(latent, labels, "const"), images)
    for layer, constant in zip(layers, constants):
        layer._buffers["noise_const"] = constant
    assert not torch.equal(upper(latent, labels, "const"), images)


def test_synthesis_alone_is_heard(known: Callable[[str], Networks]) -> None:
    made = known("stylegan2")
    upper = upper_blocks(made, 8)
    ws = torch.randn(COUNT, made.generator.num_ws, 16, generator=torch.Generator().manual_seed(0))
    with upper.listening() as latents:
        made.generator.synthesis(ws, noise_mode="const")
        made.generator.synthesis(ws * 2, noise_mode="const")
    made.generator.synthesis(ws)
    assert len(latents) == 2
    assert torch.equal(latents[0].code, ws[:, 3])  # after one row at 4 and two at 8
    assert torch.equal(latents[1].code, 2 * ws[:, 3])


@pytest.mark.parametrize(
    ("name", "resolution", "words"),
    [
        ("stylegan3", 8, "a stylegan3 generator cannot decode features: choose one of stylegan2, big_resnet, big_res"),
        ("resnet", 8, "a resnet generator cannot decode features: choose one of stylegan2, big_resnet, big_resnet_de"),
        ("deep_conv", 8, "a deep_conv generator cannot decode features: choose one of stylegan2, big_resnet, big_res"),
        ("big_resnet+info", 8, "this big_resnet generator has InfoGAN numbers.*: set MODEL.info_type to N/A"),
        ("stylegan2", 16, "stylegan2 generator of 16x16 images ends at resolution 16 .*: choose one of 4, 8$"),
        ("big_resnet", 4, "big_resnet generator of 32x32 images ends at resolution 4 .*: choose one of 8, 16$"),
    ],
)
def test_what_is_not_possible_is_refused(name: str, resolution: int, words: str, checkout: Checkout) -> None:
    with pytest.raises(UserError, match=words) as error:
        upper_blocks(networks(name, checkout), resolution)
    assert "\n" not in str(error.value)


def test_usual_resolution_is_that_of_the_paper() -> None:
    assert [usual_resolution(size) for size in (16, 32, 64, 128, 256)] == [8, 8, 16, 32, 64]


def by_hand(discriminator: Any, images: Tensor) -> dict[int, Tensor]:
    """The output of each block, the last one at each resolution, from a pass through the blocks alone."""
    maps: dict[int, Tensor] = {}
    if hasattr(discriminator, "block_resolutions"):
        x, rgb = None, images
        for side in discriminator.block_resolutions:
            x, rgb = getattr(discriminator, f"b{side}")(x, rgb)
            maps[side // 2] = x
        return maps

    # A copy is what an activation that works in place may change.
    x = discriminator.input_conv(images) if hasattr(discriminator, "input_conv") else images
    for row in discriminator.blocks:
        for block in row:
            x = block(x.clone())
            maps[x.shape[-1]] = x
    return maps


def discriminator_of(name: str, checkout: Checkout) -> tuple[Networks, nn.Module]:
    name, _, architecture = name.partition(":")
    if not architecture:
        return both(name, checkout)
    style = {**STYLE_RUN, "d_architecture": architecture}
    return build_both({**sections(name), "STYLEGAN": style}, checkout, torch.device("cpu"))


@pytest.mark.parametrize(
    "name",
    ["stylegan2", "stylegan2:skip", "stylegan2:resnet", *(name for name in RESOLUTIONS if name.startswith("big"))],
)
def test_features_are_the_outputs_of_the_blocks(name: str, checkout: Checkout) -> None:
    made, discriminator = discriminator_of(name, checkout)
    features = DiscriminatorFeatures(made, discriminator)
    size = made.image_size
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = torch.arange(4)
    expected = by_hand(discriminator, images)
    assert features.channels == {side: maps.shape[1] for side, maps in expected.items()}

    # One entry for each pass.
    passes: list[dict[int, Tensor]] = []
    with features.listening(passes):
        discriminator(images, labels)
        discriminator(images.flip(0), labels)
    discriminator(images, labels)
    assert len(passes) == 2
    assert passes[0].keys() == expected.keys()
    assert all(torch.equal(passes[0][side], maps) for side, maps in expected.items())

    # Fewer of them on demand.
    lowest = min(expected)
    with features.listening(passes, largest=lowest):
        discriminator(images, labels)
    assert list(passes[2]) == [lowest]
    assert torch.equal(passes[2][lowest], expected[lowest])


@pytest.mark.parametrize("name", ["stylegan2", "big_resnet"])
def test_listening_changes_no_gradient(name: str, checkout: Checkout) -> None:
    made, discriminator = both(name, checkout)
    discriminator.requires_grad_(True)
    features = DiscriminatorFeatures(made, discriminator)
    size = made.image_size
    images = torch.rand(4, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1

    # The gradient of R1, which needs a second derivative.
    def gradients() -> list[Tensor]:
        real = images.clone().requires_grad_()
        logits = discriminator(real, torch.arange(4))["adv_output"]
        (slope,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        wanted = [p for n, p in discriminator.named_parameters() if n.endswith(("weight", "weight_orig"))]
        found = torch.autograd.grad(slope.square().sum(), wanted, allow_unused=True)
        return [value for value in found if value is not None]

    plain = gradients()
    passes: list[dict[int, Tensor]] = []
    with features.listening(passes):
        heard = gradients()
    assert len(passes) == 1
    assert len(plain) > 3
    assert all(map(torch.equal, heard, plain))

    # The features lead to the discriminator.
    with features.listening(passes):
        discriminator(images, torch.arange(4))
    passes[1][min(passes[1])].sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in discriminator.parameters())

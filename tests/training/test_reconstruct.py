"""Reconstructions of a checkpoint of the host that was trained with the stage glead."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ok, run
from host_models import networks, save, sections
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from studiogan_guidance.host.locate import Checkout
from studiogan_guidance.host.networks import build_both
from studiogan_guidance.latents import view_for
from studiogan_guidance.latents.base import LabelPlan
from studiogan_guidance.plugin import resuming
from studiogan_guidance.training.decoder import DiscriminatorFeatures, LatentDecoder
from studiogan_guidance.training.perceptual import Pixels
from studiogan_guidance.training.reconstruct import Reconstructor, batch_statistics
from studiogan_guidance.training.upper_blocks import Latent, UpperBlocks, upper_blocks

pytestmark = pytest.mark.studiogan

STAGES = """
pre_resizer: lanczos
stages:
- {name: glead, distance: pixels, resolution: 8, decoder_resolution: 8}
"""


def decoder_of(discriminator: nn.Module, blocks: UpperBlocks, made: Any) -> LatentDecoder:
    """A decoder up to 8x8 with weights that nobody trained."""
    channels = DiscriminatorFeatures(made, discriminator).channels
    return LatentDecoder(channels, blocks.channels, blocks.has_image, blocks.code_width, 8, 8, seed=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, checkout: Checkout) -> tuple[Path, Path]:
    """(YAML, checkpoint folder) of a host training with the stage."""
    return with_stage("big_resnet", checkout, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def small(trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The same, for a test that changes it."""
    yaml, folder = trained
    return yaml, Path(shutil.copytree(folder, tmp_path / "small"))


def with_stage(name: str, checkout: Checkout, folder: Path) -> tuple[Path, Path]:
    yaml, folder = save(name, checkout, folder)
    yaml.write_text(yaml.read_text() + STAGES)
    made, discriminator = build_both(sections(name), checkout, torch.device("cpu"))
    decoder = decoder_of(discriminator, upper_blocks(made, 8), made)
    companion: Any = SimpleNamespace(network=decoder, optimiser=torch.optim.Adam(decoder.parameters()))
    resuming.write(folder / "stages-step=7.pt", "a run", {"glead": companion}, {"gpu": None, "words": "{}"})
    return yaml, folder


def reconstructed(trained: tuple[Path, Path], data: Path, out: Path, *args: object) -> tuple[Any, dict[str, Any]]:
    """What the command prints, and the arrays that it writes."""
    yaml, folder = trained
    printed = ok("sample", "--reconstruct", "-c", yaml, "--ckpt", folder, "--data", data, "--out", out, *args)
    with np.load(printed["reconstructions"]) as file:
        return printed, dict(file)


def pixels_of(images: Tensor) -> NDArray[Any]:
    return ((images + 1) * 127.5 + 0.5).clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("name", ["stylegan2", "big_resnet", "big_resnet+unconditional"])
def test_losses_and_images_are_those_of_the_training_generator(
    name: str, data: Path, tmp_path: Path, checkout: Checkout
) -> None:
    """By hand: the files' weights, the features of an image at a time, decoder, blocks on batches, distance."""
    yaml, folder = with_stage(name, checkout, tmp_path / "trained")
    printed, arrays = reconstructed((yaml, folder), data, tmp_path, "--num", 5, "--batch-size", 3, "--seed", 4)
    assert (printed["split"], printed["images"], printed["distance"]) == ("valid", 5, "pixels")
    assert Path(printed["generator"]).name == "model=G-current-weights-step=7.pth"

    # The networks.
    made, discriminator = build_both(sections(name), checkout, torch.device("cpu"))
    for network, letter in ((made.generator, "G"), (discriminator, "D")):
        network.load_state_dict(torch.load(folder / f"model={letter}-current-weights-step=7.pth")["state_dict"])
    blocks = upper_blocks(made, 8)
    decoder = decoder_of(discriminator, blocks, made)

    # The real images, as the host reads them, and plain ones of the seeds.
    files = [path for label in range(4) for path in sorted((data / "valid" / str(label)).iterdir())]
    shown = [files[number] for number in arrays["numbers"]]
    labels = torch.tensor([int(path.parent.name) * made.is_conditional for path in shown])
    size = (made.image_size, made.image_size)
    real = [torch.from_numpy(np.array(Image.open(path).resize(size, Image.Resampling.LANCZOS))) for path in shown]
    images = torch.stack(real).permute(0, 3, 1, 2) / 127.5 - 1
    view = view_for(made)
    with torch.no_grad():
        inputs = view.draw(range(4, 9), 0, LabelPlan(), "const")
        fakes = view.images(inputs)

    # Features one after the other, and blocks in training mode on batches of three.
    for key, shown_images, of in (("real", images, labels), ("generated", fakes, inputs.labels)):
        made.generator.eval()
        passes: list[dict[int, Tensor]] = []
        rebuilt = []
        with torch.no_grad(), DiscriminatorFeatures(made, discriminator).listening(passes):
            for image, label in zip(shown_images.split(1), of.split(1)):
                discriminator(image, label)
            made.generator.train()
            for part, part_labels in zip((passes[:3], passes[3:]), of.split(3)):
                maps = {side: torch.cat([found[side] for found in part]) for side in part[0]}
                rebuilt.append(blocks(decoder(maps), part_labels, noise="const"))
        losses = [float(Pixels()(*pair)) for pair in zip(torch.cat(rebuilt).split(1), shown_images.split(1))]
        assert printed[key] == pytest.approx(np.mean(losses), rel=1e-4)
        assert arrays[f"{key}_labels"].tolist() == of.tolist()
        assert np.array_equal(arrays[key], pixels_of(shown_images))
        difference = arrays[f"{key}_reconstructions"].astype(int) - pixels_of(torch.cat(rebuilt))
        assert np.abs(difference).max() <= 1


def test_each_image_stands_above_its_reconstruction(trained: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    printed, arrays = reconstructed(trained, data, tmp_path, "--num", 10, "--classes", "1-3", "--reference", "train")
    assert set(arrays["real_labels"]) <= {1, 2, 3}
    assert arrays["generated_labels"].tolist() == [1, 2, 3, 1, 2, 3, 1, 2, 3, 1]
    assert printed["split"] == "train"
    sheet = np.asarray(Image.open(printed["picture"]))[:, -8 * 128 :]
    factor = 128 // arrays["real"].shape[1]
    cells = sheet[::factor, ::factor].reshape(8, 128 // factor, 8, 128 // factor, 3).swapaxes(1, 2)

    # Two rows of pairs for each kind: of eight images, and of the two that are left.
    for first, key in ((0, "real"), (4, "generated")):
        for row, kind in ((first, key), (first + 1, f"{key}_reconstructions")):
            assert np.array_equal(cells[row], arrays[kind][:8])
            assert np.array_equal(cells[row + 2, :2], arrays[kind][8:])
            assert (cells[row + 2, 2:] == 255).all()


def test_the_seed_decides(trained: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    _, first = reconstructed(trained, data, tmp_path, "--num", 4)
    _, again = reconstructed(trained, data, tmp_path, "--num", 4)
    _, other = reconstructed(trained, data, tmp_path, "--num", 4, "--seed", 1)
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert first["numbers"].tolist() != other["numbers"].tolist()
    assert np.array_equal(first["generated"][1:], other["generated"][:-1])


@pytest.mark.parametrize("name", ["stylegan2", "big_resnet", "big_resnet_deep_legacy", "big_resnet_deep_studiogan"])
def test_the_true_latent_gives_the_image_again(name: str, checkout: Checkout) -> None:
    made = networks(name, checkout)
    _, discriminator = build_both(sections(name), checkout, torch.device("cpu"))
    blocks = upper_blocks(made, 8)
    view = view_for(dataclasses.replace(made, batch_statistics=True))
    inputs = view.draw(range(3), 0, LabelPlan(), "const")
    with blocks.listening() as latents, torch.no_grad(), batch_statistics(made.generator):
        images = view.images(inputs)

    class Oracle(nn.Module):
        def forward(self, features: dict[int, Tensor]) -> Latent:
            return latents[0]

    rebuild = Reconstructor(made, discriminator, Oracle(), blocks, Pixels())
    pairs = rebuild.pairs(images, inputs.labels)
    torch.testing.assert_close(pairs.reconstructions, images, rtol=0, atol=1e-5)
    assert pairs.loss < 1e-5
    assert images.std() > 0.01


def _without(folder: Path) -> None:
    (folder / "stages-step=7.pt").unlink()


def _of_another_step(folder: Path) -> None:
    (folder / "stages-step=7.pt").rename(folder / "stages-step=5.pt")


def _cut(folder: Path) -> None:
    path = folder / "stages-step=7.pt"
    path.write_bytes(path.read_bytes()[:-200])


def _of_another_stage(folder: Path) -> None:
    torch.save({"companions": {"other": {}}, "position": {}}, folder / "stages-step=7.pt")


def _changed(change: Any) -> Any:
    def damage(folder: Path) -> None:
        path = folder / "stages-step=7.pt"
        content = torch.load(path)
        change(content["companions"]["glead"]["network"])
        torch.save(content, path)

    return damage


def _not_finite(weights: dict[str, Tensor]) -> None:
    weights["code.weight"][0] = torch.nan


def _larger(weights: dict[str, Tensor]) -> None:
    weights["code.weight"] = torch.zeros(99, 1)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without, "trained without the stage glead: no stages-step=7.pt is beside"),
        (_of_another_step, "only stages-step=5.pt: give --which best or current, whichever has both"),
        (_cut, "cannot read the stages' weights"),
        (_of_another_stage, "trained without the stage glead:"),
        (_changed(_not_finite), "code.weight has numbers that are NaN or infinite"),
        (_changed(_larger), "code.weight is [99, 1] in the file and"),
        (_changed(lambda weights: weights.clear()), "weights are missing, such as"),
    ],
)
def test_what_cannot_be_reconstructed_is_one_line(
    damage: Any, message: str, small: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    yaml, folder = small
    damage(folder)
    args = ("--ckpt", folder, "--data", data, "--out", tmp_path / "out", "--num", 1)
    result = run("sample", "--reconstruct", "-c", yaml, *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith("Note: ")]
    assert len(lines) == 1
    assert not list((tmp_path / "out").iterdir())


def test_other_mistakes_are_one_line(small: tuple[Path, Path], data: Path, tmp_path: Path, checkout: Checkout) -> None:
    yaml, folder = small
    out = ("--out", tmp_path / "out")
    missing = run("sample", "--reconstruct", "-c", yaml, "--ckpt", folder, *out)
    assert "--reconstruct shows real images: add --data DIR" in missing.stderr

    # A generator whose features nothing decodes.
    other, others = save("resnet", checkout, tmp_path / "resnet")
    shutil.copy(folder / "stages-step=7.pt", others)
    refused = run("sample", "--reconstruct", "-c", other, "--ckpt", others, "--data", data, *out)
    assert refused.exit_code == 2
    assert "a resnet generator cannot decode features" in refused.stderr


def test_the_moving_average_is_taken_where_it_is_asked_for_or_alone(
    small: tuple[Path, Path], data: Path, tmp_path: Path
) -> None:
    yaml, folder = small
    args = ("--ckpt", folder, "--data", data, "--out", tmp_path / "out", "--num", 1)
    average = run("sample", "--reconstruct", "-c", yaml, *args, "--which", "ema")
    assert "model=G_ema-current-weights-step=7.pth" in average.stdout
    (folder / "model=G-current-weights-step=7.pth").unlink()
    alone = run("sample", "--reconstruct", "-c", yaml, *args)
    assert average.stdout == alone.stdout
    assert "the moving average is taken, which glead was not trained with" in alone.stderr
    assert "glead was not" not in average.stderr
    assert "nothing of them happens here" not in alone.stderr

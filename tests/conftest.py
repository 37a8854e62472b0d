"""Shared fixtures: a cache of the tests' own, the host where a checkout is found, and a toy GAN of known density."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from host_models import narrow_networks
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from studiogan_guidance import devices, progress, rng
from studiogan_guidance.builtin import data as digits
from studiogan_guidance.cli import main
from studiogan_guidance.config import RunConfig
from studiogan_guidance.doctor import INCEPTION, missing_host_packages
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.source import open_backbone, open_source
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout, locate
from studiogan_guidance.latents import LatentView, Networks, stylegan, view_for
from studiogan_guidance.latents.base import Companions
from studiogan_guidance.samplers import SAMPLERS


def _host() -> tuple[Checkout | None, str]:
    try:
        checkout = locate()
    except UserError as error:
        return None, str(error)
    missing = missing_host_packages()
    return (None, f"the studiogan extra is not installed ({', '.join(missing)})") if missing else (checkout, "")


if "PYTEST_XDIST_WORKER" in os.environ:  # processes share the cores, and threads that wait for each other would spin
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)

CHECKOUT, WHY_NOT = _host()  # looked for before the tests get a cache folder of their own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("studiogan") and CHECKOUT is None:
            item.add_marker(pytest.mark.skip(reason=WHY_NOT))
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture(scope="session", autouse=True)
def _own_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["STUDIOGAN_GUIDANCE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ[devices.DEVICE] = "cpu"  # what tests mean that say nothing, in processes that they start, too
    progress.PAUSE = 3600.0  # on a slow machine, too, stderr has the lines that tests are about
    if CHECKOUT:
        os.environ["STUDIOGAN_ROOT"] = str(CHECKOUT.path)


@pytest.fixture(scope="module", autouse=True)
def _no_samplers_of_others_afterwards() -> Iterator[None]:
    """What the tests of one file register, such as the example on a page, is unknown to those of the next."""
    yield
    for name in [entry.name for entry in SAMPLERS if not entry.target.__module__.startswith("studiogan_guidance.")]:
        del SAMPLERS._entries[name]


@pytest.fixture(autouse=True)
def _gpu_where_it_is_asked_for(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:  # the fixture would be undone after those that tests ask for
        if request.node.get_closest_marker("gpu"):
            patch.delenv(devices.DEVICE, raising=False)
        yield


@dataclass(frozen=True)
class Tolerance:
    """How far values may be from those of the same seeds, made on the CPU or at another time.

    Attributes:
        fid: relative difference of FID.
        share: absolute difference of precision, recall, density and coverage.
        pixel: largest difference of a pixel, as a part of the largest pixel (of 1, if all are less).
        chain: the same after a chain of steps that magnify rounding, without TF32.
        training: relative difference of losses and of weights; 0: the same files, byte for byte.
    """

    fid: float
    share: float
    pixel: float
    chain: float
    training: float


TOLERANCES = {
    "cpu": Tolerance(fid=1e-6, share=1e-9, pixel=1e-5, chain=2e-3, training=0),
    "cuda": Tolerance(fid=1e-3, share=2e-2, pixel=2e-2, chain=2e-2, training=5e-2),  # TF32 in convolutions
}


@pytest.fixture(scope="session", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device in turn, for a test of what holds on all of them."""
    return str(request.param)


@pytest.fixture(scope="session")
def tolerance(device: str) -> Tolerance:
    """What the present device is allowed."""
    return TOLERANCES[device]


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions on a GPU in float32, by algorithms that give the same bits each time."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


@pytest.fixture(scope="session")
def checkout() -> Iterator[Checkout]:
    """The host, whose StyleGANs are narrow in this process: what holds exactly needs no width."""
    assert CHECKOUT is not None
    with narrow_networks(CHECKOUT):
        yield CHECKOUT


def run(*args: object) -> Result:
    """The command line in this process."""
    return CliRunner().invoke(main, [str(arg) for arg in args])


def ok(*args: object) -> Any:
    """What the command line prints as JSON; it must succeed."""
    result = run(*args, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def digit_images(split: str, per_class: int) -> Iterator[tuple[int, int, Any]]:
    """(class, number, digit uint8 [32, 32, 3]) of the first four classes."""
    pixels, labels = digits.digits(split)
    for label in range(4):
        for i, x in enumerate(pixels[labels == label][:per_class]):
            yield label, i, ((x + 1) * 127.5).byte().permute(1, 2, 0).numpy()


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ImageFolder of real digits, 4 classes: 4 images of each to train, 3 to validate."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 4), ("valid", 3)):
        for label, i, image in digit_images(split, count):
            path = folder / split / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory, checkout: Checkout) -> Iterator[None]:
    """The host's Inception with random weights, where torch's hub would have put the trained ones."""
    # Build the network, without its download.
    nets: list[torch.nn.Module] = []
    with inside(checkout), torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        inception = module("metrics.inception_net")
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda self, *_, **__: nets.append(self))
        inception.fid_inception_v3()

        # One pass in training mode, so that batch norms fit the data and features do not vanish.
        nets[-1].train()
        for norm in nets[-1].modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.momentum = None
        batch = torch.stack([torch.from_numpy(image) for _, _, image in digit_images("train", 4)]).permute(0, 3, 1, 2)
        with torch.no_grad():
            nets[-1](torch.nn.functional.interpolate(batch.float() / 127.5 - 1, size=(299, 299)))
    nets[-1].fc.weight.data *= 0.05  # type: ignore[union-attr, operator]  # class probabilities that do not underflow

    # Put it where torch's hub looks, for other processes, too.
    home = tmp_path_factory.mktemp("torch")
    (home / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(nets[-1].state_dict(), home / "hub" / "checkpoints" / INCEPTION)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        yield


class ToyGAN(nn.Module):
    """w = mean + z A + b_c + (z Q) d_c, with sum_c b_c = sum_c d_c = 0, so every term of the decomposition is known.

    The image of w is w itself: 12 numbers as a 3x2x2 picture, read from the last of three rows.
    """

    classes = 5
    z_dim = 4
    w_dim = 12
    rows = 3

    def __init__(self, between: float = 1.0, interaction: float = 1.0, spread: float = 1.0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(1)
        self.mean = torch.randn(self.w_dim, generator=g)
        self.A = spread * torch.randn(self.z_dim, self.w_dim, generator=g)
        self.Q = interaction * torch.randn(self.z_dim, self.w_dim, generator=g)
        b, d = torch.randn(2, self.classes, self.w_dim, generator=g)
        self.b = between * (b - b.mean(0))
        self.d = d - d.mean(0)
        self.register_buffer("w_avg", self.mean.clone())
        self.scale = nn.Parameter(torch.ones(()))
        self.synthesis = Readout(self.rows)

    def parts(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a(z), b(c) and i(z, c), each [B, w_dim]."""
        return z @ self.A, self.b[labels], (z @ self.Q) * self.d[labels]

    def mapping(self, z: Tensor, weights: Tensor) -> Tensor:
        w = self.mean + z @ self.A + weights @ self.b + (z @ self.Q) * (weights @ self.d)
        return w[:, None].repeat(1, self.rows, 1)


def table_noise(toy: ToyGAN) -> Tensor:
    """Mean noise of the draws behind the toy's class means, [1, z_dim]: the means are its codes."""
    gens = rng.generators(range(stylegan.TABLE_SEED, stylegan.TABLE_SEED + stylegan.TABLE_DRAWS))
    return rng.randn(gens, toy.z_dim).mean(0, keepdim=True)


class Readout(nn.Module):
    """The last row of w as a picture, through two blocks that do nothing."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.num_ws = rows
        self.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, ws: Tensor) -> Tensor:
        return self.blocks[1](self.blocks[0](ws[:, -1].reshape(-1, 3, 2, 2)))


class ToyCritic(nn.Module):
    """logit_c(x) = slope . x - curve |x - mean|^2 / 2, the same for all classes, so gradients are known."""

    d_cond_mtd = "MD"

    def __init__(self, gan: ToyGAN, slope: float = 0.3, curve: float = 0.05) -> None:
        super().__init__()
        self.num_classes = gan.classes
        self.mean = gan.mean
        self.curve = curve
        self.slope = slope * torch.randn(gan.w_dim, generator=torch.Generator().manual_seed(2))

    def forward(self, x: Tensor, labels: Tensor, eval: bool = False, adc_fake: bool = False) -> dict[str, Tensor]:
        h = x.flatten(1)
        logits = h @ self.slope - self.curve * (h - self.mean).square().sum(1) / 2
        return {"h": h, "adv_output": logits}


def toy_networks(gan: ToyGAN, digest: str = "toy", critic: nn.Module | None = None) -> Networks:
    """The toy as Networks; its held-out images are nearer to the mean than its own, so a critic has something to say.

    A snapshot is the toy whose classes lie ``float(path)`` times as far apart.
    """

    def held_out(count: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(3)
        labels = torch.arange(count) % gan.classes
        w = gan.mapping(torch.randn(count, gan.z_dim, generator=g), nn.functional.one_hot(labels, gan.classes).float())
        return gan.synthesis(gan.mean + 0.7 * (w - gan.mean)), labels

    companions = Companions(
        lambda: critic or ToyCritic(gan), held_out, lambda: "a toy", lambda path: ToyGAN(between=float(path))
    )
    device = torch.device("cpu")
    return Networks(gan, "builtin", gan.classes, gan.z_dim, 2, device, digest, "a toy", companions=companions)


class IdentityView(LatentView):
    """G(z, c) = z, so the law of images is the prior; codes are one-hot labels and do nothing."""

    def encode(self, z: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.one_hot(labels, self.num_classes).float()

    def decode(self, code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
        self.ledger.cost["synthesis"] += len(z)
        return z


def identity_view(
    logit: Callable[[Tensor, Tensor], Tensor], real: Tensor | None = None, z_dim: int = 1, classes: int = 2, **more: Any
) -> LatentView:
    """An ``IdentityView`` whose discriminator says ``logit(x [B, Z], labels) [B]``; ``real`` are held-out images."""

    class Says(nn.Module):
        d_cond_mtd = "MD"
        num_classes = classes

        def forward(self, x: Tensor, labels: Tensor, eval: bool = False, adc_fake: bool = False) -> dict[str, Tensor]:
            return {"h": x, "adv_output": logit(x, labels)}

    def held_out(count: int) -> tuple[Tensor, Tensor]:
        images = real if real is not None else torch.randn(count, z_dim, generator=torch.Generator().manual_seed(9))
        return images[:count], torch.arange(len(images[:count])) % classes

    companions = Companions(Says, held_out, lambda: "nowhere", lambda path: nn.Identity())
    device = torch.device("cpu")
    facts = {"digest": "", "source": "the identity", "companions": companions, **more}
    return IdentityView(Networks(nn.Identity(), "identity", classes, z_dim, 1, device, **facts))


@pytest.fixture
def toy() -> ToyGAN:
    return ToyGAN()


@pytest.fixture
def toy_view(toy: ToyGAN):
    return view_for(toy_networks(toy))


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parent.parent


def backbone_of(spec: str | None, **options: Any) -> Any:
    """The feature network that a configuration names, on the CPU."""
    cfg = RunConfig(backbone=spec, **options)
    return open_backbone(cfg, open_source(cfg), torch.device("cpu"))


def random_images(size: int = 32, count: int = 5) -> Tensor:
    """Images with some pixels beyond [-1, 1], the same for the same size."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(size)) * 2.2 - 1.1


class Recorder:
    """Stands in for CUDA graphs on a CPU: a replay computes the function anew, into the memory of its first output."""

    def __init__(self) -> None:
        self.captures = 0
        self.replays = 0

    def __call__(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        self.captures += 1
        outputs = tree_map(lambda output: None if output is None else output.clone(), run())

        def replay() -> None:
            self.replays += 1
            for output, value in zip(tree_leaves(outputs), tree_leaves(run())):
                if output is not None:
                    output.copy_(value)

        return outputs, replay

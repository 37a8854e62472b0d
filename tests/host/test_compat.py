"""Every shim fails without itself, where this machine can show it, and none changes a number."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from host_models import networks, sections
from shims import breaks_without, shim

from studiogan_guidance.doctor import INCEPTION
from studiogan_guidance.errors import UserError
from studiogan_guidance.host import compat
from studiogan_guidance.host.compat import RUN_SHIMS, SHIMS
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout


@pytest.fixture
def host(checkout: Checkout) -> Iterator[None]:
    with inside(checkout):
        yield


def test_every_shim_is_described_and_tested() -> None:
    folder = Path(__file__).parent
    files = (
        Path(__file__),
        folder / "test_imports.py",
        folder / "test_compat_cpu.py",
        folder / "test_compat_plugins.py",
        folder / "test_kept.py",
        folder.parent / "plugin" / "test_run.py",
    )
    here = "".join(file.read_text() for file in files)
    for one in (*SHIMS, *RUN_SHIMS):
        assert all((one.symptom, one.since, one.until)), one.name
        assert f'"{one.name}"' in here, f"no test names the shim {one.name}"


def test_shims_are_switched_on_in_this_order() -> None:
    assert [one.name for one in SHIMS] == ["pkg_resources", "sqrtm_disp", "filters"]
    assert " ".join(one.name for one in RUN_SHIMS) == (
        "numpy_scalars float_betas wandb_image wandb_mode tsne_n_iter whole_hdf5 own_statistics whole_checkpoints "
        "one_step workers_0 current_when_no_best resnet50_key whole_cutoff classifier_mode tables_from_anywhere "
        "empty_classes image_files frechet_root named_networks plugin_modules plugins_off cpu_rank gpu_unseen "
        "cuda_means_cpu ddp_device_ids"
    )


@pytest.mark.studiogan
def test_numpy_scalars(host: None, tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    path = tmp_path / "model=D-best-weights-step=1.pth"
    kept = {"state_dict": net.state_dict(), "seed": 1, "run_name": "r", "step": 1, "aa_p": "N/A", "best_step": 1}
    torch.save({**kept, "best_fid": np.float64(3.5), "best_fid_ckpt": "d"}, path)
    load = module("utils.ckpt").load_ckpt

    def call() -> Any:
        return load(net, None, str(path), load_model=True, load_misc=True)

    assert 3.5 in breaks_without("numpy_scalars", call, pickle.UnpicklingError, "Weights only load failed")


@pytest.mark.studiogan
def test_float_betas(host: None, tmp_path: Path) -> None:
    import yaml

    (tmp_path / "a.yaml").write_text(yaml.safe_dump({**sections("stylegan3"), "OPTIMIZATION": {"beta1": 0}}))

    def call() -> Any:
        cfgs = module("config").Configurations(str(tmp_path / "a.yaml"))
        cfgs.OPTIMIZATION.beta2 = 0.99
        cfgs.define_optimizer(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        return cfgs.OPTIMIZATION.g_optimizer.defaults["betas"]

    assert list(breaks_without("float_betas", call, ValueError, "betas must be")) == [0.0, 0.99]


@pytest.mark.studiogan
def test_wandb_image(host: None) -> None:
    def call() -> Any:
        return module("wandb").Image(torch.rand(8, 3, 4, 4, requires_grad=True))

    image = breaks_without("wandb_image", call, ValueError, "Un-supported shape")
    assert image.image.size == (8 * 4 + 9 * 2, 4 + 2 * 2)  # torchvision's grid with its 2-pixel frames


@pytest.mark.studiogan
def test_wandb_mode(host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B reads the environment once in a process; what it says afterwards counts all the same."""
    wandb = module("wandb")
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "init", lambda **kwargs: asked.append(kwargs))
    found = shim("wandb_mode")
    for mode in ("offline", "disabled"):
        monkeypatch.setenv("WANDB_MODE", mode)
        with found.apply():
            wandb.init(name="a")
            wandb.init(mode="online")
    monkeypatch.delenv("WANDB_MODE")
    with found.apply():
        wandb.init()
    assert [one.get("mode") for one in asked] == ["offline", "online", "disabled", "online", None]


@pytest.mark.studiogan
def test_tsne_n_iter(host: None) -> None:
    def call() -> Any:
        return module("worker").TSNE(n_components=2, verbose=1, perplexity=40, n_iter=300)

    assert breaks_without("tsne_n_iter", call, TypeError, "n_iter").max_iter == 300


@pytest.mark.studiogan
def test_workers_0(host: None) -> None:
    def call() -> Any:
        return module("loader").DataLoader([1, 2], num_workers=0, persistent_workers=True)

    assert list(breaks_without("workers_0", call, ValueError, "persistent_workers")) == [1, 2]


@pytest.mark.studiogan
def test_current_when_no_best(host: None, tmp_path: Path) -> None:
    nets = {name: torch.nn.Linear(2, 2) for name in ("G", "D")}
    kept = {"seed": 1, "run_name": "r", "step": 9, "aa_p": "N/A", "best_step": 4, "best_fid": None, "best_fid_ckpt": ""}

    def save(when: str, value: float) -> None:
        for name, net in nets.items():
            states = {"state_dict": {key: torch.full_like(t, value) for key, t in net.state_dict().items()}}
            torch.save({**kept, **states}, tmp_path / f"model={name}-{when}-weights-step=9.pth")

    def call() -> Any:
        step = module("utils.ckpt").load_best_model(
            ckpt_dir=str(tmp_path), Gen=nets["G"], Dis=nets["D"], apply_g_ema=False, Gen_ema=None, ema=None
        )
        return step, nets["G"].weight.mean().item()

    save("current", 1.0)
    assert breaks_without("current_when_no_best", call, IndexError, "out of range") == (4, 1.0)
    save("best", 2.0)
    with shim("current_when_no_best").apply():
        assert call() == (4, 2.0)


@pytest.mark.studiogan
def test_resnet50_key(host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    hub = tmp_path / "hub" / "pytorch_vision_v0.10.0"
    hub.mkdir(parents=True)
    (hub / "hubconf.py").write_text(
        "import torchvision\ndef resnet50(pretrained):\n    return torchvision.models.resnet50()\n"
    )

    def call() -> Any:
        model = module("metrics.preparation").LoadEvalModel("ResNet50_torch", "clean", 1, False, torch.device("cpu"))
        return model.get_outputs(torch.zeros(2, 3, 32, 32), quantize=True)[0].shape

    assert breaks_without("resnet50_key", call, KeyError, "ResNet50_torch") == (2, 2048)


@pytest.mark.studiogan
def test_whole_cutoff(host: None, checkout: Checkout, tmp_path: Path) -> None:
    import yaml

    mapping: Any = networks("stylegan2", checkout).generator.mapping
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(sections("stylegan2")))

    def call(asked: float = 2.0) -> Any:
        cfgs = module("config").Configurations(str(tmp_path / "a.yaml"))
        cfgs.update_cfgs({"truncation_cutoff": asked}, super="RUN")
        label = torch.eye(4)[:1]
        ws = mapping(torch.ones(1, 16), label, truncation_psi=0.5, truncation_cutoff=cfgs.RUN.truncation_cutoff)
        return [torch.equal(a, b) for a, b in zip(ws[0], mapping(torch.ones(1, 16), label)[0])]

    kept = breaks_without("whole_cutoff", call, TypeError, "slice indices must be integers")
    assert not any(kept[:2])
    assert all(kept[2:])
    with shim("whole_cutoff").apply(), pytest.raises(UserError, match="truncation_cutoff is 2.5"):
        call(2.5)


@pytest.mark.studiogan
def test_tables_from_anywhere(host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def call() -> Any:
        return module("utils.misc").load_ImageNet_label_dict("ImageNet", False)

    assert len(breaks_without("tables_from_anywhere", call, FileNotFoundError, "tf_imagenet")) >= 1000
    assert Path.cwd() == tmp_path


@pytest.mark.studiogan
def test_empty_classes(host: None, tmp_path: Path) -> None:
    from PIL import Image

    for name in "012":
        (tmp_path / name).mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "1" / "0.png")

    def call() -> Any:
        return module("torchvision.datasets").ImageFolder(root=str(tmp_path)).targets

    assert breaks_without("empty_classes", call, FileNotFoundError, "no valid file for the classes") == [1]

    # evaluate.py resizes no image.
    Image.new("RGB", (4, 5)).save(tmp_path / "2" / "0.png")
    with shim("empty_classes").apply():
        folder = module("torchvision.datasets").ImageFolder(root=str(tmp_path))
        assert folder[0][0].size == (4, 4)
        with pytest.raises(UserError, match=f"{tmp_path}/2/0.png is 4x5, another is 4x4: give images of one size"):
            folder[1]


@pytest.mark.studiogan
def test_frechet_root(host: None) -> None:
    """Where the host's root fails the closed form stands, and where it does not, its own value to the bit."""
    fid = module("metrics.fid")
    zero = np.zeros(2)
    swap = np.array([[0.0, 1.0], [1.0, 0.0]]) * 4  # its product with the identity has the roots 2 and 2i

    def call() -> Any:
        return fid.frechet_inception_distance(zero, swap, zero + 1, np.eye(2))

    assert breaks_without("frechet_root", call, ValueError, "Imaginary component") == pytest.approx(2 + 0 + 2 - 2 * 2)
    x, y = np.random.default_rng(0).normal(size=(2, 60, 4))
    moments = x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)
    alone = fid.frechet_inception_distance(*moments)
    with shim("frechet_root").apply():
        assert fid.frechet_inception_distance(*moments) == alone
        with pytest.raises(UserError, match="not finite.* or there is only one image"):
            fid.frechet_inception_distance(zero, swap * np.nan, zero, np.eye(2))
        with pytest.raises(UserError, match="moments of 2 and of 3 features"):
            fid.frechet_inception_distance(zero, swap, np.zeros(3), np.eye(3))


def copied(data: Path, folder: Path, image: Any) -> tuple[Path, Path]:
    """A copy of images, one of which is replaced, and the path of that one."""
    copy = Path(shutil.copytree(data, folder))
    path = copy / "train" / "1" / "2.png"
    image.save(path)
    return copy, path


def hosts_batches(folder: Path, workers: int = 0, **more: Any) -> list[Any]:
    """The images in a folder as the host's training reads them."""
    options = {"crop_long_edge": True, "resize_size": 32, "resizer": "wo_resize", **more}
    dataset = module("data_util").Dataset_(data_name="Digits", data_dir=str(folder), train=True, **options)
    return list(torch.utils.data.DataLoader(dataset, batch_size=8, num_workers=workers))


@pytest.mark.studiogan
@pytest.mark.parametrize("workers", [0, 1])
def test_image_files(host: None, data: Path, tmp_path: Path, workers: int) -> None:
    from PIL import Image

    copy, path = copied(data, tmp_path / "copy", Image.new("RGB", (33, 34)))
    advice = r"the configuration wants 32x32: add --pre_resizer \(such as lanczos\)$"
    with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
        hosts_batches(copy, workers)
    with shim("image_files").apply():
        with pytest.raises(UserError, match=f"^the image {path} is 33x34, {advice}"):
            hosts_batches(copy, workers)
        with pytest.raises(UserError, match=f"^the image {path} is 33x34, the configuration wants 32x32"):
            hosts_batches(copy, workers, resize_size=None)  # Tiny_ImageNet: all must be as the first
        assert len(hosts_batches(copy, workers, resizer="lanczos")) == 2


@pytest.mark.studiogan
def test_the_hosts_images_are_read_and_refused_as_those_of_eval(host: None, data: Path, tmp_path: Path) -> None:
    from PIL import Image

    expected = hosts_batches(data)
    with shim("image_files").apply():
        found = hosts_batches(data)
    assert all(torch.equal(a, b) for one, other in zip(found, expected) for a, b in zip(one, other))

    # A hidden folder is no class.
    copy, path = copied(data, tmp_path / "copy", Image.new("RGBA", (32, 32), (0, 0, 0, 9)))
    (copy / "train" / ".ipynb_checkpoints").mkdir()
    shutil.copy(path, copy / "train" / ".ipynb_checkpoints")
    assert hosts_batches(copy)[-1][1].tolist()[-1] == 4  # the last of five
    with shim("image_files").apply():
        with pytest.raises(UserError, match=f"cannot read the image {path} without a guess: it has transparent"):
            hosts_batches(copy)
        Image.new("RGBA", (32, 32), (0, 0, 0, 255)).save(path)
        assert hosts_batches(copy)[-1][1].tolist()[-1] == 3

        # Other folders are named.
        (copy / "train").rename(copy / "training")
        with pytest.raises(UserError, match=f"no folder train in {copy}: found training, valid; rename training"):
            hosts_batches(copy)


@pytest.mark.studiogan
def test_the_host_downloads_cifar_only_where_nothing_of_it_is_there(
    host: None, tmp_path: Path, monkeypatch: Any
) -> None:
    data_util = module("data_util")
    asked: list[Any] = []

    class CIFAR10(data_util.CIFAR10):  # type: ignore[misc, name-defined]
        def download(self) -> None:
            asked.append(self.root)
            raise OSError("no network")

    monkeypatch.setattr(data_util, "CIFAR10", CIFAR10)
    itself = tmp_path / "cifar-10-batches-py"
    itself.mkdir()
    with shim("image_files").apply():
        with pytest.raises(UserError, match=f"is the folder of CIFAR10 itself: give its parent, {tmp_path}$"):
            data_util.Dataset_(data_name="CIFAR10", data_dir=str(itself), train=True)
        assert asked == []
        itself.rename(tmp_path / "other")
        with pytest.raises(
            UserError, match=r"CIFAR10 is read from cifar-10-batches-py, .*found other.*\(no network\)$"
        ):
            data_util.Dataset_(data_name="CIFAR10", data_dir=str(tmp_path), train=True)
        assert asked == [str(tmp_path)]


@pytest.mark.studiogan
def test_named_networks(host: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was downloaded by half, at the place where torch looks first."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / INCEPTION).write_bytes(b"PK\x03\x04")

    def call() -> Any:
        return module("metrics.preparation").LoadEvalModel("InceptionV3_tf", "legacy", 1, False, torch.device("cpu"))

    with pytest.raises(RuntimeError, match="zip archive"):
        call()
    with shim("named_networks").apply(), pytest.raises(UserError, match="cannot load the weights of InceptionV3_tf"):
        call()


@pytest.mark.studiogan
def test_no_shim_changes_a_number(host: None, checkout: Checkout, tmp_path: Path) -> None:
    """The host's own functions on the same inputs, with the run shims on and off."""
    import yaml

    made = {name: networks(name, checkout) for name in ("big_resnet", "stylegan2")}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(sections("big_resnet")))

    def numbers() -> list[Any]:
        torch.manual_seed(3)
        found: list[Any] = []
        for name, one in made.items():
            is_stylegan, generator = name == "stylegan2", one.generator
            found.append(
                module("utils.sample").generate_images(
                    "gaussian", 0.7, 4, 16, 4, "totally_random", "N/A", generator, None, False,
                    SimpleNamespace(lo_steps4eval=0, apply_lo=False),
                    SimpleNamespace(langevin_sampling=False, truncation_cutoff=None),
                    SimpleNamespace(info_type="N/A"), torch.device("cpu"), is_stylegan,
                    getattr(generator, "mapping", None), getattr(generator, "synthesis", None), 0.0, False, False,
                )[0]
            )  # fmt: skip
        x, y = torch.randn(2, 60, 4).double().numpy()
        found.append(module("metrics.fid").frechet_inception_distance(x.mean(0), np.cov(x.T), y.mean(0), np.cov(y.T)))
        found += module("metrics.prdc").compute_prdc(x, y, 3).values()
        found.append(module("metrics.ins").calculate_kl_div(torch.rand(9, 4).softmax(1), 1)[0])
        losses = module("utils.losses")
        found.append(losses.d_hinge(torch.randn(8), torch.randn(8), DDP=False))
        cfgs, net = module("config").Configurations(str(tmp_path / "a.yaml")), torch.nn.Linear(3, 1)
        cfgs.define_optimizer(net, torch.nn.Linear(3, 1))
        for _ in range(3):
            cfgs.OPTIMIZATION.g_optimizer.zero_grad()
            net(torch.randn(5, 3)).square().mean().backward()
            cfgs.OPTIMIZATION.g_optimizer.step()
        found.append(net.weight.detach().clone())
        return [value.tolist() if hasattr(value, "tolist") else value for value in found]

    np.random.seed(0)
    off = numbers()
    np.random.seed(0)
    with compat.active(RUN_SHIMS):
        on = numbers()
    assert on == off

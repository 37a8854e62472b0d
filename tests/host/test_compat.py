"""Every shim fails without itself, where this machine can show it, and none changes a number."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from host_models import networks, sections

from studiogan_guidance import devices
from studiogan_guidance.doctor import INCEPTION
from studiogan_guidance.errors import UserError
from studiogan_guidance.host import compat
from studiogan_guidance.host.compat import RUN_SHIMS, SHIMS, CpuRank, Shim, plugins
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import Checkout

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="shows what breaks without a GPU")


def shim(name: str) -> Shim:
    return next(shim for shim in RUN_SHIMS if shim.name == name)


@pytest.fixture
def host(checkout: Checkout) -> Iterator[None]:
    with inside(checkout):
        yield


def breaks_without(name: str, call: Callable[[], Any], error: type[BaseException], match: str) -> Any:
    """The call fails as the table says; with the shim it gives what is returned; afterwards it fails again."""
    found = shim(name)
    assert found.needed()
    with pytest.raises(error, match=match):
        call()
    with found.apply():
        result = call()
    with pytest.raises(error, match=match):
        call()
    return result


def test_every_shim_is_described_and_tested() -> None:
    folder = Path(__file__).parent
    files = (
        Path(__file__),
        folder / "test_imports.py",
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


SOURCE = """
#include <torch/extension.h>
torch::Tensor twice(torch::Tensor x) { return 2 * x; }
PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("twice", &twice); }
"""
compiler = pytest.mark.skipif(
    not (shutil.which("g++") and shutil.which("ninja")), reason="g++ and ninja, which build C++ extensions, are missing"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the extension is built, once."""
    folder = tmp_path_factory.mktemp("extension")
    (folder / "twice.cpp").write_text(SOURCE)
    return folder


@pytest.fixture
def extension(built: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Lets the host build and load a plug-in of a few lines, for a GPU of the name "none"."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(built / "plugins"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")

    def call() -> Any:
        custom_ops = module("utils.custom_ops")
        custom_ops._cached_plugins.pop("twice_plugin", None)
        return custom_ops.get_plugin("twice_plugin", ["twice.cpp"], source_dir=str(built))

    return call


@compiler
@pytest.mark.studiogan
def test_plugin_modules(host: None, extension: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")  # to be put back after the test: the host empties it
    plugin = breaks_without("plugin_modules", extension, ModuleNotFoundError, "twice_plugin")
    assert plugin.twice(torch.ones(2)).tolist() == [2.0, 2.0]
    assert "twice_plugin" not in sys.modules


@compiler
@pytest.mark.studiogan
def test_plugins_are_compiled_while_the_host_is_within_reach(
    host: None, extension: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for StyleGAN on a GPU: afterwards they are on, without shims, and the environment is as it was."""
    operation = module("utils.style_ops.bias_act")
    monkeypatch.setattr(plugins, "PLUGINS", {"stylegan2": ("bias_act",)})
    monkeypatch.setattr(plugins, "_check_compiler", lambda: None)
    monkeypatch.setattr(operation, "_plugin", None)
    monkeypatch.setattr(operation, "custom_ops", SimpleNamespace(get_plugin=lambda **_: extension()))
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    init = operation._init
    compat.compile_plugins("stylegan2")
    assert operation._init is init
    assert operation._plugin.twice(torch.ones(1)).item() == 2
    assert "TORCH_CUDA_ARCH_LIST" not in os.environ
    compat.compile_plugins("big_resnet")  # which has none


def test_compiling_and_a_lock_of_an_older_torch_are_announced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An older torch waits for a lock file, though the process that made it may have been killed."""

    def said() -> list[str]:
        plugins._announce("twice_plugin", tmp_path)
        return capsys.readouterr().err.splitlines()

    compiling = "compiling the host's plug-in twice_plugin for this GPU, once; it may take minutes"
    monkeypatch.setattr("torch.utils.cpp_extension.FileBaton", object, raising=False)
    assert said() == [compiling]
    (tmp_path / "lock").touch()
    assert said() == [compiling, f"another process is compiling it; if none is, delete {tmp_path / 'lock'}"]
    monkeypatch.setenv("RANK", "1")
    assert said() == []
    monkeypatch.delenv("RANK")
    (tmp_path / "twice_plugin.so").touch()
    assert said() == []


WITHOUT_NVCC = OSError("CUDA_HOME environment variable is not set")
OTHER_CUDA = RuntimeError("The detected CUDA version (12.1)\nmismatches the version that was used to compile PyTorch")
BROKEN_BUILD = RuntimeError("Error building extension\n[1/3] nvcc a.cu\na.h:1: fatal error: no cusparse.h\nninja: stop")


@pytest.mark.studiogan
@pytest.mark.parametrize(
    ("home", "error", "cause"),
    [
        (None, WITHOUT_NVCC, "no nvcc was found; install the CUDA toolkit"),
        (
            "/cuda",
            OTHER_CUDA,
            "The detected CUDA version (12.1) mismatches the version that was used to compile PyTorch;",
        ),
        ("/cuda", BROKEN_BUILD, "a.h:1: fatal error: no cusparse.h; install the CUDA toolkit"),
    ],
)
def test_plugins_that_cannot_be_compiled_are_off(
    host: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    home: str | None,
    error: Exception,
    cause: str,
) -> None:
    """In one line, and once for all of them; in a host run until its end, otherwise for good."""
    calls: list[str] = []

    def fails(name: str, **_: Any) -> None:
        calls.append(name)
        raise error

    extensions = module("torch.utils.cpp_extension")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")  # as the host would leave it
    monkeypatch.setattr(extensions, "CUDA_HOME", home)
    monkeypatch.setattr(extensions, "load", fails)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "none")
    monkeypatch.setattr(module("utils.custom_ops"), "verbosity", "none")
    operations = [module(f"utils.style_ops.{name}") for name in compat.PLUGINS["stylegan3"]]
    before = [one._init for one in operations]
    for one in operations:
        monkeypatch.setattr(one, "_init", one._init)  # put back at the end
        monkeypatch.setattr(one, "_plugin", None)

    # The host's own run: tried once each.
    if home:
        with pytest.raises(type(error)):
            operations[0]._init()
        calls.clear()
    with shim("plugins_off").apply():
        assert not any(one._init() for one in (*operations, *operations))
    assert [one._init for one in operations] == before
    assert calls == (["bias_act_plugin", "upfirdn2d_plugin", "filtered_lrelu_plugin"] if home else [])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"StyleGAN plug-ins are off, so the host's slower reference code runs: {cause}")

    # Loading a checkpoint.
    compat.compile_plugins("stylegan2")
    assert [one._init() for one in operations[:2]] == [False, False]
    assert operations[2]._init is before[2]
    assert len([line for line in capsys.readouterr().err.splitlines() if "are off" in line]) == 1


@no_gpu
def test_cpu_rank() -> None:
    rank = breaks_without("cpu_rank", lambda: torch.cuda.current_device(), Exception, "NVIDIA|CUDA")
    assert rank == 0
    assert torch.zeros(1, device=rank).device.type == "cpu"


def test_a_cpu_rank_is_a_device_and_a_number() -> None:
    one: Any = CpuRank(1)
    assert torch.device(one) == torch.device("cpu")
    assert (one == 1, one != 1, one == 0, one == "cpu", one > 0, one >= 1, one < 2, one <= 1) == (
        True,
        False,
        False,
    ) + (True,) * 5
    assert (3 + one, one + 3, int(one), [5, 6][one], list(range(4))[one:]) == (4, 4, 1, 6, [1, 2, 3])
    copied = pickle.loads(pickle.dumps(one))
    assert isinstance(copied, CpuRank)
    assert copied == 1
    assert torch.nn.Linear(1, 1).to(one).weight.device.type == "cpu"


def test_gpu_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a GPU, which is imitated: nothing finds it while the environment says cpu, everything does afterwards."""
    monkeypatch.setenv(devices.DEVICE, "auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    shims = [shim(name) for name in ("cpu_rank", "gpu_unseen", "cuda_means_cpu", "ddp_device_ids")]
    assert not any(one.needed() for one in shims)

    def seen() -> tuple[Any, ...]:
        loader = torch.utils.data.DataLoader([1.0], pin_memory=True)
        pins = iter(loader)._pin_memory  # type: ignore[attr-defined]
        return torch.cuda.is_available(), torch.cuda.current_device(), torch.accelerator.current_accelerator(), pins

    assert seen() == (True, 0, torch.device("cuda"), True)
    with devices.chosen("cpu"):
        assert all(one.needed() for one in shims)
        with compat.active(shims[:3]):
            assert seen() == (False, CpuRank(0), None, False)
            assert next(iter(torch.utils.data.DataLoader([1.0], pin_memory=True))).device.type == "cpu"
            assert not torch.amp.GradScaler("cuda").is_enabled()
            torch.manual_seed(0)
            with torch.autocast("cuda"):
                assert torch.ones(2, 2).cuda().mm(torch.ones(2, 2)).dtype == torch.float32
            assert all(one.needed() for one in shims)  # for a process that the host starts
    assert not any(one.needed() for one in shims)
    assert seen() == (True, 0, torch.device("cuda"), True)


@no_gpu
@pytest.mark.studiogan
def test_cuda_means_cpu(host: None) -> None:
    images = torch.utils.data.TensorDataset(torch.rand(6, 3), torch.arange(6))
    model = SimpleNamespace(eval=lambda: None, get_outputs=lambda x, quantize: (x, x))

    def call() -> Any:
        loader = torch.utils.data.DataLoader(images, 2)
        return module("metrics.fid").calculate_moments(loader, model, "N/A", 2, True, 1, False, True)

    mean, cov = breaks_without("cuda_means_cpu", call, Exception, "NVIDIA|CUDA")
    x = images.tensors[0].double().numpy()
    np.testing.assert_allclose(mean, x.mean(0), atol=1e-7)
    np.testing.assert_allclose(cov, np.cov(x, rowvar=False), atol=1e-7)
    with shim("cuda_means_cpu").apply():
        assert torch.ones(1).cuda().to("cuda:0").device.type == "cpu"
        assert torch.nn.Linear(1, 1).to("cuda").weight.device.type == "cpu"
        assert torch.linspace(0, 1, 3, device="cuda").tolist() == [0.0, 0.5, 1.0]


@no_gpu
@pytest.mark.studiogan
def test_ddp_device_ids(host: None, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:

        def call() -> Any:
            return module("models.model").DDP(torch.nn.Linear(2, 2), device_ids=[CpuRank(0)], broadcast_buffers=False)

        assert breaks_without("ddp_device_ids", call, ValueError, "device_ids").module.in_features == 2
    finally:
        torch.distributed.destroy_process_group()


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

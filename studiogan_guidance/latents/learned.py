"""The learned joint: a small network beside a frozen generator, and the file that it is kept in.

The paper (GANdance, ECCV 2024) reports that a joint learned to follow the whole data set guides better than arithmetic
does, and publishes neither network nor objective. What is here is our own design, made to be compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from studiogan_guidance.errors import UserError
from studiogan_guidance.files import replacing
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.latents.joint import JOINTS, OURS, JointOptions

FORMAT = 1  # raise it when old files can no longer be read
FILE = "joint.safetensors"
KEY = "studiogan_guidance.joint"  # of the file's metadata


class Constant(nn.Module):
    """The same vector [D] for every z."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor) -> Tensor:
        return self.value.expand(len(z), -1)


class LearnedJoint(nn.Module):
    """h = base + unit * R(z): a training-free estimator of the joint, and a residual that starts at zero.

    R is an MLP of the noise, or, with ``depth`` 0, one vector (a null embedding). It sees no label, so it cannot learn
    to hand back the conditional code. ``unit`` is the spread of the class means: R is of order 1 on every family.
    ``class_strength`` [C] plus ``row_strength`` [rows], less 1, multiplies scale - 1 where a sampler asks for learned
    strengths (a sum, since a product of two that both came near zero would stay there).

    Args:
        z_width: numbers of noise an image, InfoGAN's included.
        width: of a code: w_dim, g_shared_dim, or the number of classes.
        num_classes: C.
        rows: w rows of a code; 1 for codes without rows.
        base: name of the training-free estimator in ``JOINTS``.
        hidden: width of the hidden layers.
        depth: their number; 0 for a constant.
    """

    def __init__(
        self,
        z_width: int,
        width: int,
        num_classes: int,
        rows: int = 1,
        base: str = "class_mean",
        hidden: int = 256,
        depth: int = 2,
    ) -> None:
        super().__init__()
        self.base = base
        self.shape = {
            "z_width": z_width,
            "code_width": width,
            "num_classes": num_classes,
            "rows": rows,
            "hidden": hidden,
            "depth": depth,
        }
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(hidden if i else z_width, hidden), nn.LeakyReLU(0.2)]
        last = nn.Linear(hidden, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.residual: nn.Module = nn.Sequential(*layers, last) if depth else Constant(width)
        self.register_buffer("unit", torch.ones(()))
        self.class_strength = nn.Parameter(torch.ones(num_classes))
        self.row_strength = nn.Parameter(torch.ones(rows))

    def forward(self, view: LatentView, inputs: Inputs, code: Tensor) -> Tensor:
        """The joint of each image, of the shape of ``code``."""
        view.ledger.cost["joint"] += len(code)
        shift = self.get_buffer("unit") * self.residual(inputs.z)
        start = JOINTS[self.base].target(view, inputs, code, JointOptions())
        joint: Tensor = start + (shift[:, None] if code.dim() == 3 else shift)
        return joint

    def digest(self) -> str:
        """SHA-256 of everything that the joint depends on."""
        text = f"{self.base} {self.get_buffer('unit').item()} {fingerprint(self)}"
        return hashlib.sha256(text.encode()).hexdigest()

    def strength(self, labels: Tensor, code: Tensor) -> Tensor:
        """What multiplies scale - 1 for each image (and row): class_strength + row_strength - 1; fits ``code``."""
        own = self.class_strength[labels] if labels.dim() == 1 else labels @ self.class_strength
        return own[:, None, None] + (self.row_strength - 1)[:, None] if code.dim() == 3 else own[:, None]


def create(view: LatentView, base: str | None = None, hidden: int = 256, depth: int = 2) -> LearnedJoint:
    """A fresh joint for a view, equal to the estimator ``base`` (None: class_shift for w, class_mean for others)."""
    base = base or ("class_mean" if view.rows is None else "class_shift")
    joint, means = _empty(view, base, hidden, depth), view.class_means()
    joint.get_buffer("unit").copy_((means - means.mean(0)).square().mean().sqrt().clamp_min(1e-6))
    return joint.to(view.device)


def _empty(view: LatentView, base: str, hidden: int, depth: int) -> LearnedJoint:
    net = view.networks
    z_width = net.z_dim + net.info_discrete * net.info_discrete_dim + net.info_continuous
    return LearnedJoint(z_width, view.global_mean().shape[-1], net.num_classes, view.rows or 1, base, hidden, depth)


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's parameters; buffers (statistics, power iterations) move without training."""
    digest = hashlib.sha256()
    for name, value in sorted(network.named_parameters()):
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def save(path: Path, joint: LearnedJoint, view: LatentView, facts: Mapping[str, object]) -> None:
    """Write a joint and what it belongs to, as one JSON text in the metadata; ``facts``, plain data, go under training.

    The same joint makes the same file, byte for byte (several keys of metadata would come in any order).
    """
    metadata = {
        "format": FORMAT,
        "backbone": view.networks.backbone,
        "base": joint.base,
        "generator_sha256": fingerprint(view.generator),
        **joint.shape,
        "training": facts,
    }
    state = {key: value.detach().cpu().contiguous() for key, value in joint.state_dict().items()}
    with replacing(path) as beside:
        save_file(state, beside, {KEY: json.dumps(metadata)})


def load(path: Path, view: LatentView) -> LearnedJoint:
    """The joint in a file, on the view's device, in evaluation mode.

    Raises:
        UserError: a missing or damaged file, or one that was learned on another generator; the first thing that
            differs is named.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = json.loads((file.metadata() or {}).get(KEY, "{}"))
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  it is no mapping
    except FileNotFoundError as error:
        raise UserError(
            f"no learned joint {path}: make it with 'studiogan-guidance train --stage joint', or give joint_ckpt"
        ) from error
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise UserError(f"cannot read the learned joint {path}: {' '.join(str(error).split())[:120]}") from error
    if "generator_sha256" not in metadata:
        raise UserError(f"{path} is no learned joint: give the {FILE} that 'train --stage joint' wrote")
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path} has format {metadata.get('format')}, this version reads {FORMAT}: train it again")
    expected = _empty(view, metadata["base"], metadata["hidden"], metadata["depth"])
    own = {"backbone": view.networks.backbone, **expected.shape, "generator_sha256": fingerprint(view.generator)}
    for key, value in own.items():
        if metadata.get(key) != value:
            raise UserError(
                f"the joint {path} was learned on another generator: its {key} is {str(metadata.get(key))[:12]}, here "
                f"it is {str(value)[:12]}: give the joint of this checkpoint, or train one"
            )
    expected.load_state_dict(state)
    return expected.to(view.device).eval().requires_grad_(False)


def training_facts(path: Path) -> dict[str, object]:
    """How the joint in a file was trained: what ``save`` was told."""
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()[KEY])
    facts: dict[str, object] = metadata["training"]
    return facts


def of_view(view: LatentView, ckpt: str | None) -> LearnedJoint:
    """The joint in the file ``ckpt``, by default ``joint.safetensors`` beside the checkpoint; loaded once a view."""
    source = Path(view.networks.source)
    folder = source.parent if source.is_file() else source
    path = Path(ckpt) if ckpt else folder / FILE
    return view.bare.once(f"learned joint {path.resolve()}", lambda: load(path, view))


@JOINTS.register(
    "learned",
    "a network trained to follow the whole data set (the passes of its base, at most one by default)",
    OURS,
)
def _learned(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """h(z) of ``options.network``, or of the file ``options.ckpt``."""
    network = of_view(view, options.ckpt) if options.network is None else options.network
    joint: Tensor = network(view, inputs, code)
    return joint

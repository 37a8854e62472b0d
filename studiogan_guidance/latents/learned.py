"""The learned joint: a small network for a frozen generator, and the file that holds it.

The paper (GANdance, ECCV 2024) reports that a joint learned to follow the whole data set guides better than arithmetic
does, and publishes neither network nor objective. Network and objectives here are our own design.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.latents.joint import JOINTS, OURS, TOGETHER, JointOptions, with_code
from studiogan_guidance.latents.stored import Kind, wrong_size, wrong_tensor
from studiogan_guidance.options import shown

FILE = "joint.safetensors"
KEY = "studiogan_guidance.joint"  # of the file's metadata
KIND = Kind("learned joint", FILE, KEY, "joint", "joint_ckpt")
NONE = "none"  # the base of a joint that is a network of its own
TRAINED = ("learned", "frechet", "amortised")  # estimators out of files
NO_BASE = (*TRAINED, "gaussian", "gaussian_shift")  # estimators from which no other starts; the last differ by scale
SIZES = ("z_width", "code_width", "num_classes", "rows", "hidden", "depth")  # whole numbers in the metadata


class Constant(nn.Module):
    """The same vector [D] for every z."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(width))

    def forward(self, z: Tensor) -> Tensor:
        return self.value.expand(len(z), -1)


class Unlabelled(nn.Module):
    """A copy of a generator's own mapping that sees the mean of all labels in place of one; it can learn anew.

    Args:
        mapping: the network, z and labels to w of all rows.
        num_classes: C.
    """

    def __init__(self, mapping: nn.Module, num_classes: int) -> None:
        super().__init__()
        self.mapping = copy.deepcopy(mapping).requires_grad_(True)
        self.num_classes = num_classes

    def forward(self, z: Tensor) -> Tensor:
        """The first row of w, [B, D]."""
        weights = z.new_full((len(z), self.num_classes), 1 / self.num_classes)
        codes: Tensor = self.mapping(z, weights)
        return codes[:, 0]


class LearnedJoint(nn.Module):
    """h = base + unit * R(z): a training-free estimator of the joint, and a residual that starts at zero.

    R is an MLP of the noise, or, with ``depth`` 0, one vector (a null embedding). It sees no label, so it cannot learn
    the conditional code. ``unit`` is the spread of the class means, so that R is of order 1 on every family.

    With the base "none", h(z) is free: a copy of the generator's own mapping, which starts at ``mean_embedding``.

    Where a sampler asks for learned strengths, its scale s becomes, for each class and row of w,

        1 + (s - 1) * (class_strength + row_strength - 1).

    The two are added, not multiplied, because a product of two factors near zero has no gradient.

    Args:
        z_width: numbers of noise an image, InfoGAN's included.
        width: of a code: w_dim, g_shared_dim, or the number of classes.
        num_classes: C.
        rows: w rows of a code, or conditional blocks that read it, each with a strength; 1: all share it.
        base: name of the training-free estimator in ``JOINTS``, or "none".
        hidden: width of the hidden layers.
        depth: their number; 0 for a constant.
        mapping: for the base "none", the network that h is a copy of.
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
        mapping: nn.Module | None = None,
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

        # A joint equal to its base, with strengths of 1.
        self.residual: nn.Module = mlp(z_width, width, hidden, depth) if depth else Constant(width)
        if mapping is not None:
            self.residual = Unlabelled(mapping, num_classes)
        self.register_buffer("unit", torch.ones(()))
        self.class_strength = nn.Parameter(torch.ones(num_classes))
        self.row_strength = nn.Parameter(torch.ones(rows))

    def forward(self, view: LatentView, inputs: Inputs, code: Tensor) -> Tensor:
        """The joint of each image, of the shape of ``code``."""
        return self.start(view, inputs, code) + self.shift(view, inputs.z)

    def start(self, view: LatentView, inputs: Inputs, code: Tensor) -> Tensor:
        """What the residual is added to, of the shape of ``code``: the joint of ``base``; zero if there is none."""
        if self.base == NONE:
            return torch.zeros_like(code)
        return JOINTS[self.base].target(view, inputs, code, JointOptions())

    def with_code(self, view: LatentView, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The codes of a batch and their joint, both [B, ...]."""
        if self.base == NONE:
            code = view.encode(inputs.z, inputs.labels)
            return code, self(view, inputs, code)
        code, start = with_code(self.base, view, inputs, JointOptions())
        return code, start + self.shift(view, inputs.z)

    def shift(self, view: LatentView, z: Tensor) -> Tensor:
        """What is added to the joint of ``base``, unit * R(z), [B, D] or [B, 1, D]; B passes in the ledger."""
        view.ledger.cost["joint"] += len(z)
        shift: Tensor = self.residual(z)
        if self.base != NONE:
            shift = self.get_buffer("unit") * shift
        return shift if view.rows is None else shift[:, None]

    def digest(self) -> str:
        """SHA-256 of everything that the joint depends on."""
        text = f"{self.base} {self.get_buffer('unit').item()} {fingerprint(self)}"
        return hashlib.sha256(text.encode()).hexdigest()

    def strength(self, labels: Tensor, code: Tensor) -> Tensor:
        """class_strength + row_strength - 1 of each image (and row): [B, 1], or [B, rows, 1] if rows have their own."""
        strength = self.class_strength[labels] if labels.dim() == 1 else labels @ self.class_strength
        if code.dim() == 2 and len(self.row_strength) == 1:
            return strength[:, None] + (self.row_strength - 1)
        return strength[:, None, None] + (self.row_strength - 1)[:, None]


def mlp(width_in: int, width_out: int, hidden: int, depth: int) -> nn.Sequential:
    """``depth`` hidden layers, and a last layer that is zero at the start."""
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(hidden if i else width_in, hidden), nn.LeakyReLU(0.2)]
    last = nn.Linear(hidden, width_out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def create(view: LatentView, base: str | None = None, hidden: int = 256, depth: int = 2) -> LearnedJoint:
    """A fresh joint for a view, equal to the estimator ``base`` (None: class_shift for w, class_mean for others).

    With the base "none" it is free. Codes that ignore z have one joint, so there it is that one plus its residual.
    """
    if base is None or (base == NONE and view.rows is None):
        base = "class_mean" if view.rows is None else "class_shift"
    joint = _untrained(view, base, hidden, depth)
    means = view.class_means()
    spread = (means - means.mean(0)).square().mean().sqrt()
    joint.get_buffer("unit").copy_(spread.clamp_min(1e-6))
    return joint.to(view.device)


def _untrained(view: LatentView, base: str, hidden: int, depth: int, rows: int | None = None) -> LearnedJoint:
    """A joint of the widths of a view, with a strength for each of ``rows``; None: for each of its blocks."""
    net = view.networks
    z_width = net.z_dim + net.info_discrete * net.info_discrete_dim + net.info_continuous
    width = view.global_mean().shape[-1]
    if base != NONE:
        return LearnedJoint(z_width, width, net.num_classes, rows or view.blocks or 1, base, hidden, depth)
    return LearnedJoint(z_width, width, net.num_classes, rows or view.blocks or 1, base, 0, 0, _mapping(view))


def _mapping(view: LatentView) -> nn.Module:
    """The mapping network of a view; UserError where there is none."""
    mapping = getattr(view, "mapping", None)
    if not isinstance(mapping, nn.Module):
        raise UserError(
            f"a joint of base none is a copy of a mapping network, and {view.networks.backbone} has none: use another"
        )
    return mapping


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of a network's parameters; buffers (statistics, power iterations) move without training."""
    digest = hashlib.sha256()
    for name, value in sorted(network.named_parameters()):
        digest.update(name.encode() + value.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


def save(path: Path, joint: LearnedJoint, view: LatentView, facts: Mapping[str, object]) -> None:
    """Write a joint, with its generator and ``facts`` about its training, plain data, as metadata."""
    metadata = {
        "backbone": view.networks.backbone,
        "base": joint.base,
        "generator_sha256": fingerprint(view.generator),
        **joint.shape,
        "training": facts,
    }
    KIND.write(path, joint, metadata)


def load(path: Path, view: LatentView) -> LearnedJoint:
    """The joint in a file, on the view's device, in evaluation mode.

    Raises:
        UserError: a missing or damaged file, or one that was learned on another generator; the first thing that
            differs is named.
    """
    metadata, state = KIND.read(path)
    KIND.refuse_damage(path, _damage(metadata, state, view))

    shared = metadata["rows"] == 1 and view.rows is None  # one strength for all blocks
    joint = _untrained(view, metadata["base"], metadata["hidden"], metadata["depth"], 1 if shared else None)
    check_generator(view, path, "joint", metadata, joint.shape)

    joint.load_state_dict(state)
    return joint.to(view.device).eval().requires_grad_(False)


def check_generator(
    view: LatentView, path: Path, what: str, metadata: Mapping[str, object], shape: Mapping[str, int]
) -> None:
    """Raise UserError where what a file holds was learned on another generator; the first difference is named.

    ``shape`` has the sizes that it must have for this one.
    """
    here = {"backbone": view.networks.backbone, **shape, "generator_sha256": fingerprint(view.generator)}
    for key, value in here.items():
        if metadata.get(key) != value:
            raise UserError(
                f"the {what} {path} was learned on another generator: its {key} is {str(metadata.get(key))[:12]}, here "
                f"it is {str(value)[:12]}: give the {what} of this checkpoint, or train one"
            )


def _damage(metadata: Mapping[str, Any], state: Mapping[str, Tensor], view: LatentView) -> str | None:
    """What is wrong with the content of a joint's file, None if nothing is; sizes are those of its tensors.

    Nothing is allocated by what the metadata say, before the tensors say the same.
    """
    # Look at the words and sizes.
    known = [entry.name for entry in JOINTS if entry.name not in NO_BASE]
    if metadata.get("base") not in (known if view.rows is None else [*known, NONE]):
        return f"its base is {shown(metadata.get('base'))}, no estimator that is known"
    if reason := wrong_size(metadata, SIZES):
        return reason

    # Compare the tensors with them.
    if metadata["depth"] > len(state):
        return f"its depth is {metadata['depth']:,}, and it has {len(state)} tensors"
    return wrong_tensor(state, _shapes(metadata, view))


def _shapes(metadata: Mapping[str, Any], view: LatentView) -> dict[str, tuple[int, ...]]:
    """The shapes of a joint's tensors by its sizes; see ``LearnedJoint``."""
    hidden = metadata["hidden"]
    width = metadata["code_width"]
    depth = metadata["depth"]
    shapes: dict[str, tuple[int, ...]] = {
        "unit": (),
        "class_strength": (metadata["num_classes"],),
        "row_strength": (metadata["rows"],),
    }
    if metadata["base"] == NONE:
        own = _mapping(view).state_dict()
        return {**shapes, **{f"residual.mapping.{name}": tuple(value.shape) for name, value in own.items()}}
    if not depth:
        return {**shapes, "residual.value": (width,)}

    # An activation follows each layer but the last.
    widths = [metadata["z_width"], *[hidden] * depth, width]
    for i, (width_in, width_out) in enumerate(zip(widths[:-1], widths[1:])):
        shapes[f"residual.{2 * i}.weight"] = (width_out, width_in)
        shapes[f"residual.{2 * i}.bias"] = (width_out,)
    return shapes


def training_facts(path: Path) -> dict[str, object]:
    """The ``facts`` about its training that a joint was saved with."""
    metadata, _ = KIND.read(path)
    facts = metadata.get("training")
    return facts if isinstance(facts, dict) else {}


def of_view(view: LatentView, ckpt: str | None) -> LearnedJoint:
    """The joint in the file ``ckpt``, by default ``joint.safetensors`` beside the checkpoint; loaded once a view."""

    def find() -> LearnedJoint:
        return load(KIND.path(view, ckpt), view)

    return view.bare.once(("learned joint", ckpt), find)


@JOINTS.register(
    "learned",
    "a network trained to follow the whole data set (the passes of its base, at most one by default)",
    OURS,
)
def _learned(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """h(z) of ``options.network``, or of the file ``options.ckpt``."""
    joint: Tensor = _chosen(view, options)(view, inputs, code)
    return joint


def _with_learned(view: LatentView, inputs: Inputs, options: JointOptions) -> tuple[Tensor, Tensor]:
    return _chosen(view, options).with_code(view, inputs)


TOGETHER["learned"] = _with_learned


def _chosen(view: LatentView, options: JointOptions) -> LearnedJoint:
    """The network that the options name."""
    if options.network is None:
        return of_view(view, options.ckpt)
    assert isinstance(options.network, LearnedJoint)
    return options.network

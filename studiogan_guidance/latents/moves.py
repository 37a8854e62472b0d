"""Learned moves: what adds to the codes and the noise of a frozen generator, and the files that hold it.

Any estimator of the joint, at any scale, moves the code of an image by a vector. A move is that vector itself, learned
so that the images come nearer to real ones; the stages ``frechet`` and ``amortised`` learn it. (Our own addition to
GANdance, ECCV 2024, whose learned joint has no published objective.)
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from studiogan_guidance.latents import learned
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.latents.joint import JOINTS, OURS, TOGETHER, JointOptions, of_class
from studiogan_guidance.latents.stored import Kind, wrong_size, wrong_tensor
from studiogan_guidance.options import shown

KINDS = ("frechet", "amortised")  # stages that learn moves, and joints that are away from them
FILES = {
    kind: Kind(f"{kind} move", f"{kind}.safetensors", f"studiogan_guidance.{kind}", kind, "joint_ckpt")
    for kind in KINDS
}
NUMBERS = ("scale", "start_scale", "start_spread")  # finite numbers in the metadata


@dataclass(frozen=True)
class Shape:
    """Sizes of a move.

    Attributes:
        code_width: D, numbers of a row of a code.
        num_classes: C.
        z_dim: Z, numbers of prior noise.
        info_width: InfoGAN's numbers, which follow them.
        rows: w rows of a code; 0 for codes without rows.
        blocks: rows of a code, or conditional blocks, that have offsets of their own; 1: all share them.
        hidden: width of the hidden layers of the networks.
        depth: their number; 0: there are no networks.
    """

    code_width: int
    num_classes: int
    z_dim: int
    info_width: int
    rows: int
    blocks: int = 1
    hidden: int = 0
    depth: int = 0

    @property
    def affine_width(self) -> int:
        """Of what the affine map moves: rows of w, or prior noise."""
        return self.code_width if self.rows else self.z_dim

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shapes of a move's tensors."""
        shapes: dict[str, tuple[int, ...]] = {
            "unit": (),
            "offsets": (self.num_classes, self.blocks, self.code_width),
            "affine": (self.affine_width, self.affine_width),
        }
        if not self.rows:
            shapes["temperature"] = (self.z_dim,)
            shapes["shift"] = (self.num_classes, self.z_dim)

        # The networks: an activation follows each layer but the last.
        outputs = {"code_network": self.blocks * self.code_width, "noise_network": 0 if self.rows else self.z_dim}
        for name, width_out in outputs.items():
            widths = [self.z_dim + self.info_width + self.code_width, *[self.hidden] * self.depth, width_out]
            for i, (a, b) in enumerate(zip(widths, widths[1:])):
                if self.depth and width_out:
                    shapes[f"{name}.{2 * i}.weight"] = (b, a)
                    shapes[f"{name}.{2 * i}.bias"] = (b,)
        return shapes


class Move(nn.Module):
    """What is added to code and noise: at first what scale and spread add, then also what is learned.

    For codes with rows of w, with m_c the mean code of the class and m that of all,

        target = m_c + (s - 1) (m_c - m) + unit d_c + psi (w - m_c) + (w - m_c) A + unit N(z, c),

    where s and psi are ``start_scale`` and ``start_spread``; the noise stays as it is. Codes e_c that ignore z have no
    spread of their own, so their noise moves, too:

        target = e_c + (s - 1) (e_c - m) + unit d_c + unit N(z', c),    z' = tau z + z A + t_c + M(z, c),

    where tau, one number a coordinate, is ``start_spread`` at first. Offsets d_c and t_c, the matrix A and the small
    networks N and M are zero at first. ``unit`` is the spread of the class means, so that d_c is of order 1 everywhere.
    InfoGAN's numbers stay as they are. Labels may be weights of classes, [B, C].

    Args:
        shape: the sizes.
        kind: the stage that learns it, one of ``KINDS``.
        scale: s0, the guidance scale at which the target is reached; not 1.
        start_scale: scale about the mean of all classes to start from; 1 is plain.
        start_spread: spread within a class to start from; 1 is plain.
    """

    def __init__(
        self, shape: Shape, kind: str, scale: float = 2.0, start_scale: float = 1.0, start_spread: float = 1.0
    ) -> None:
        super().__init__()
        self.shape = shape
        self.kind = kind
        self.scale = scale
        self.start_scale = start_scale
        self.start_spread = start_spread

        # Offsets and affine map.
        self.register_buffer("unit", torch.ones(()))
        self.offsets = nn.Parameter(torch.zeros(shape.num_classes, shape.blocks, shape.code_width))
        self.affine = nn.Parameter(torch.zeros(shape.affine_width, shape.affine_width))
        if not shape.rows:
            self.temperature = nn.Parameter(torch.full((shape.z_dim,), start_spread))
            self.shift = nn.Parameter(torch.zeros(shape.num_classes, shape.z_dim))

        # Networks.
        width_in = shape.z_dim + shape.info_width + shape.code_width
        if shape.depth:
            self.code_network = learned.mlp(width_in, shape.blocks * shape.code_width, shape.hidden, shape.depth)
        if shape.depth and not shape.rows:
            self.noise_network = learned.mlp(width_in, shape.z_dim, shape.hidden, shape.depth)

    def target(self, view: LatentView, inputs: Inputs, code: Tensor) -> Tensor:
        """The code that the move leads to, of the shape of ``code``; [B, blocks, D] where blocks have their own.

        ``code`` is that of ``inputs``, whose noise is moved already. A pass of the network counts as ``joint``.
        """
        if self.shape.blocks > 1 and code.dim() == 2:
            code = code[:, None].expand(-1, self.shape.blocks, -1)

        # What the start adds.
        means = view.class_means()
        mean = of_class(means, inputs.labels)
        between = mean - means.mean(0)
        if code.dim() > mean.dim():
            mean, between = mean[:, None], between[:, None]
        moved = code + (self.start_scale - 1) * between

        # What the affine map adds to rows of w.
        if self.shape.rows:
            within = code - mean
            if code.stride(1) == 0:  # all rows are equal
                within = within[:, :1]
            moved = moved + (self.start_spread - 1) * within + within @ self.affine

        # Offsets of class and image.
        offset = of_class(self.offsets, inputs.labels)
        if self.shape.depth:
            offset = offset + self._pass(self.code_network, view, inputs).view(len(offset), self.shape.blocks, -1)
        offset = self.get_buffer("unit") * offset
        return moved + (offset[:, 0] if code.dim() == 2 else offset)

    def noise(self, view: LatentView, inputs: Inputs) -> Tensor:
        """The noise that the move leads to, [B, Z], InfoGAN's numbers as they are; w rows: z itself."""
        if self.shape.rows:
            return inputs.z
        prior, info = view.split(inputs.z)
        moved = self.temperature * prior + prior @ self.affine + of_class(self.shift, inputs.labels)
        if self.shape.depth:
            moved = moved + self._pass(self.noise_network, view, inputs)
        return torch.cat([moved, info], 1)

    def _pass(self, network: nn.Module, view: LatentView, inputs: Inputs) -> Tensor:
        """The answer of a network to noise and class; the class is its mean code in units of their spread."""
        view.ledger.cost["joint"] += len(inputs.z)
        means = view.class_means()
        means = means[:, 0] if means.dim() == 3 else means
        place = (of_class(means, inputs.labels) - means.mean(0)) / self.get_buffer("unit")
        answer: Tensor = network(torch.cat([inputs.z, place], 1))
        return answer

    def digest(self) -> str:
        """SHA-256 of everything that the move depends on."""
        numbers = [self.get_buffer("unit").item(), *(getattr(self, name) for name in NUMBERS)]
        text = f"{self.kind} {numbers} {learned.fingerprint(self)}"
        return hashlib.sha256(text.encode()).hexdigest()


def create(
    view: LatentView,
    kind: str,
    *,
    per_block: bool = False,
    hidden: int = 0,
    depth: int = 0,
    scale: float = 2.0,
    start_scale: float = 1.0,
    start_spread: float = 1.0,
) -> Move:
    """A fresh move for a view, with offsets for each row or block if ``per_block``; see ``Move``."""
    shape = shape_of(view, blocks_of(view) if per_block else 1, hidden, depth)
    move = Move(shape, kind, scale, start_scale, start_spread)
    means = view.class_means().detach()
    spread = (means - means.mean(0)).square().mean().sqrt()
    move.get_buffer("unit").copy_(spread.clamp_min(1e-6))
    return move.to(view.device)


def blocks_of(view: LatentView) -> int:
    """Rows of w, or conditional blocks, that can have codes of their own."""
    return max(1, view.blocks)


def shape_of(view: LatentView, blocks: int, hidden: int, depth: int) -> Shape:
    """The sizes of a move for a view."""
    net = view.networks
    info_width = net.info_discrete * net.info_discrete_dim + net.info_continuous
    width = view.global_mean().shape[-1]
    return Shape(width, net.num_classes, net.z_dim, info_width, view.rows or 0, blocks, hidden, depth)


def save(path: Path, move: Move, view: LatentView, facts: Mapping[str, object]) -> None:
    """Write a move, with the generator that it belongs to and ``facts`` about its training, plain data, as metadata."""
    metadata = {
        "backbone": view.networks.backbone,
        "generator_sha256": learned.fingerprint(view.generator),
        **{name: getattr(move, name) for name in NUMBERS},
        **dataclasses.asdict(move.shape),
        "training": facts,
    }
    FILES[move.kind].write(path, move, metadata)


def load(path: Path, view: LatentView, kind: str) -> Move:
    """The move in a file, on the view's device, in evaluation mode.

    Raises:
        UserError: a missing or damaged file, one of another kind, or one that was learned on another generator; the
            first thing that differs is named.
    """
    metadata, state = FILES[kind].read(path)
    FILES[kind].refuse_damage(path, _damage(metadata, state))

    # Refuse the move of another generator.
    blocks = metadata["blocks"] if metadata["blocks"] in (1, blocks_of(view)) else blocks_of(view)
    shape = shape_of(view, blocks, metadata["hidden"], metadata["depth"])
    learned.check_generator(view, path, f"{kind} move", metadata, dataclasses.asdict(shape))

    move = Move(shape, kind, *(float(metadata[name]) for name in NUMBERS))
    move.load_state_dict(state)
    return move.to(view.device).eval().requires_grad_(False)


def _damage(metadata: Mapping[str, Any], state: Mapping[str, Tensor]) -> str | None:
    """What is wrong with the content of a move's file, None if nothing is; sizes are those of its tensors.

    Nothing is allocated by what the metadata say, before the tensors say the same.
    """
    for name in NUMBERS:
        number = metadata.get(name)
        if not isinstance(number, (int, float)) or isinstance(number, bool) or not math.isfinite(number):
            return f"its {name} is {shown(number)}, no finite number"
    if metadata["scale"] == 1:
        return "its scale is 1, at which nothing is moved"

    # Sizes.
    sizes = tuple(field.name for field in dataclasses.fields(Shape))
    if reason := wrong_size(metadata, sizes):
        return reason
    if not metadata["blocks"]:
        return "its blocks is 0, no whole number from 1 up"
    if metadata["depth"] > len(state):
        return f"its depth is {metadata['depth']:,}, and it has {len(state)} tensors"
    return wrong_tensor(state, Shape(**{name: metadata[name] for name in sizes}).tensors())


def of_view(view: LatentView, ckpt: str | None, kind: str) -> Move:
    """The move in the file ``ckpt``, by default ``KIND.safetensors`` beside the checkpoint; loaded once a view."""

    def find() -> Move:
        return load(FILES[kind].path(view, ckpt), view, kind)

    return view.bare.once(("move", kind, ckpt), find)


def chosen(kind: str, view: LatentView, options: JointOptions) -> Move:
    """The move that the options name: in memory, or in a file."""
    if options.network is None:
        return of_view(view, options.ckpt, kind)
    assert isinstance(options.network, Move)
    return options.network


def moved_noise(kind: str, view: LatentView, inputs: Inputs, options: JointOptions, scale: float) -> Tensor:
    """The noise at a guidance scale: z + (scale - 1) / (s0 - 1) (z' - z), so that s0 gives z', 1 plain; [B, Z]."""
    move = chosen(kind, view, options)
    moved = move.noise(view, inputs)
    if scale == move.scale or moved is inputs.z:
        return moved
    return inputs.z + (scale - 1) / (move.scale - 1) * (moved - inputs.z)


def _joint(kind: str, view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """The code away from which guidance at s0 reaches the target: code - (target - code) / (s0 - 1)."""
    move = chosen(kind, view, options)
    target = move.target(view, inputs, code)
    if target.dim() > code.dim():
        code = code[:, None]
    return code - (target - code) / (move.scale - 1)


def _with_joint(kind: str, view: LatentView, inputs: Inputs, options: JointOptions) -> tuple[Tensor, Tensor]:
    """The codes of a batch and their joint, of one shape."""
    code = view.encode(inputs.z, inputs.labels)
    joint = _joint(kind, view, inputs, code, options)
    if joint.dim() > code.dim():
        code = code[:, None].expand_as(joint)
    return code, joint


@JOINTS.register("frechet", "codes tuned for the least Frechet distance (no pass more)", OURS)
def _frechet(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """Away from here, guidance leads to the codes that the stage ``frechet`` learned (``latents.moves``)."""
    return _joint("frechet", view, inputs, code, options)


@JOINTS.register("amortised", "codes moved by a network of noise and class (no pass of the generator more)", OURS)
def _amortised(view: LatentView, inputs: Inputs, code: Tensor, options: JointOptions) -> Tensor:
    """Away from here, guidance leads to the codes that the stage ``amortised`` learned (``latents.moves``)."""
    return _joint("amortised", view, inputs, code, options)


TOGETHER.update({kind: partial(_with_joint, kind) for kind in KINDS})

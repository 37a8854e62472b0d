"""GANdance: guided sampling of a pretrained conditional GAN (Zhang et al., ECCV 2024)."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance.errors import UserError
from studiogan_guidance.latents import gaussian, learned, moves
from studiogan_guidance.latents.base import Inputs, LatentView
from studiogan_guidance.latents.joint import (
    JOINTS,
    OF_CODES,
    WITHOUT_Z,
    JointOptions,
    mean_of_classes,
    of_class,
    with_code,
)
from studiogan_guidance.latents.learned import LearnedJoint
from studiogan_guidance.latents.moves import Move
from studiogan_guidance.samplers.base import SAMPLERS, Sampler, check_at_least, check_finite
from studiogan_guidance.samplers.profile import Profile
from studiogan_guidance.samplers.spaces import spread_of_w
from studiogan_guidance.samplers.temperature import Temperature
from studiogan_guidance.samplers.truncation import Truncation

IN_FILES = ("learned", *moves.KINDS)  # joints that were learned and are read from a file


def by_block(scale: float | Tensor, *codes: Tensor) -> tuple[Tensor, ...]:
    """Codes [B, D] as [B, 1, D] where each block has a scale of its own, [B, blocks, 1]; otherwise as they are."""
    if not isinstance(scale, Tensor) or scale.dim() < 3:
        return codes
    return tuple(code[:, None] if code.dim() == 2 else code for code in codes)


def spread_option(view: LatentView) -> str:
    """The option of ``gandance`` that widens or narrows each class on a view: ``psi`` of w, else ``tau`` of z."""
    return "tau" if view.rows is None else "psi"


def guide(code: Tensor, joint: Tensor, scale: float | Tensor) -> Tensor:
    """``joint + scale * (code - joint)``; at the number 1, ``code`` itself. Any shapes that broadcast.

    GANdance, ECCV 2024, Fig. 1 (direction and extrapolation; the formula is our reading, as no code was published).
    """
    return code if isinstance(scale, (int, float)) and scale == 1 else joint + scale * (code - joint)


def _of_labels(labels: Tensor, z: Tensor) -> Inputs:
    """Inputs whose images have no generators of their own."""
    return Inputs(seeds=labels, z=z, labels=labels, noise=None, generators=[])


@SAMPLERS.register(
    "gandance",
    "extrapolates codes away from the code of no particular class",
    "Zhang et al., GANdance, ECCV 2024",
    family="code",
    needs=("classes",),
    neutral={"scale": 1.0},
)
@dataclass(frozen=True)
class GANdance(Sampler):
    """Extrapolate each code away from the code of no particular class: code_g = joint + scale * (code - joint).

    The joint is estimated by arithmetic on the generator's own latents, so nothing is trained and nothing but the
    latents changes. A larger scale raises class accuracy and costs diversity. The estimators, and
    what each does to between-class and within-class spread, are in ``studiogan_guidance.latents.joint``.

    Paper: Zhang et al., "GANdance: Exploring Guided Sampling of Conditional GANs", ECCV 2024.

    Args:
        scale: finite number; 1 is plain sampling (neutral), more guides, less goes towards the joint; 1.05 to 2 is
            usual. The word auto, as the only option, is the sampler that ``tune --auto`` chose for the generator.
        joint: name of the estimator: class_mean, class_subset, global_mean, class_shift, mean_embedding, gaussian,
            gaussian_shift, learned, frechet or amortised.
        joint_ckpt: file of a joint that was learned (see ``training``); None: the one beside the checkpoint,
            joint.safetensors, frechet.safetensors or amortised.safetensors.
        strengths: also multiply scale - 1 by the strengths of the class and of the row in the file of ``learned``; off
            by default.
        subset: number of classes that ``class_subset`` averages, from 1 up (capped at the number of classes).
        layers: blocks [low, high) to guide, coarse to fine: rows of w, or conditional blocks of generators without w
            (in BigGAN-deep, 0 is the first layer); None guides all of them.
        profile: strength of guidance in equal groups of blocks, coarse to fine, as shares p of ``scale``: each is
            guided by 1 + (scale - 1) p, so 1:0.5:0 guides coarse blocks fully, middle ones half and fine ones not at
            all; None is 1 everywhere.
        keep_norm: leave each w as far from the guided mean of its class as the plain one is from the mean, where a
            distance is measured in units of the spread of w within classes; for w only, off by default.
        psi: spread of w within its class, as ``scale`` is that between classes: m + psi * (w - m) after guidance, where
            m is the guided mean of the image's class. Any finite number; 1 or None is plain, less gives typical images,
            more gives more various ones; 0.7 to 1.8 is worth a search. It keeps the condition, while truncation towards
            the mean of all undoes guidance.
        tau: temperature of z, the spread within classes of generators that do not normalise z: the prior noise becomes
            tau * z (InfoGAN's numbers stay). A number from 0 up; 1 is plain (neutral), 0.8 to 1.3 is worth a search.
        tau_profile: shares p of tau - 1 in equal groups of the chunks of z that go to the first layer and the blocks of
            BigGAN, coarse to fine: each is multiplied by 1 + (tau - 1) p; None is 1 everywhere.
        threshold: positive number: z from a normal truncated to [-t, t] (see ``truncation``), before ``tau``; None is
            off.

    Raises:
        UserError: a generator without classes, a value that is not finite, an unknown joint, layers or a profile that
            do not fit the blocks, psi without w, tau where z is normalised, a threshold on a uniform prior; a learned
            joint that is missing or was learned on another generator.

    Example:
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> guided = samplers.create("gandance", {"scale": 1.3, "joint": "class_mean"})
        >>> batch = next(guided.stream(view, seeds=range(4), batch_size=4, plan=LabelPlan(classes=(3,))))
        >>> batch.labels.tolist()
        [3, 3, 3, 3]
    """

    scale: float = 1.2  # not the neutral 1: a user who asks for gandance wants guidance
    joint: str = "class_mean"
    joint_ckpt: str | None = None
    strengths: bool = False
    subset: int = 8
    layers: tuple[int, int] | None = None
    profile: tuple[float, ...] | None = None
    keep_norm: bool = False
    psi: float | None = None
    tau: float = 1.0
    tau_profile: tuple[float, ...] | None = None
    threshold: float | None = None
    _network: LearnedJoint | Move | None = dataclasses.field(default=None, init=False, repr=False)  # see ``away_from``

    def __post_init__(self) -> None:
        # Numbers.
        check_finite("gandance.scale", self.scale)
        for share in self.profile or ():
            check_finite("gandance.profile", share)
        self.truncation()  # which checks psi and threshold
        self.temperature()
        check_at_least(self, subset=1)

        # The joint, and options that only learned ones have.
        JOINTS[self.joint]
        for name, joints in (("joint_ckpt", IN_FILES), ("strengths", IN_FILES[:1])):
            if getattr(self, name) and self.joint not in joints:
                known = " or ".join(joints)
                raise UserError(f"gandance.{name} belongs to joint {known}, but joint is {self.joint}: use {joints[0]}")

    def away_from(self, network: LearnedJoint | Move) -> GANdance:
        """The same sampler with a joint in memory in place of a file, as while it is trained."""
        sampler = copy.copy(self)
        object.__setattr__(sampler, "_network", network)
        return sampler

    @property
    def neutral(self) -> bool:
        return self.scale == 1 and self.truncation().neutral and self.temperature().neutral

    def truncation(self) -> Truncation:
        """What ``psi`` and ``threshold`` do, as a sampler."""
        return Truncation(psi=1.0 if self.psi is None else self.psi, threshold=self.threshold)

    @property
    def _profile(self) -> Profile:
        return Profile(self.scale, self.layers, self.profile)

    def temperature(self) -> Temperature:
        """What ``tau`` and ``tau_profile`` do."""
        return Temperature(self.tau, self.tau_profile)

    def check(self, view: LatentView) -> None:
        # The spread within classes.
        if self.psi not in (None, 1) and view.rows is None:
            backbone = view.networks.backbone
            raise UserError(f"gandance.psi needs a generator with w, but {backbone} has none: use tau, the spread of z")
        self.truncation().check(view)
        self.temperature().check(view)

        # The guidance.
        self._profile.check(view)
        if self.keep_norm and view.rows is None:
            raise UserError(
                f"gandance.keep_norm needs a generator with w: on {view.networks.backbone}, whose codes are one vector "
                "a class, it would undo nearly all of the guidance: leave it out"
            )
        file = self._file(view)
        if isinstance(file, Move) and file.shape.depth and self.psi not in (None, 1):
            raise UserError(
                f"gandance.psi needs guided means of classes, and the network of this {self.joint} move has none: "
                "leave psi out"
            )
        if self.joint in ("gaussian", "gaussian_shift") and self.scale != 1:
            gaussian.check(view)

    def files(self, view: LatentView) -> dict[str, str]:
        file = self._file(view)
        return {} if file is None else {"joint_sha256": file.digest()}

    def images(self, view: LatentView, inputs: Inputs) -> Tensor:
        inputs = dataclasses.replace(inputs, z=self._noise(view, inputs))
        return view.decode(self.codes(view, inputs), inputs.z, inputs.noise)

    def built_into(self, view: LatentView) -> LatentView:
        if self.joint == "class_subset":
            raise UserError(
                "gandance with joint=class_subset draws anew for each call and cannot be a base: use another"
            )

        if self.joint in moves.KINDS and view.rows is None and self.scale != 1:
            raise UserError(
                f"gandance with joint={self.joint} moves the noise of each class and cannot be a base here: use another"
            )

        def encode(z: Tensor, labels: Tensor) -> Tensor:
            return self.codes(view, _of_labels(labels, self._spread_z(view, z)))

        def decode(code: Tensor, z: Tensor, noise: list[Tensor] | None) -> Tensor:
            return view.decode(code, self._spread_z(view, z), noise)

        def class_means() -> Tensor:
            return self._means_by_class(view)

        return view.altered(encode=encode, decode=decode, class_means=class_means)

    def codes(self, view: LatentView, inputs: Inputs) -> Tensor:
        """The guided codes of a batch, [B, ...]: those of ``guided``, with the fewest passes and operations."""
        if self.scale == 1:
            return self._truncated(view, inputs.labels, view.encode(inputs.z, inputs.labels))

        guided = self._by_tables(view, inputs)
        if guided is None:
            code, joint = with_code(self.joint, view, inputs, self._joint_options(view))
            guided = self._guided(view, inputs.labels, code, joint)
        return self._truncated(view, inputs.labels, guided)

    def guided(self, view: LatentView, inputs: Inputs, code: Tensor) -> Tensor:
        """The guided codes, of the shape of ``code``, by the definition (for samplers that build on guidance)."""
        guided = code
        if self.scale != 1:
            joint = JOINTS[self.joint].target(view, inputs, code, self._joint_options(view))
            guided = self._guided(view, inputs.labels, code, joint)
        return self._truncated(view, inputs.labels, guided)

    def _noise(self, view: LatentView, inputs: Inputs) -> Tensor:
        """The noise of a batch as images are made of it: spread, and moved where the joint learned to move noise."""
        z = self._spread_z(view, inputs.z)
        if self.joint not in moves.KINDS or self.scale == 1:
            return z
        inputs = dataclasses.replace(inputs, z=z)
        return moves.moved_noise(self.joint, view, inputs, self._joint_options(view), self.scale)

    def _spread_z(self, view: LatentView, z: Tensor) -> Tensor:
        """z [B, Z] with its prior noise truncated and multiplied by the temperature; InfoGAN's numbers stay."""
        return self.temperature().applied(view, self.truncation().truncated_z(view, z))

    def _joint_options(self, view: LatentView) -> JointOptions:
        """What the joint needs to know; one that was learned was so from labels that are all alike."""
        weights = None if self.joint in IN_FILES else view.class_weights
        return JointOptions(self.subset, self.joint_ckpt, self._network, self.scale, weights)

    @property
    def _strengths_may_change(self) -> bool:
        """Whether strengths come from a network in memory, which learns them."""
        return self.strengths and self._network is not None

    def _by_tables(self, view: LatentView, inputs: Inputs) -> Tensor | None:
        """The guided codes of a batch out of tables of the classes; None where images need more than their class.

        Where codes ignore z, the table holds the guided codes; for ``class_shift`` of w, it holds what guidance adds
        to a code, (scale - 1) (m_c - m). A learned residual r(z), of the joint, adds (1 - scale) r(z).
        """
        network = self._learned(view) if self.joint == "learned" else None
        base = self.joint if network is None else network.base
        varies = network is not None and (self._network is not None or network.shape["depth"] > 0)

        # What needs the joints of single images, their norms, or gradients of the table.
        codes = view.class_codes()
        if inputs.labels.dim() == 2 or base not in (("class_shift",) if codes is None else WITHOUT_Z):
            return None
        if self._strengths_may_change or self.keep_norm:
            return None
        if codes is not None and codes.requires_grad and torch.is_grad_enabled():
            return None

        # The guided codes of the classes, or what is added to w.
        key = ("guided by class", self)
        table, weight = view.once(key, lambda: self._tables(view, codes, network, varies), codes)
        guided = table[inputs.labels]
        if network is not None and varies:
            weight = weight[inputs.labels] if self.strengths else weight
            shift = network.shift(view, inputs.z)
            guided = torch.addcmul(guided, weight, shift[:, None] if shift.dim() < guided.dim() else shift)
        return view.encode(inputs.z, inputs.labels) + guided if codes is None else guided

    @torch.no_grad()
    def _tables(
        self, view: LatentView, codes: Tensor | None, network: LearnedJoint | None, varies: bool
    ) -> tuple[Tensor, Tensor]:
        """The table of the classes, [C, ...], and the weight of residuals, 1 - scale, which broadcasts with it."""
        labels = torch.arange(view.num_classes, device=view.device)
        inputs = _of_labels(labels, torch.zeros(len(labels), 0, device=view.device))

        # Guided codes of the classes; away from the base alone, where the residual differs from image to image.
        if codes is not None:
            name = network.base if network is not None and varies else self.joint
            joint = JOINTS[name].target(view, inputs, codes, self._joint_options(view))
            return self._away(view, labels, codes, joint), 1 - self._scale_of_blocks(view, labels, codes)

        # What is added to w, in one row if all are equal.
        means = view.class_means()
        scale = self._scale_of_blocks(view, labels, means)
        if means.stride(1) == 0:
            means = means[:, :1]
        table = (scale - 1) * (means - mean_of_classes(means, self._joint_options(view)))
        if network is not None and not varies:
            table = table + (1 - scale) * network.shift(view, inputs.z)
        return table, 1 - scale

    def _truncated(self, view: LatentView, labels: Tensor, guided: Tensor) -> Tensor:
        """Guided codes, truncated towards the guided means of their classes."""
        truncation = self.truncation()
        if truncation.psi == 1:
            return guided
        if labels.dim() == 2 or self._strengths_may_change:
            return truncation.truncated_code(guided, self._guided_means(view, labels))

        means = view.once(("guided means", self), lambda: self._means_by_class(view))
        return truncation.truncated_code(guided, means[labels])

    @torch.no_grad()
    def _means_by_class(self, view: LatentView) -> Tensor:
        """The guided mean code of every class, [C, rows, w_dim]."""
        return self._guided_means(view, torch.arange(view.num_classes, device=view.device))

    def _guided_means(self, view: LatentView, labels: Tensor) -> Tensor:
        """The mean code of each image's class, guided away from the mean of all; of the shape of codes."""
        means = view.class_means()
        class_mean = of_class(means, labels)
        if self.scale == 1:
            return class_mean
        joint = mean_of_classes(means, self._joint_options(view))
        if self.joint in OF_CODES:
            inputs = _of_labels(labels, torch.zeros(len(labels), 0, device=view.device))
            joint = JOINTS[self.joint].target(view, inputs, class_mean, self._joint_options(view))
        return self._away(view, labels, class_mean, joint)

    def _file(self, view: LatentView) -> LearnedJoint | Move | None:
        """What the joint reads from a file; None for estimators that are arithmetic, and at scale 1."""
        if self.scale == 1 or self.joint not in IN_FILES:
            return None
        if self.joint == "learned":
            return self._learned(view)
        return moves.chosen(self.joint, view, self._joint_options(view))

    def _learned(self, view: LatentView) -> LearnedJoint:
        if self._network is None:
            return learned.of_view(view, self.joint_ckpt)
        assert isinstance(self._network, LearnedJoint)
        return self._network

    def _guided(self, view: LatentView, labels: Tensor, code: Tensor, joint: Tensor) -> Tensor:
        """``code`` guided away from ``joint``, by all options but the spread; with ``keep_norm``, as far as before."""
        guided = self._away(view, labels, code, joint)
        if not self.keep_norm:
            return guided

        # In units of the spread within classes, from the mean of the class before and after.
        _, inverse = spread_of_w(view)
        guided_mean = self._guided_means(view, labels)
        offset = guided - guided_mean
        norm = torch.linalg.vector_norm((code - of_class(view.class_means(), labels)) @ inverse, dim=-1, keepdim=True)
        guided_norm = torch.linalg.vector_norm(offset @ inverse, dim=-1, keepdim=True).clamp_min(1e-12)
        return self._profile.kept(code, guided_mean + offset * (norm / guided_norm))

    def _away(self, view: LatentView, labels: Tensor, code: Tensor, joint: Tensor) -> Tensor:
        """``code`` guided away from ``joint``, by the scale, in the blocks that the options ask for.

        Codes [B, D] of generators without w become [B, blocks, D] where blocks are guided differently.
        """
        code = self._profile.spread_out(view, code)
        joint = self._profile.spread_out(view, joint)
        if joint.dim() > code.dim():
            code = code[:, None].expand_as(joint)

        # Extrapolate; where the scale is 1, without rounding.
        scale = self._scale(view, labels, code)
        code, joint = by_block(scale, code, joint) if view.rows is None else (code, joint)
        guided = guide(code, joint, scale)
        if isinstance(scale, Tensor):
            guided = torch.where(scale == 1, code, guided)
        return self._profile.kept(code, guided)

    def _scale(self, view: LatentView, labels: Tensor, code: Tensor) -> float | Tensor:
        """``scale`` with ``profile`` and ``strengths``: one number, or one for each image and block."""
        scale = self._profile.scales(view)
        if self.strengths:
            scale = 1 + (scale - 1) * self._learned(view).strength(labels, code)
        return scale

    def _scale_of_blocks(self, view: LatentView, labels: Tensor, code: Tensor) -> Tensor:
        """``_scale`` as a tensor, 1 in the blocks outside of ``layers``."""
        scale = self._scale(view, labels, self._profile.spread_out(view, code))
        return self._profile.within_layers(view, scale)

"""Guidance away from an earlier version of the same generator, which makes the same errors, only larger ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from studiogan_guidance import rng
from studiogan_guidance.errors import UserError
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView, weights_digest
from studiogan_guidance.samplers.base import SAMPLERS, BasedSampler, Sampled, check_finite
from studiogan_guidance.samplers.gandance import guide


@SAMPLERS.register(
    "autoguidance",
    "extrapolates from an earlier snapshot's code towards today's",
    "Karras et al. 2024, arXiv:2406.02507",
    family="code",
    needs=("snapshot",),
    neutral={"scale": 1.0},
)
@dataclass(frozen=True)
class Autoguidance(BasedSampler):
    """Extrapolate each code away from that of an earlier snapshot of the same run for the same noise and class.

    code_g = f_ref(z, c) + scale * (f(z, c) - f_ref(z, c)), decoded by the present network. This is meaningful only if
    both networks share one latent space, as snapshots of one run roughly do: images at scale 0 should look alike. With
    a base, f_ref is the base on top of the reference. The paper guides denoisers of diffusion models; codes of GANs
    are our analogue.

    Paper: Karras et al., "Guiding a diffusion model with a bad version of itself", NeurIPS 2024, arXiv:2406.02507
    (its rule, with codes in the place of denoised images).

    Args:
        scale: finite number; 1 is plain (neutral), more guides, 0 is the code of the reference; 1.2 to 2.5 is usual
            for diffusion.
        reference: path of another checkpoint of the same run, a file or (of the host) a folder.
        base: see ``BasedSampler``.

    Raises:
        UserError: no reference, one that does not fit, one whose codes equal those of the generator (as with a copy, or
            where codes are label vectors), or an unconditional generator without w, which has no codes.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> from studiogan_guidance import builtin, samplers, view_for, LabelPlan
        >>> view = view_for(builtin.networks())
        >>> path = tempfile.mkdtemp() + "/earlier.safetensors"
        >>> save_file({name: 0.9 * value for name, value in view.generator.state_dict().items()}, path)
        >>> sampler = samplers.create("autoguidance", {"scale": 1.5, "reference": path})
        >>> next(sampler.stream(view, range(2), 2, LabelPlan())).cost["mapping"]
        4
    """

    scale: float = 1.5
    reference: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_finite("autoguidance.scale", self.scale)

    @property
    def _is_identity(self) -> bool:
        return self.scale == 1

    def check(self, view: LatentView) -> None:
        super().check(view)
        if not self._is_identity:
            self.earlier(self.under(view))

    def files(self, view: LatentView) -> dict[str, str]:
        files = super().files(view)
        if self._is_identity:
            return files
        _, digest = self.earlier(self.under(view.bare))
        return files | {"reference_sha256": digest}

    def stacked(self, view: LatentView, inputs: Inputs) -> Sampled:
        code = self.guided(view, inputs.z, inputs.labels)
        return Sampled(view.decode(code, inputs.z, inputs.noise))

    def guided(self, view: LatentView, z: Tensor, labels: Tensor) -> Tensor:
        """Guided codes on the view of the base, of the shape of its codes."""
        reference, _ = self.earlier(view)
        with reference.frozen():
            return guide(view.encode(z, labels), reference.encode(z, labels), self.scale)

    def built_into(self, view: LatentView) -> LatentView:
        view = self.under(view)
        if self._is_identity:
            return view

        def encode(z: Tensor, labels: Tensor) -> Tensor:
            return self.guided(view, z, labels)

        def class_means() -> Tensor:
            reference, _ = self.earlier(view)
            return guide(view.class_means(), reference.class_means(), self.scale)

        return view.altered(encode=encode, class_means=class_means)

    def earlier(self, view: LatentView) -> tuple[LatentView, str]:
        """The view of the base on the reference, and the hash of its weights; ``view`` is that of the base."""
        return view.once(f"reference {self.reference} of {self.base}", lambda: self._open(view))

    def _open(self, view: LatentView) -> tuple[LatentView, str]:
        networks = view.networks
        if self.reference is None:
            raise UserError(
                "autoguidance needs a reference: give -o reference=PATH of an earlier checkpoint of the run"
            )
        if networks.companions is None:
            raise UserError(
                f"autoguidance.reference {self.reference}: {networks.source} comes without a way to open other "
                "checkpoints of its run"
            )

        # A view of the snapshot, whose passes count as passes of this sampler.
        module = networks.companions.snapshot(self.reference)
        digest = weights_digest(module)
        snapshot = dataclasses.replace(networks, generator=module, digest=digest if view.on_disk else "")
        bare = type(view.bare)(snapshot)
        bare.ledger = view.ledger
        reference = self.under(bare)

        self._check_fit(view, reference)
        return reference, digest

    def _check_fit(self, view: LatentView, reference: LatentView) -> None:
        """Raise UserError unless both views have codes of one shape, but not the same codes."""
        # Encode the same noise in both.
        with view.frozen(), reference.frozen(), torch.no_grad():
            inputs = view.draw(range(rng.PILOTS, rng.PILOTS + 4), 0, LabelPlan(), "const")
            code = view.encode(inputs.z, inputs.labels)
            reference_code = reference.encode(inputs.z, inputs.labels)

        source = view.networks.source
        if not code.numel():
            raise UserError(
                f"autoguidance moves codes, and an unconditional {view.networks.backbone} has none beside z: use "
                "truncation or ddls"
            )
        if code.shape != reference_code.shape:
            raise UserError(
                f"autoguidance.reference {self.reference} has codes of another size than {source}: use a snapshot of "
                "the same run"
            )
        if torch.equal(code, reference_code):
            raise UserError(
                f"autoguidance.reference {self.reference} gives the same codes as {source} (it is the same checkpoint, "
                "or codes are label vectors, in which nothing is learned): use gandance"
            )

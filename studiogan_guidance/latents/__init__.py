"""Views of generators, and the estimators of their condition-free code."""

from __future__ import annotations

from typing import TYPE_CHECKING

import studiogan_guidance.latents.gaussian  # noqa: F401  which registers its joints
from studiogan_guidance import submodules
from studiogan_guidance.errors import UserError, nearest
from studiogan_guidance.latents import moves  # noqa: F401  it registers its joints
from studiogan_guidance.latents.base import Inputs, LabelPlan, LatentView, Networks
from studiogan_guidance.latents.biggan import EmbeddingView
from studiogan_guidance.latents.cbn import LabelView
from studiogan_guidance.latents.learned import LearnedJoint
from studiogan_guidance.latents.stylegan import StyleGANView, WView
from studiogan_guidance.latents.unconditional import UnconditionalView
from studiogan_guidance.registry import Registry

__all__ = ["VIEWS", "Inputs", "LabelPlan", "LatentView", "LearnedJoint", "Networks", "view_for"]

VIEWS: Registry[type[LatentView]] = Registry("backbone")
for _name, _view, _description, _paper in (
    ("stylegan2", StyleGANView, "w of StyleGAN2", "Karras et al. 2020, arXiv:1912.04958"),
    ("stylegan3", StyleGANView, "w of StyleGAN3", "Karras et al. 2021, arXiv:2106.12423"),
    ("big_resnet", EmbeddingView, "shared class embedding of BigGAN", "Brock et al. 2019, arXiv:1809.11096"),
    ("big_resnet_deep_legacy", EmbeddingView, "shared embedding of BigGAN-deep", "Brock et al. 2019, arXiv:1809.11096"),
    ("big_resnet_deep_studiogan", EmbeddingView, "shared embedding of the host's own BigGAN-deep", "Kang et al. 2022"),
    ("resnet", LabelView, "label vector of cBN ResNets (SNGAN, SAGAN)", "Miyato et al. 2018, arXiv:1802.05957"),
    ("deep_conv", LabelView, "label vector of cBN DCGANs", "Radford et al. 2016, arXiv:1511.06434"),
    ("builtin", WView, "w of the built-in GAN", "this package"),
):
    VIEWS.register(_name, _description, _paper)(_view)


def view_for(networks: Networks) -> LatentView:
    """The view that fits a generator, with labels or without; UserError if its backbone has no view."""
    names = [entry.name for entry in VIEWS]
    if networks.backbone not in names:
        raise UserError(f"no view of backbone '{networks.backbone}': {nearest(networks.backbone, names)}")
    view = VIEWS[networks.backbone].target
    if not networks.is_conditional and not issubclass(view, WView):
        view = UnconditionalView  # the latent of these families is the condition
    return view(networks)


if not TYPE_CHECKING:  # where types are checked, a name that is missing is an error
    __getattr__ = submodules(__name__)

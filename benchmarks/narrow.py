"""The command line with a StyleGAN2 of the host that has fewer channels, so that a CPU can train and sample it.

    python benchmarks/narrow.py 48 run --device cpu -- -t -cfg StyleGAN2.yaml -data letters -save runs/style
    python benchmarks/narrow.py 48 eval --config StyleGAN2.yaml --ckpt runs/style/checkpoints/...

The host's configurations have no key for it: at 32x32, each of its layers has 512 channels.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

from studiogan_guidance.cli import main
from studiogan_guidance.host.imports import inside, module
from studiogan_guidance.host.locate import locate

CLASSES = ("SynthesisNetwork", "Discriminator")


def narrow(channels: int) -> None:
    """Let the host's StyleGAN2 have no layer of more than ``channels`` channels, in this process."""
    with inside(locate()):
        stylegan2 = module("models.stylegan2")
        for name in CLASSES:
            network: Any = getattr(stylegan2, name)
            network.__init__ = _bounded(network.__init__, channels)


def _bounded(original: Any, channels: int) -> Any:
    @functools.wraps(original)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **{**kwargs, "channel_max": channels})

    return build


if __name__ == "__main__":
    narrow(int(sys.argv.pop(1)))
    main()

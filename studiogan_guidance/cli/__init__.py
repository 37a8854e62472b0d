"""The command line: parse, call one function, print what it returns. Results go to stdout, progress to stderr."""

from __future__ import annotations

import click

from studiogan_guidance import __version__
from studiogan_guidance.cli.group import Group
from studiogan_guidance.cli.measure import compare, evaluate, stats, sweep, tune
from studiogan_guidance.cli.project import doctor, list_, setup
from studiogan_guidance.cli.sample import sample
from studiogan_guidance.cli.train import run, train


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="studiogan-guidance")
def main() -> None:
    """Guided sampling for pretrained conditional GANs, on the built-in GAN or on PyTorch-StudioGAN checkpoints."""


for command in (sample, evaluate, sweep, tune, compare, stats, train, run, list_, doctor, setup):
    main.add_command(command)

"""The command line: parse, call one function, print what it returns. Results go to stdout, progress to stderr."""

from __future__ import annotations

import click

from studiogan_guidance import __version__
from studiogan_guidance.cli.group import Group
from studiogan_guidance.cli.measure import compare, evaluate, report, stats, sweep, tune
from studiogan_guidance.cli.project import doctor, list_, models, setup
from studiogan_guidance.cli.sample import sample
from studiogan_guidance.cli.shell import completion
from studiogan_guidance.cli.train import run, train

# Commands by what people do first; one that is added and stands in no section is listed under "Others".
SECTIONS = {
    "Start here": ("sample", "eval", "doctor", "models", "list"),
    "Measure and choose": ("sweep", "tune", "compare", "stats", "report"),
    "Train": ("train",),
    "Inside PyTorch-StudioGAN": ("setup", "run"),
    "Shell": ("completion",),
}
FIRST_TRY = """A first try, which needs no checkpoint and no images of your own:
  studiogan-guidance sample --num 8 --scales 1,1.5,2 --classes 3
  studiogan-guidance eval"""


@click.group(
    cls=Group,
    sections=SECTIONS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="studiogan-guidance")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Guided sampling for pretrained conditional GANs, on the built-in GAN or on PyTorch-StudioGAN checkpoints."""
    if ctx.invoked_subcommand is None:
        click.echo(f"{ctx.get_help()}\n\n{FIRST_TRY}")


for command in (
    sample,
    evaluate,
    sweep,
    tune,
    compare,
    report,
    stats,
    train,
    run,
    list_,
    models,
    doctor,
    setup,
    completion,
):
    main.add_command(command)

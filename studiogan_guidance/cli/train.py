"""The commands that train: a stage on a frozen generator, and PyTorch-StudioGAN itself."""

from __future__ import annotations

from typing import Any

import click

from studiogan_guidance.cli import completers, parsing
from studiogan_guidance.cli.flags import BASIC, BENCH, JUDGED, STUDIOGAN, option, option_pairs, shared
from studiogan_guidance.cli.group import OUTPUT, TRAINED, Verb
from studiogan_guidance.cli.output import emit, load_config
from studiogan_guidance.errors import UserError

LOGS = ("tensorboard", "wandb")


@click.command(cls=Verb, resumes=True, short_help="Train a stage on a frozen generator.")
@shared(BASIC, BENCH, JUDGED)
@option(
    "--stage",
    default="joint",
    show_default=True,
    metavar="NAME",
    help="What to train; see 'list'.",
    section=TRAINED,
    shell_complete=completers.of("STAGES"),
)
@option_pairs("the stage", section=TRAINED, shell_complete=completers.options_of_stage)
@option(
    "--log",
    "logs",
    callback=parsing.WORDS,
    metavar="WORDS",
    help=f"More places for losses, of {','.join(LOGS)}. [DIR/joint.jsonl only]",
    section=OUTPUT,
    shell_complete=completers.words(*LOGS),
)
def train(config: str | None, as_json: bool, stage: str, logs: tuple[str, ...], **settings: Any) -> None:
    """Train a stage on a frozen generator, into DIR/STAGE.safetensors ('strengths' after 'joint', into its file).

    'eval' takes the file as -o joint_ckpt=FILE, or -o weights_ckpt=FILE of latent_reweighting. The same command resumes
    a training that was stopped. With --judge, the step that is kept has the least geometric mean of FID in all spaces.

    \b
    studiogan-guidance train --stage amortised --out runs/amortised
    studiogan-guidance train -c my.yaml --ckpt checkpoint/ --data images/ \\
      --out runs/joint -o adversarial=1 -o latent=0
    studiogan-guidance eval -o joint=learned \\
      -o joint_ckpt=runs/joint/joint.safetensors
    torchrun --nproc-per-node 8 -m -- studiogan_guidance train -c my.yaml \\
      --ckpt checkpoint/ --data images/
    """
    for word in logs:
        if word not in LOGS:
            raise UserError(f"--log takes {' and '.join(LOGS)}, found '{word}'")
    stage_options = settings.pop("options")
    cfg = load_config(config, settings)
    from studiogan_guidance.training import train as function

    emit(function(cfg, stage, stage_options, logs), as_json)


@click.command(
    cls=click.Command,
    context_settings={"ignore_unknown_options": True},
    short_help="Run PyTorch-StudioGAN itself, with a sampler if it names one.",
)  # the host's, also without the --
@STUDIOGAN
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="cpu leaves GPUs alone.")
@click.option("--processes", type=click.IntRange(1), metavar="N", help="CPU only: processes that -DDP starts. [1]")
@click.option("--script", type=click.Choice(["main", "evaluate"]), default="main", help="Which program of the host.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="-- HOST_ARGUMENTS")
def run(studiogan: str | None, device: str, processes: int | None, script: str, arguments: tuple[str, ...]) -> None:
    """Run PyTorch-StudioGAN itself, unpatched, on today's libraries, with or without a GPU.

    A sampler in its YAML makes all images of its evaluations and analyses; training is untouched.

    \b
    studiogan-guidance run -- -t -cfg my.yaml -data images/ -save runs/ \\
      -metrics is fid prdc
    studiogan-guidance run -- -cfg my.yaml -ckpt checkpoint/ -data images/ \\
      -save runs/ -metrics fid -v -sf
    studiogan-guidance run --device cpu --processes 2 -- -DDP --backend gloo \\
      -cfg my.yaml -data images/ -save runs/ -t
    """
    from studiogan_guidance import devices
    from studiogan_guidance.evaluation.source import device_of
    from studiogan_guidance.host.locate import locate
    from studiogan_guidance.plugin.hooks import start

    # Check the devices, then start.
    with devices.chosen(device, processes):
        device_of("auto")
        if processes and not devices.cpu_only():
            raise UserError("--processes is for runs without a GPU, and one is visible: add --device cpu")
        start(locate(studiogan), script, arguments)

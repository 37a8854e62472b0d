"""The commands about the project itself: what there is, what is installed, and the host."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from studiogan_guidance.cli.flags import AS_JSON, CKPT, CONFIG, DATA, STUDIOGAN
from studiogan_guidance.cli.group import Verb
from studiogan_guidance.cli.output import emit, load_config, show
from studiogan_guidance.errors import UserError


@click.command("list", cls=Verb, short_help="List samplers, joints, stages, configurations; or classes.")
@AS_JSON
@click.option(
    "--markdown",
    "table",
    type=click.Choice(["samplers", "summary", "keys", "shims"]),
    is_flag=False,
    flag_value="samplers",
    help="Print a table of the pages: samplers, their summary, keys of a YAML file, or shims. [samplers]",
)
@click.option("--classes", "of_classes", is_flag=True, help="List the classes of real images: index, folder, images.")
@CONFIG
@CKPT
@DATA
@STUDIOGAN
@click.argument("name", required=False)
def list_(
    as_json: bool, table: str | None, of_classes: bool, config: str | None, name: str | None, **settings: Any
) -> None:
    """List samplers with their options, joints, views, training stages and configurations, with their papers.

    With NAME, print the documentation of that sampler, joint, view or stage. With --classes, list the classes that
    --classes of other commands means: index, folder, and images of each split that is there. No checkpoint is needed;
    with --ckpt, the configuration is that of its folder.

    \b
    studiogan-guidance list
    studiogan-guidance list ddls
    studiogan-guidance list --classes -c my.yaml --data images/
    """
    if of_classes and (name or table):
        raise UserError("list --classes lists classes only: leave out NAME and --markdown")
    if of_classes:
        cfg = load_config(config, settings)
        from studiogan_guidance.evaluation import labels, tables

        emit(labels.class_table(cfg), as_json, tables.classes)
        return
    if config or any(settings.values()):
        raise UserError("-c, --ckpt, --data and --studiogan are for the classes of real images: add --classes")
    from studiogan_guidance import catalogue

    if name:
        text = catalogue.documentation(name)
        emit({"name": name, "documentation": text}, as_json, lambda _: text)
        return
    if as_json:
        show(json.dumps(catalogue.as_data()))
    else:
        show(catalogue.as_markdown(table) if table else catalogue.as_text())
    for reason in catalogue.broken():
        click.echo(reason, err=True)


@click.command(cls=Verb, short_help="List checkpoints that are known, and their addresses on the hub.")
@AS_JSON
@click.option("--markdown", is_flag=True, help="Print a table of the pages.")
def models(as_json: bool, markdown: bool) -> None:
    """List checkpoints that are known: data, backbone, address, configuration, and whether this project tried them.

    \b
    studiogan-guidance models
    studiogan-guidance models --json
    """
    from studiogan_guidance.host import models as module

    text = module.as_markdown() if markdown else module.as_text()
    emit({"models": module.as_data()}, as_json, lambda _: text)


@click.command(cls=Verb, short_help="Check what is installed and found, for you or a bug report.")
@STUDIOGAN
@AS_JSON
def doctor(studiogan: str | None, as_json: bool) -> None:
    """Check Python, torch, the cache, the built-in GAN, the host and what it needs. Paste the output in bug reports."""
    from studiogan_guidance import doctor as module

    checks = module.run(studiogan)
    rows = [dataclasses.asdict(check) for check in checks]
    emit({"checks": rows}, as_json, lambda _: module.as_text(checks))
    if any(check.status == "fail" for check in checks):
        raise click.exceptions.Exit(1)


@click.command(cls=Verb, short_help="Clone PyTorch-StudioGAN into the cache folder.")
@click.option("--source", metavar="URL_OR_DIR", help="Git repository to clone. [the host's GitHub repository]")
@AS_JSON
def setup(source: str | None, as_json: bool) -> None:
    """Clone PyTorch-StudioGAN at the pinned commit into the cache folder."""
    from studiogan_guidance.host.locate import setup as clone

    checkout = clone(source)
    commit = checkout.commit or ""
    text = f"PyTorch-StudioGAN {commit[:7]} is in {checkout.path}"
    emit({"path": str(checkout.path), "commit": checkout.commit}, as_json, lambda _: text)

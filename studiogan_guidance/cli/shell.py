"""The command that prints the script by which a shell completes words."""

from __future__ import annotations

import click
from click.shell_completion import BashComplete, get_completion_class

from studiogan_guidance.cli.group import Verb

PROGRAM = "studiogan-guidance"
VARIABLE = "_STUDIOGAN_GUIDANCE_COMPLETE"
SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Verb, short_help="Print the script that completes words in a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script by which a shell completes commands, options and names.

    Once, for bash, zsh or fish (zsh after its compinit); then start a new shell:

    \b
    echo 'eval "$(studiogan-guidance completion bash)"' >> ~/.bashrc
    echo 'eval "$(studiogan-guidance completion zsh)"' >> ~/.zshrc
    studiogan-guidance completion fish >> ~/.config/fish/config.fish
    """
    kind = get_completion_class(shell)
    assert kind is not None
    text = kind(click.get_current_context().find_root().command, {}, PROGRAM, VARIABLE).source()

    # Where more has to follow, bash puts no space.
    if kind is BashComplete:
        line = "COMPREPLY+=($value)"
        text = text.replace(line, f"{line}\n            [[ $value == *[=/] ]] && compopt -o nospace")
    click.echo(text)

"""Which options were written on the command line, and where."""

from __future__ import annotations

import typer

from ..errors import InputError

__all__ = ["given_options", "refuse_early_options"]


def given_options(context: typer.Context) -> list[str]:
    """Parameters that were written on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def refuse_early_options(context: typer.Context) -> None:
    """Refuse options before a stage's name, which would be ignored without a word.

    Raises
    ------
    InputError
        Names the first of them and its place.
    """
    for name in given_options(context):
        option, stage = name.rstrip("_").replace("_", "-"), context.invoked_subcommand
        raise InputError(
            f"--{option} stands before '{stage}'; write it behind: allocate {stage} --{option} ..."
        )

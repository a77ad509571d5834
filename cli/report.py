"""A plan on standard output, as tables or as JSON."""

from __future__ import annotations

import json
from typing import Any

import typer

from ..allocator import Plan
from ..network import Network, find_sites
from ..sensitivity import Profile, doubtful_layers
from .console import Reporter
from .folder import RunFolder
from .scoring import Scoring
from .tables import massive_line, plan_lines, plan_table, unused_line

__all__ = ["print_json", "report_plan", "warn_of_doubt", "warn_of_no_attention", "warn_of_scores"]

MOST_NAMED = 8
WORTH_SAYING = 0.001
"""Nats that a value costs in its widest option; rows of zeros with a one in them lean on few numbers, too."""


def report_plan(plan: Plan, folder: RunFolder, reporter: Reporter, json_: bool) -> None:
    """Print a plan, and a warning where its choices are noise."""
    warn_of_doubt(plan, reporter)
    if json_:
        print_json(plan, folder)
        return
    reporter.result(plan_table(plan))
    for line in plan_lines(plan):
        reporter.result(line)


def warn_of_doubt(plan: Plan, reporter: Reporter) -> None:
    """Name the layers whose options the samples do not decide, if there are any."""
    layers = doubtful_layers(plan)
    if layers:
        named = ", ".join(layers[:MOST_NAMED]) + (", ..." if len(layers) > MOST_NAMED else "")
        regret = sum(layer.regret or 0.0 for layer in plan.layers)
        predicted = sum(layer.predicted_loss or 0.0 for layer in plan.layers)
        added = f"{100 * regret / predicted:.2g}%" if predicted > 0 else f"{regret:.2g}"
        reporter.warn(
            f"too few samples to choose by in {len(layers)} of {len(plan.layers)} layers: {named}; noise in "
            f"the scores is expected to add {added} to the predicted loss. Give more --samples, or measure "
            "with allocate profile --until-stable"
        )


def warn_of_no_attention(network: Network, scoring: Scoring, reporter: Reporter) -> None:
    """Say where operands of attention were asked for and there are none beside what layers read."""
    asked = scoring.activations is not None and scoring.activations.attention
    if asked and len(find_sites(network, attention=True)) == len(find_sites(network)):
        reporter.warn(
            "--attention adds nothing: this network multiplies no values with each other but what its layers "
            "read too"
        )


def warn_of_scores(network: Network, profile: Profile, reporter: Reporter) -> None:
    """Name what the calibration data leaves untouched, and values that suffer from a few massive numbers."""
    if profile.unused:
        reporter.warn(unused_line(profile))
    if profile.activations is not None:
        attention = bool(profile.activations.settings["attention"])
        by_token = {site.name for site in find_sites(network, attention=attention) if site.by_token}
        for site in profile.activations.sites:
            if site.massive and site.scores[-1].loss > WORTH_SAYING:
                reporter.warn(massive_line(site, profile.activations, site.name in by_token))


def print_json(plan: Plan, folder: RunFolder, **extra: Any) -> None:
    """Print one JSON object: the folder, the plan, and what else was done."""
    document = {"folder": str(folder.path), "plan": plan.model_dump(mode="json", exclude_none=True)}
    typer.echo(json.dumps(document | extra))

"""`allocate profile --until-stable`: as many calibration samples as the plans need, told round by round."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import InputError
from ..network import Data
from ..sensitivity import (
    MOST_REGRET,
    Profile,
    ProfileArrays,
    StabilityRound,
    check_feasible,
    check_profile,
    measure_until_stable,
    profile_fingerprint,
    read_profile,
    write_profile,
)
from .console import Reporter
from .folder import RunFolder
from .inputs import Inputs
from .scoring import Scoring

__all__ = ["check_until_stable", "stable_profile"]


def check_until_stable(until_stable: bool, method: str, after: str, budgets: Sequence[str]) -> None:
    """Refuse what goes only with, or not with, rounds of samples.

    Raises
    ------
    InputError
        Budgets without rounds, or rounds of exact scores or of scores after GPTQ.
    """
    if budgets and not until_stable:
        raise InputError(
            f"--budget {budgets[0]} says at which size plans are compared, and goes with --until-stable; "
            "scores alone need no budget"
        )
    if until_stable and method != "fisher":
        raise InputError("--until-stable adds samples to Fisher scores; leave --scores exact out")
    if until_stable and after != "nearest":
        raise InputError(
            f"--until-stable adds samples to scores of the same weights, and those of --after {after} change "
            "with the samples; leave one of the two out"
        )


def stable_profile(
    inputs: Inputs,
    scoring: Scoring,
    budgets: Sequence[str],
    unit: str,
    folder: RunFolder,
    reporter: Reporter,
    *,
    force: bool,
) -> Profile:
    """Measure until the plans at the budgets are stable, going on from the profile in the folder if it fits.

    Raises
    ------
    InputError
        The profile in the folder belongs to other inputs, and `force` is not set.
    InfeasibleError
        A budget that no choice meets.
    """
    network, data = inputs.network, inputs.calibration
    for budget in budgets:
        check_feasible(network, scoring.options, budget, unit)
    start = _stored(inputs, scoring, folder, reporter, force=force)
    if start is not None and _is_finished(start[0], data, budgets, unit):
        profile, arrays = start
        reporter.say(f"scores: {folder.profile()} fits and is used again")
    else:
        if start is not None:
            reporter.say(f"scores: going on from the {start[0].samples:,} samples of {folder.profile()}")
        try:
            with reporter.stage("scores") as progress:
                profile, arrays = measure_until_stable(
                    network,
                    data,
                    scoring.options,
                    quantizer=scoring.quantizer,
                    settings=scoring.settings,
                    budgets=budgets,
                    unit=unit,
                    start=start,
                    store=folder.parts,
                    on_progress=progress,
                    on_round=lambda found: reporter.say(_round_line(found)),
                )
        except InputError:
            folder.drop_parts()
            raise
        write_profile(folder.profile(), profile, arrays)
        folder.drop_parts()
    _conclude(profile, folder, reporter)
    return profile


def _stored(
    inputs: Inputs, scoring: Scoring, folder: RunFolder, reporter: Reporter, *, force: bool
) -> tuple[Profile, ProfileArrays] | None:
    """The profile in the folder, where it was measured on the first samples with the same settings."""
    where, data = folder.profile(), inputs.calibration
    if not where.exists():
        return None
    try:
        profile, arrays = read_profile(where)
        part = data.part(slice(profile.samples))
        wanted = profile_fingerprint(
            inputs.network, part, scoring.options, scoring.quantizer, "fisher", scoring.settings
        )
        check_profile(profile, wanted, str(where))
    except InputError as error:
        if not force:
            raise
        reporter.say(f"measuring again: {error}")
        return None
    return None if arrays is None else (profile, arrays)


def _is_finished(profile: Profile, data: Data, budgets: Sequence[str], unit: str) -> bool:
    """Whether the very same was asked before, and more samples are not needed or not there."""
    found = profile.stability
    if found is None or found.unit != unit or (budgets and tuple(budgets) != found.budgets):
        return False
    return found.stable or profile.samples == len(data)


def _round_line(found: StabilityRound) -> str:
    return (
        f"  {found.samples:,} samples: the plans of before lose {100 * found.regret:.2g}% more than the new "
        f"ones, and {100 * found.unchanged:.1f}% of the weights keep their option"
    )


def _conclude(profile: Profile, folder: RunFolder, reporter: Reporter) -> None:
    """Say how many samples were needed, or that all were too few, and how to use the profile."""
    found = profile.stability
    assert found is not None
    at = f"{', '.join(found.budgets)} per {found.unit}"
    if found.stable:
        reporter.say(f"{profile.samples:,} samples are enough: the plans at {at} are stable")
    elif found.rounds:
        reporter.warn(
            f"all {profile.samples:,} samples were used, and the plans at {at} still change: the last "
            f"round took {100 * found.rounds[-1].regret:.2g}% off their loss, where {100 * MOST_REGRET:.2g}% "
            "is stable; give more data, or raise --samples"
        )
    else:
        reporter.warn(
            f"all {profile.samples:,} samples were used in one round, so nothing is known of the plans at "
            f"{at}; give more data, or raise --samples"
        )
    reporter.say(
        f"use them with: allocate solve --out {folder.path}, or allocate --samples {profile.samples} --out "
        f"{folder.path} and the same network, data and options"
    )

"""The stages of a job: each reads and writes documents and calls the rooms."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ..allocator import Measured, Plan, Reconstruction, Tolerance, check_layers, write_plan
from ..errors import InfeasibleError, InputError
from ..export import read_run, save_network
from ..network import Network
from ..reconstruct import (
    Finalized,
    Judged,
    MethodName,
    accept_edits,
    can_measure,
    check_values,
    contest,
    layer_shapes,
    measure_competing,
    measure_finalized,
)
from ..sensitivity import (
    Fingerprint,
    Objective,
    Profile,
    ProfileArrays,
    RefineStep,
    best_uniform_plan,
    check_profile,
    ledger_of,
    measure_profile,
    profile_fingerprint,
    read_profile,
    refine_plan,
    solve_plan,
    write_profile,
)
from .bundle import points_plan
from .console import Reporter
from .folder import RunFolder
from .inputs import Inputs
from .limits import Limits
from .lossless import least_plan
from .making import Making, compared_line
from .report import warn_of_no_attention, warn_of_scores
from .rivals import rivals
from .scoring import Scoring

__all__ = ["Job", "own_profile"]


@dataclass
class Job:
    """One run over a folder; `seconds` collects the time of its stages."""

    folder: RunFolder
    reporter: Reporter
    seconds: dict[str, float] = field(default_factory=dict)

    def profiles(
        self, inputs: Inputs, scoring: Scoring, *, force: bool
    ) -> list[tuple[Profile, ProfileArrays | None]]:
        """The profile, or those that compete: from the folder what fits the inputs, else new ones.

        Raises
        ------
        InputError
            A profile in the folder is of other inputs, and `force` is not set; nothing was measured then.
        """
        warn_of_no_attention(inputs.network, scoring, self.reporter)
        kinds = scoring.kinds()
        known = [self._known(inputs, kind, force=force) for kind in kinds]
        return [found or self._measured(inputs, kind) for kind, found in zip(kinds, known, strict=True)]

    def _known(
        self, inputs: Inputs, scoring: Scoring, *, force: bool
    ) -> tuple[Profile, ProfileArrays | None] | None:
        """The profile of this kind in the folder; None where there is none, or by force."""
        where = self.folder.profile(scoring.after)
        if not where.exists():
            return None
        try:
            profile, arrays = read_profile(where)
            check_profile(profile, _fingerprint(inputs, scoring), str(where))
        except InputError as error:
            if not force:
                raise
            self.reporter.say(f"measuring again: {error}")
            return None
        self.reporter.say(f"scores: {where} fits and is used again")
        return profile, arrays

    def _measured(self, inputs: Inputs, scoring: Scoring) -> tuple[Profile, ProfileArrays | None]:
        """A new profile."""
        network, data = inputs.network, inputs.calibration
        began = time.perf_counter()
        try:
            with self.reporter.stage("scores") as progress:
                profile, arrays = measure_profile(
                    network,
                    data,
                    scoring.options,
                    quantizer=scoring.quantizer,
                    method=scoring.method,
                    settings=scoring.settings,
                    after=scoring.after,
                    weights=scoring.weights(network, data, unseen=True),
                    activations=scoring.activations,
                    store=self.folder.parts,
                    on_progress=progress,
                )
        except InputError:
            self.folder.drop_parts()
            raise
        write_profile(self.folder.profile(scoring.after), profile, arrays)
        self.folder.drop_parts()
        self._took("profile", began)
        warn_of_scores(network, profile, self.reporter)
        return profile, arrays

    def solve(
        self,
        profile: Profile,
        arrays: ProfileArrays | None,
        limits: Limits,
        unit: str,
        objective: Objective | None = None,
        time_limit_s: float | None = None,
        *,
        nearest: bool = True,
    ) -> list[Plan]:
        """The plans that compete within the limits, see `rivals`."""
        began = time.perf_counter()

        def solved(unit: str, objective: Objective | None) -> Plan:
            return solve_plan(
                profile,
                arrays,
                limits.budgets,
                unit,
                objective=objective,
                constraints=limits.constraints,
                tables=limits.tables,
                time_limit_s=time_limit_s,
            )

        ways = rivals(profile, arrays, unit, objective, nearest=nearest)
        plans: list[Plan] = []
        for each, choice in ways[:-1]:
            # Channel codes can put the least channel plan just above a budget that a layer plan meets.
            with contextlib.suppress(InfeasibleError):
                plans.append(solved(each, choice))
        plans.append(solved(*ways[-1]))
        self._took("solve", began)
        return plans

    def points(self, inputs: Inputs, limits: Limits, scoring: Scoring) -> Plan:
        """The plan of points by output error."""
        began = time.perf_counter()
        plan = points_plan(inputs, limits, scoring)
        self._took("solve", began)
        return plan

    def refine(
        self,
        inputs: Inputs,
        scoring: Scoring,
        profile: Profile,
        arrays: ProfileArrays | None,
        plans: Sequence[Plan],
        evaluations: int,
        time_limit_s: float | None = None,
    ) -> Plan:
        """The first plan, or a better one of the others, after moves that lower its loss, each shown.

        The loss is that of the weights which the profile scores.
        """
        began = time.perf_counter()

        def told(step: RefineStep) -> None:
            verdict = "refused"
            if step.deciding is not None:
                verdict = f"taken; {step.deciding:.4g} on the samples that decide{', the best' * step.best}"
            self.reporter.say(
                f"refine by {profile.after} scores {step.evaluations}/{evaluations}: {step.moved} units "
                f"moved, loss {step.loss:.4g} (expected {step.predicted:.4g}), {verdict}"
            )

        refined = refine_plan(
            inputs.network, inputs.calibration, profile, arrays, plans[0], evaluations,
            weights=scoring.weights(inputs.network, inputs.calibration), rivals=plans[1:],
            time_limit_s=time_limit_s, on_step=told,
        )  # fmt: skip
        self._took("refine", began)
        return refined

    def least(
        self,
        inputs: Inputs,
        profile: Profile,
        arrays: ProfileArrays | None,
        limits: Limits,
        tolerance: Tolerance,
        unit: str,
        making: Making,
        *,
        time_limit_s: float | None = None,
    ) -> Judged:
        """The smallest plan whose measured drop is within the tolerance; nothing competes with it."""
        began = time.perf_counter()
        kept = least_plan(
            profile,
            arrays,
            rivals(profile, arrays, unit, nearest=making.method is MethodName.NEAREST),
            limits.constraints,
            inputs,
            tolerance,
            self.finalizer(inputs, making),
            self.reporter,
            time_limit_s,
        )
        self._took("search", began)
        how = Reconstruction(method=making.method or MethodName.GPTQ, data=inputs.calibration.name)
        plan = kept.plan.model_copy(update={"reconstruction": how})
        kept = replace(kept, plan=making.state(plan))
        return Judged(kept, (kept,), None)

    def profiles_of(self, plan: Plan, path: Path | None) -> list[Profile]:
        """The profile a plan was solved from, at `path` or else in the folder; empty where it is not there.

        In the folder it need not be, and is not looked for where the plan was edited by hand: what a person
        chose gives way to nothing.

        Raises
        ------
        InputError
            The profile at `path` is not the plan's.
        """
        if path is None:
            found = own_profile(self.folder, plan) if plan.certificate is not None else None
            return [found[0]] if found is not None else []
        profile, _ = read_profile(path)
        if profile.fingerprint.text() == plan.profile:
            return [profile]
        raise InputError(
            f"the plan was solved from profile {plan.profile}, but {path} is {profile.fingerprint.text()}; "
            "give the plan's own profile, or none"
        )

    def finalize(
        self, inputs: Inputs, profiles: Sequence[Profile], plans: list[Plan], making: Making
    ) -> Judged:
        """Integer weights of the best of the plans by loss measured on the calibration data.

        Where a profile is at hand, the best uniform plan competes too; plans of several profiles say what
        came of those of each.
        """
        began = time.perf_counter()
        uniform = best_uniform_plan(profiles[-1], plans[-1]) if profiles else None
        judged = contest(
            inputs.network,
            plans,
            uniform,
            inputs.calibration,
            making.method,
            making.named,
            making.carrier(inputs.network, inputs.calibration, self.folder, self.reporter),
            on_compared=lambda compared: self.reporter.say(compared_line(compared)),
        )
        self._took("finalize", began)
        plan = making.state(judged.kept.plan)
        if len(profiles) > 1 and plan.reconstruction is not None:
            # Plans that GPTQ left far behind were not finalized by a dearer method.
            losses = {
                profile.after: [each.quality.loss for each in judged.plans if each.plan.profile == name]
                for profile in profiles
                for name in (profile.fingerprint.text(),)
            }
            least = {after: min(found) for after, found in losses.items() if found}
            how = plan.reconstruction.model_copy(update={"scores": least})
            plan = plan.model_copy(update={"reconstruction": how})
        return replace(judged, kept=replace(judged.kept, plan=plan))

    def finalizer(self, inputs: Inputs, making: Making) -> Callable[[Plan], Finalized]:
        """What turns one plan of many into integer weights, with a bar."""
        method = making.of_many()
        carry_out = making.carrier(inputs.network, inputs.calibration, self.folder, self.reporter)
        return lambda plan: carry_out(method, plan)

    def save(self, inputs: Inputs, plan: Plan, finalized: Finalized) -> None:
        """Write weights and program, and the plan last: a folder with a plan is complete.

        Steps of activations that a method learned are with its weights; the plan keeps those it began at.
        """
        began = time.perf_counter()
        save_network(self.folder.path, inputs.network, plan, finalized)
        write_plan(self.folder.plan, plan)
        self.folder.drop_weight_parts()
        self._took("save", began)

    def judge_held_out(
        self, inputs: Inputs, kept: Finalized, others: Sequence[Finalized] = ()
    ) -> list[Measured | None]:
        """Quality on the held-out data, see `measure_competing`; empty where there is none."""
        if inputs.held_out is None:
            return []
        began = time.perf_counter()
        qualities = measure_competing(inputs.network, kept, others, inputs.held_out)
        self._took("evaluate", began)
        return qualities

    def evaluate(self, inputs: Inputs, run: Path) -> tuple[Plan, Measured]:
        """The plan of a finished run, and its quality against the float network on the held-out data.

        Raises
        ------
        InputError
            The run is not complete, its weights are not of its plan, or it belongs to another network.
        """
        packed = read_run(run)
        constraints = packed.plan.constraints
        network = inputs.without(constraints.exclude if constraints else ()).network
        check_layers(packed.plan, layer_shapes(network))
        finalized = replace(packed.finalized, biases=packed.rest)
        data = inputs.held_out or inputs.calibration
        drop = packed.plan.measured.drop if packed.plan.measured else None
        kind = drop.kind if drop is not None and can_measure(drop.kind, data) else None
        return packed.plan, measure_finalized(network, finalized, data, drop=kind)

    def edited(self, plan: Plan, network: Network) -> Plan:
        """A plan as read, with a person's edits accepted.

        Raises
        ------
        InputError
            The plan is not one of this network, or an edit that cannot be.
        """
        check_layers(plan, layer_shapes(network))
        written, ledger = plan.complexity, ledger_of(network)
        accepted = accept_edits(plan)
        check_values(plan, network)
        size_bits = sum(layer.size_bits for layer in accepted.layers) + ledger.fixed_bits
        if (written.weight_count, written.fixed_bits, written.float_bits) != ledger or (
            accepted.complexity.size_bits != size_bits
        ):
            raise InputError(
                f"the plan's complexity is counted, not chosen: for this network it has weight_count "
                f"{ledger.weight_count}, fixed_bits {ledger.fixed_bits}, float_bits {ledger.float_bits} and, "
                f"with these layers, size_bits {size_bits}; write these numbers into the plan, or solve again"
            )
        if accepted is not plan:
            self.reporter.warn(
                "the plan was edited by hand: its certificate and predicted losses are dropped"
            )
        return accepted

    def _took(self, stage: str, began: float) -> None:
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - began, 3)


def own_profile(folder: RunFolder, plan: Plan) -> tuple[Profile, ProfileArrays | None] | None:
    """The profile in the folder that a plan was solved from; None where none is.

    Raises
    ------
    InputError
        None of those that can be read is, and there is one that cannot.
    """
    wrong = None
    for place in folder.profiles():
        try:
            profile, arrays = read_profile(place)
        except InputError as error:
            wrong = wrong or error
            continue
        if profile.fingerprint.text() == plan.profile:
            return profile, arrays
    if wrong is not None:
        raise wrong
    return None


def _fingerprint(inputs: Inputs, scoring: Scoring) -> Fingerprint:
    """What a profile of these inputs is known by."""
    return profile_fingerprint(
        inputs.network,
        inputs.calibration,
        scoring.options,
        scoring.quantizer,
        scoring.method,
        scoring.settings,
        scoring.after,
        scoring.activations,
    )

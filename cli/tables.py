"""Tables for people, made of plans and profiles."""

from __future__ import annotations

from fractions import Fraction
from math import prod

from rich.table import Table

from ..allocator import (
    ACT_MEMORY,
    SIZE,
    LayerPlan,
    Measured,
    Plan,
    Reconstruction,
    Spending,
    parse_budget,
    parse_tolerance,
    parse_unit,
    spendings,
)
from ..network import Network
from ..quantizer import parse_activation
from ..reconstruct import PRESETS, MethodName, PresetName
from ..sensitivity import ActivationProfile, Profile, SiteProfile, certifies_activations

__all__ = [
    "activation_table",
    "float_lines",
    "massive_line",
    "plan_lines",
    "plan_table",
    "profile_table",
    "quality_table",
    "samples_of",
    "unused_line",
]


MOST_NAMED = 12
FEW_NAMED = 3
LEAST_SHARE = 0.01
"""Of all matrices and filters: fewer that stay float are not worth a line."""
PRICED_SHARE = Fraction(1, 1000)
"""Of a budget: what a price is quoted for. A price is a slope, which far from the plan promises too much."""


def plan_table(plan: Plan) -> Table:
    """How every layer is stored."""
    preset = f", preset {plan.preset}" if plan.preset else ""
    table = Table(title=f"plan {plan.aim()}, chosen per {plan.unit}{preset}")
    table.add_column("layer", overflow="fold")
    table.add_column("weights", justify="right")
    strips = "strips of inputs" if parse_unit(plan.unit).cut else "channels"
    table.add_column(f"stored as (share of {strips})")
    table.add_column("bits per weight", justify="right")
    if plan.activations:
        table.add_column("reads")
    table.add_column("predicted loss", justify="right")
    for layer in plan.layers:
        table.add_row(
            layer.name,
            f"{prod(layer.shape):,}",
            _stored_as(layer),
            f"{layer.mean_bits:.2f}",
            *([_reads(plan, layer)] if plan.activations else []),
            "-" if layer.predicted_loss is None else f"{layer.predicted_loss:.2e}",
        )
    return table


def _reads(plan: Plan, layer: LayerPlan) -> str:
    """Options of the values that a layer reads."""
    return ", ".join(dict.fromkeys(value.option for value in plan.activations if layer.name in value.readers))


def quality_table(plan: Plan, uniform: Plan | None, uniform_quality: Measured | None) -> Table:
    """What the plan is worth beside the float network and the best uniform plan."""
    measured = plan.measured
    on = f" on {measured.data} ({samples_of(measured)})" if measured else ""
    table = Table(title=f"quality{on}")
    tokens = measured is not None and measured.perplexity is not None
    names = ("network", "bits per weight", "size", "of float", "KL to float", "accuracy", "perplexity")
    for name in names if tokens else names[:-1]:
        whole = name in ("accuracy", "perplexity")
        table.add_column(name, justify="left" if name == "network" else "right", no_wrap=whole)
    complexity = plan.complexity
    float_accuracy = measured.float_accuracy if measured else None
    float_bits = complexity.float_bits
    # What the checkpoint had per number, all of which are 32-bit floats where they stay float.
    per_number = float_bits / (complexity.weight_count + complexity.fixed_bits / 32)
    row = ["float", f"{per_number:.2f}", _size(float_bits), "100.0%", "0", _percent(float_accuracy)]
    table.add_row(*row, *([_perplexity(measured.float_perplexity)] if measured and tokens else []))
    if uniform is not None:
        table.add_row(*_row(f"best uniform, {uniform.uniform_name()}", uniform, uniform_quality))
    table.add_row(*_row("this plan", plan, measured), style="bold")
    return table


def plan_lines(plan: Plan) -> list[str]:
    """What is proven and what the guard did, a sentence each."""
    lines = []
    certificate = plan.certificate
    if plan.preset in PRESETS:
        lines.append(f"preset {plan.preset}: {PRESETS[PresetName(plan.preset)].summary}")
    if certificate is None and plan.profile.startswith("none"):
        lines.append("no certificate: the points were chosen by output errors, not solved for")
    elif certificate is None:
        lines.append("no certificate: the plan was edited by hand or kept by measurement")
    else:
        lines.append(
            f"{certificate.status}: predicted loss {certificate.objective:.4g}, no plan below "
            f"{certificate.bound:.4g} (gap {100 * certificate.relative_gap:.2g}%)"
        )
        if certificate.shrinkage is not None:
            lines.append(
                f"these losses count {100 * certificate.shrinkage:.0f}% of the interactions between units"
            )
        limited = {name: each for each in spendings(plan) for name in (each.quantity, each.budget)}
        prices = certificate.shadow_prices.items()
        lines.extend(_price_line(limited[name], name, price) for name, price in prices if name in limited)
    lines.extend(_activation_lines(plan))
    lines.extend(_cost_line(plan, name, cost) for name, cost in plan.complexity.costs.items())
    if plan.reconstruction is not None:
        lines.append(_method_line(plan.reconstruction))
        if plan.reconstruction.scores:
            found = ", ".join(f"{after} {loss:.3g}" for after, loss in plan.reconstruction.scores.items())
            lines.append(f"plans by scores of several kinds competed; least loss by kind: {found}")
    if plan.refinement is not None:
        moves = plan.refinement
        lines.append(
            f"refined: {moves.accepted} of {moves.evaluations} moves measured for this plan bettered it, "
            f"loss on {moves.data} {moves.start_loss:.4g} before, {moves.loss:.4g} after"
        )
    guard = plan.guard
    if guard is not None and guard.kept == "uniform":
        lines.append(
            f"the uniform plan {guard.option} is kept: on {guard.data} it measured "
            f"{guard.uniform_loss:.4g}, the solved plan {guard.plan_loss:.4g}"
        )
    return lines + (_search_lines(plan) if plan.search is not None else [])


def _activation_lines(plan: Plan) -> list[str]:
    """What activations add to the predicted loss, and whether the certificate is about them too.

    Of an edited plan nothing is predicted: a grid may be another than the one that was scored.
    """
    if not plan.activations:
        return []
    line = f"activations: {len(plan.activations)} values in low bits"
    if plan.predicted_loss is None:
        return [line]
    loss = sum(value.chosen.predicted_loss for value in plan.activations)
    line = f"{line} are predicted to lose {loss:.4g}"
    if plan.certificate is None:
        return [line]
    counted = "which the certificate counts" if certifies_activations(plan) else "beside the certificate"
    return [f"{line}, {counted}"]


def _method_line(how: Reconstruction) -> str:
    """How the weights were found, and why so."""
    chosen = ", ".join(f"{name} {value}" for name, value in how.choices.items())
    method = f"{how.method} ({chosen.replace('_', ' ')})" if chosen else how.method
    by = " and then ".join((method, *how.corrections))
    if not how.compared:
        return f"weights by {by}"
    losses = ", ".join(
        f"{name} {'about ' if name == MethodName.BRECQ else ''}{loss:.3g}"
        for name, loss in how.compared.items()
    )
    return f"weights by {by}, the cheapest near the best; loss on {how.data}: {losses}"


def _price_line(spending: Spending, name: str, price: float) -> str:
    """What a little more of a budget is worth; a budget is called by its quantity, or by its text."""
    if not price:
        return f"the budget of {name} does not bind"
    quantity = spending.quantity
    of = "" if name == quantity else f" in {name}"
    more = "bits for the weights" if quantity == SIZE else quantity
    step = spending.limit * PRICED_SHARE
    worth = f"{float(PRICED_SHARE):.1%} more {more}{of} would save about {price * step:.2g} of predicted loss"
    left = spending.limit - spending.taken
    if left < step:
        return worth
    one = {SIZE: 8192, ACT_MEMORY: 1024}.get(quantity)
    amount = f"{float(left / one):.4g} KiB" if one else f"{float(left):.4g}"
    return f"{amount} of the budget {spending.budget} are left, as options are whole; beyond these, {worth}"


def _cost_line(plan: Plan, quantity: str, cost: float) -> str:
    """A further quantity, beside what limits it."""
    limits = [text for text in plan.budgets if parse_budget(text).quantity == quantity]
    amount = f"{cost / 1024:.6g}KiB" if quantity == ACT_MEMORY else f"{cost:.6g}"
    return f"{quantity} {amount}, {f'within {limits[0]}' if limits else 'which no budget limits'}"


def _search_lines(plan: Plan) -> list[str]:
    """What a search for the least size found, and how sure it is."""
    search, complexity = plan.search, plan.complexity
    assert search is not None
    bits = complexity.size_bits - complexity.fixed_bits
    found = next(trial for trial in search.trials if trial.within and trial.weight_bits == bits)
    limit, count = parse_tolerance(search.limit), len(search.trials)
    lines = [
        f"the least size found within a drop of {search.limit}: {found.drop.described()} on {search.data} "
        f"({search.samples:,} samples), {count} evaluation{'s' * (count > 1)}; {search.outcome}"
    ]
    if plan.measured is not None and plan.measured.data == search.data:
        lines.append(
            "these samples found the plan and judge it, so the drop is slightly optimistic; judge it on "
            "others with allocate evaluate"
        )
    if found.drop.high > limit.value:
        lines.append(
            f"the interval reaches beyond {search.limit}: whether the true drop is within it cannot be told "
            f"from {search.samples:,} samples"
        )
    return lines


def profile_table(profile: Profile) -> Table:
    """Loss of every option of every layer."""
    after = f" by {profile.after.upper()}" if profile.after in ("gptq", "brecq") else ""
    after = " by AdaQuant" if profile.after == "adaquant" else after
    table = Table(
        title=f"KL to float when one layer is quantized{after}, {profile.method}, {profile.samples} samples"
    )
    table.add_column("layer", overflow="fold")
    for option in profile.options:
        table.add_column(option, justify="right")
    for layer in profile.layers:
        scores = {score.option: f"{score.loss:.1e}" for score in layer.scores}
        table.add_row(layer.name, *(scores.get(option, "-") for option in profile.options))
    return table


def activation_table(found: ActivationProfile) -> Table:
    """Loss of every option of every value, and who reads it."""
    table = Table(title=f"KL to float when one value is stored in low bits, {found.method}")
    table.add_column("value", overflow="fold")
    table.add_column("read by", overflow="fold")
    for option in found.options:
        table.add_column(option, justify="right")
    for site in found.sites:
        scores = {score.option: f"{score.loss:.1e}" for score in site.scores}
        readers = ", ".join(site.readers) or "attention"
        table.add_row(site.name, readers, *(scores.get(option, "-") for option in found.options))
    return table


def massive_line(site: SiteProfile, found: ActivationProfile, by_token: bool) -> str:
    """That a few numbers are most of a value, and what would hold it where every token may have its range."""
    readers = ", ".join(site.readers) or "attention"
    line = f"a few massive numbers are most of {site.name}, read by {readers}"
    if not by_token or any(parse_activation(option).dynamic for option in found.options):
        return line
    bits, loss = max((parse_activation(score.option).bits, score.loss) for score in site.scores)
    return (
        f"{line}: with one range for all of them it costs {loss:.2g} nats in {bits} bits; name a{bits}d in "
        "--options too, a range of every token's own"
    )


def _stored_as(layer: LayerPlan) -> str:
    shares = layer.option_shares()
    if len(shares) == 1:
        return next(iter(shares))
    ordered = sorted(shares.items())
    return ", ".join(f"{option} {100 * share:.0f}%" for option, share in ordered)


def unused_line(profile: Profile) -> str:
    """What the calibration data leaves untouched."""
    strips = {layer.name: layer.strips for layer in profile.layers}
    whole = [name for name, count in profile.unused.items() if count == strips[name]]
    parts = [
        f"{count:,} of {strips[name]:,} rows of {name}"
        for name, count in profile.unused.items()
        if name not in whole
    ]
    named = ", ".join([*whole[:MOST_NAMED], *parts])
    more = f" and {len(whole) - MOST_NAMED} more layers" if len(whole) > MOST_NAMED else ""
    return (
        f"no calibration sample reaches {named}{more}: they are scored as if used about once; give more "
        "samples to know"
    )


def float_lines(network: Network) -> list[str]:
    """What is no layer and stays float, the largest first, in one line or, where it is little, none."""
    sizes = {name: network.outlines[name].numel() for name in network.skipped}
    count = sum(sizes.values())
    share = count / (count + sum(layer.channels * layer.fan_in for layer in network.layers))
    if share < LEAST_SHARE:
        return []
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:FEW_NAMED]
    named = [f"{name} ({network.skipped[name]})" for name in largest]
    more = ", ..." if len(sizes) > FEW_NAMED else ""
    return [f"stay float: {count:,} numbers, {share:.0%}: {', '.join(named)}{more}"]


def samples_of(measured: Measured) -> str:
    """How many samples a measurement is of, and for token ids of how many tokens."""
    tokens = f" of {measured.context:,} tokens" if measured.context is not None else ""
    return f"{measured.samples:,} samples{tokens}"


def _row(name: str, plan: Plan, quality: Measured | None) -> tuple[str, ...]:
    complexity = plan.complexity
    per_token = quality is not None and quality.perplexity is not None
    return (
        name,
        f"{complexity.average_bits:.3f}",
        _size(complexity.size_bits),
        f"{100 * complexity.size_bits / complexity.float_bits:.1f}%",
        f"{quality.loss:.3g} ± {quality.standard_error:.1g}" if quality else "-",
        _percent(quality.accuracy if quality else None),
        *([_perplexity(quality.perplexity)] if quality and per_token else []),
    )


def _perplexity(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _size(bits: int) -> str:
    size_bytes = bits / 8
    return f"{size_bytes / 2**20:.2f} MiB" if size_bytes >= 2**20 else f"{size_bytes / 1024:.1f} KiB"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}%"

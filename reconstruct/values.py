"""The values that a plan stores in low bits, as the network runs with them."""

from __future__ import annotations

from torch import Tensor

from ..allocator import ActivationPlan, Plan, assignment_digest
from ..errors import InputError
from ..network import Network, Site, dynamic_activation, find_sites, static_activation

__all__ = ["check_values", "plan_values", "with_values"]


def plan_values(plan: Plan) -> dict[str, Tensor]:
    """What quantizes every value of the plan, by its name; see `activation_key`."""
    return {value.name: _entry(value) for value in plan.activations}


def with_values(plan: Plan, values: dict[str, Tensor]) -> Plan:
    """The plan with steps and zero points as a method found them, under the options that it chose."""
    if not plan.activations:
        return plan
    found = []
    for value in plan.activations:
        step, zero = value.chosen.step, value.chosen.zero_point
        entry = values.get(value.name)
        if entry is not None and len(entry) > 1:
            step, zero = float(entry[0]), int(entry[1])
        chosen = value.chosen.model_copy(update={"step": step, "zero_point": zero})
        choices = value.choices | {value.option: chosen}
        found.append(value.model_copy(update={"choices": choices}))
    digest = assignment_digest(plan.layers, found)
    return plan.model_copy(update={"activations": tuple(found), "assignment": digest})


def check_values(plan: Plan, network: Network) -> None:
    """Refuse a plan whose values are not those of the network.

    Raises
    ------
    InputError
        A value that the network does not have, that other layers read, of another size or with other work,
        with a range or a zero point that it cannot have, or that a layer reads and the plan leaves out.
    """
    if not plan.activations:
        return
    planned = {value.name: value for value in plan.activations}
    sites = {site.name: site for site in find_sites(network, attention=True)}
    # Where products are not among the values, those that layers read too may have ranges of every token.
    by_token = {site.name for site in find_sites(network) if site.by_token}
    needed = {
        name: {reader.layer: reader.macs for reader in site.readers}
        for name, site in sites.items()
        if site.readers
    }
    for name, value in planned.items():
        readers = needed.get(name, {})
        if name not in sites or set(value.readers) != set(readers):
            has = f"layers {', '.join(sorted(readers))} read" if readers else "no layer reads"
            raise InputError(
                f"the plan stores the value '{name}' for {', '.join(value.readers) or 'products alone'}, but "
                f"{has} it in this network; use the network that the plan was made for"
            )
        if value.elements != sites[name].elements or value.readers != readers:
            raise InputError(
                f"the elements and readers of the value '{name}' are counted, not chosen: in this network it "
                f"has {sites[name].elements} elements and the readers {readers}; write these numbers into "
                "the plan, or solve again"
            )
        _check_grid(value, sites[name], by_token=name in by_token)
    for name in needed:
        if name not in planned:
            raise InputError(
                f"the plan has no entry for the value '{name}', which {', '.join(sorted(needed[name]))} "
                "reads; every value that a layer reads needs one where activations are stored in low bits"
            )


def _check_grid(value: ActivationPlan, site: Site, *, by_token: bool) -> None:
    """Refuse a range that the solver would not give to a value."""
    if value.chosen.step is None and not by_token:
        raise InputError(
            f"value '{value.name}' has option {value.option}, and cannot have ranges of every token's own, "
            "since not all its readers are linear layers that read it as it is; choose one with one range"
        )
    if site.nonnegative and value.chosen.zero_point:
        raise InputError(
            f"value '{value.name}' has the zero point {value.chosen.zero_point} under option {value.option}, "
            "but is never negative in this network; its zero point is 0"
        )


def _entry(value: ActivationPlan) -> Tensor:
    chosen = value.chosen
    levels = 2**chosen.bits - 1
    if chosen.step is None or chosen.zero_point is None:
        return dynamic_activation(levels)
    return static_activation(chosen.step, chosen.zero_point, levels)

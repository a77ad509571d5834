"""Plans that a person edited: sizes are counted again, and the proof no longer holds."""

from __future__ import annotations

from math import prod

from ..allocator import (
    BOPS,
    FLOAT_OPTION,
    SIZE,
    Complexity,
    Constraints,
    LayerPlan,
    Plan,
    Spending,
    assignment_digest,
    check_rules,
    check_value_rules,
    converted,
    excesses,
    further_costs,
    layer_activations,
    parse_budget,
    parse_unit,
)
from ..errors import InputError
from ..quantizer import (
    Quantizer,
    activation_part,
    option_names,
    parse_activation,
    parse_option,
    stored_bits,
    weight_part,
)

__all__ = ["accept_edits"]


def accept_edits(plan: Plan) -> Plan:
    """The plan as it stands, or, where it was edited, with sizes and complexity counted again.

    An edited plan has no certificate, predicted loss, guard or measurement any more.

    Raises
    ------
    InputError
        A quantizer or option that does not exist, an option that is not in the plan's option set, or of other
        bits or another kind of range than its name says, or an edit that breaks one of the plan's own
        constraints or leads over one of its budgets; says which, and by how much.
    """
    # Refuses one that does not exist.
    Quantizer.from_settings(plan.quantizer)
    layers = tuple(_counted(plan, layer) for layer in plan.layers)
    _check_names(plan)
    accepted = plan if _is_untouched(plan, layers) else _edited(_with_bit_operations(plan), layers)
    rules = converted(accepted.constraints or Constraints(), weight_part)
    check_rules(accepted.model_copy(update={"constraints": rules}), option_names)
    check_value_rules(accepted, activation_part)
    for excess in excesses(accepted):
        raise InputError(_described(accepted, excess))
    return accepted


def _is_untouched(plan: Plan, layers: tuple[LayerPlan, ...]) -> bool:
    """Whether the plan is as it was solved, given its layers counted again."""
    if plan.layers != layers or plan.assignment != assignment_digest(layers, plan.activations):
        return False
    if plan.certificate is not None and plan.certificate.problem != plan.problem():
        return False
    return plan.complexity == _complexity(plan)


def _complexity(plan: Plan) -> Complexity:
    """What the plan weighs, by its layers and tables."""
    weights = sum(layer.size_bits for layer in plan.layers)
    return plan.complexity.model_copy(
        update={
            "size_bits": weights + plan.complexity.fixed_bits,
            "average_bits": weights / plan.complexity.weight_count,
            "costs": {name: float(cost) for name, cost in further_costs(plan).items()},
        }
    )


def _edited(plan: Plan, layers: tuple[LayerPlan, ...]) -> Plan:
    # What was known of the solved choice says nothing about another.
    unknown = {"predicted_loss": None, "confidence": None, "regret": None}
    layers = tuple(layer.model_copy(update=unknown) for layer in layers)
    edited = plan.model_copy(
        update={
            "layers": layers,
            "certificate": None,
            "predicted_loss": None,
            "guard": None,
            "refinement": None,
            "measured": None,
            "search": None,
            "reconstruction": None,
            "assignment": assignment_digest(layers, plan.activations),
        }
    )
    return edited.model_copy(update={"complexity": _complexity(edited)})


def _with_bit_operations(plan: Plan) -> Plan:
    """The plan with its table of bit operations counted at the bits that its values now have."""
    if not plan.activations or BOPS not in (plan.tables or {}):
        return plan
    entering = layer_activations(plan.activations)
    assert plan.tables is not None
    costs = {
        layer: options
        if FLOAT_OPTION in options
        else {
            text: float(entering.get(layer, 0) * parse_option(text).bits * parse_option(text).points)
            for text in options
        }
        for layer, options in plan.tables[BOPS].items()
    }
    return plan.model_copy(update={"tables": plan.tables | {BOPS: costs}})


def _check_names(plan: Plan) -> None:
    """Refuse values whose options do not have the bits, or the kind of range, that they are named after."""
    for value in plan.activations:
        for option, choice in value.choices.items():
            named = parse_activation(option)
            if choice.bits != named.bits:
                raise InputError(
                    f"value '{value.name}' has {choice.bits} bits under option {option}; an option has the "
                    f"bits that it is named after, here {named.bits}"
                )
            if (choice.step is None) != named.dynamic:
                kind = "no step, as every token finds its own" if named.dynamic else "a step and a zero point"
                raise InputError(f"value '{value.name}', option {option}: it has {kind}; correct it")


def _described(plan: Plan, excess: Spending) -> str:
    over = excess.taken - excess.limit
    if excess.quantity == SIZE:
        taken = (
            f"takes {int(excess.taken):,} bits ({plan.complexity.average_bits:.3f} per weight), {int(over):,}"
        )
        remedy = "take bits from a layer"
    else:
        form = parse_budget(excess.budget).total_form()
        taken = f"has {excess.quantity} {form.text(excess.taken)}, {form.text(over)}"
        remedy = "choose cheaper options"
    return (
        f"the edited plan {taken} more than its budget {excess.budget} allows; {remedy}, or raise the plan's "
        "budget"
    )


def _counted(plan: Plan, layer: LayerPlan) -> LayerPlan:
    chosen = layer.strip_options()
    unknown = sorted(set(chosen) - set(plan.options))
    if unknown:
        raise InputError(
            f"layer '{layer.name}' has option {unknown[0]}, which is not in the plan's option set "
            f"({', '.join(plan.options)}); choose one of these, or add it to the set"
        )
    cut = layer.layer_cut()
    size_bits = stored_bits(
        [parse_option(text) for text in chosen],
        cut.row_weights,
        len(plan.options),
        tile=parse_unit(plan.unit).tile,
        rows_per_strip=cut.rows_per_strip,
    )
    mean_bits = size_bits / prod(layer.shape)
    return layer.model_copy(update={"size_bits": size_bits, "mean_bits": mean_bits})

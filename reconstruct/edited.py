"""Plans that a person edited: sizes are counted again, and the proof no longer holds."""

from __future__ import annotations

from math import prod

from ..allocator import LayerPlan, Plan, assignment_digest, parse_budget
from ..errors import InputError
from ..quantizer import parse_option, stored_bits

__all__ = ["accept_edits"]


def accept_edits(plan: Plan) -> Plan:
    """The plan as it stands, or, where its options were edited, with sizes and complexity counted again.

    An edited plan has no certificate, guard or measurement any more. Its predicted losses are those of
    the unedited plan's scores only where the layer was not touched, so the sum is kept as it was written.

    Raises
    ------
    InputError
        An option that does not exist or is not in the plan's option set, or an edit that leads over the
        plan's own budget; says by how much.
    """
    layers = tuple(_counted(plan, layer) for layer in plan.layers)
    if assignment_digest(layers) == plan.assignment and layers == plan.layers:
        return plan
    weights = sum(layer.size_bits for layer in layers)
    complexity = plan.complexity.model_copy(
        update={
            "size_bits": weights + plan.complexity.fixed_bits,
            "average_bits": weights / plan.complexity.weight_count,
        }
    )
    limit = parse_budget(plan.budget).bits(
        complexity.weight_count, complexity.fixed_bits, complexity.float_bits
    )
    if weights > limit:
        raise InputError(
            f"the edited plan takes {weights:,} bits ({complexity.average_bits:.3f} per weight), "
            f"{weights - limit:,} more than its budget {plan.budget} allows; take bits from a layer, or "
            "raise the plan's budget"
        )
    return plan.model_copy(
        update={
            "layers": layers,
            "complexity": complexity,
            "certificate": None,
            "guard": None,
            "measured": None,
            "assignment": assignment_digest(layers),
        }
    )


def _counted(plan: Plan, layer: LayerPlan) -> LayerPlan:
    chosen = layer.channel_options()
    unknown = sorted(set(chosen) - set(plan.options))
    if unknown:
        raise InputError(
            f"layer '{layer.name}' has option {unknown[0]}, which is not in the plan's option set "
            f"({', '.join(plan.options)}); choose one of these, or add it to the set"
        )
    fan_in = prod(layer.shape[1:])
    size_bits = stored_bits([parse_option(text) for text in chosen], fan_in, len(plan.options))
    mean_bits = size_bits / (layer.shape[0] * fan_in)
    if size_bits == layer.size_bits:
        return layer
    return layer.model_copy(update={"size_bits": size_bits, "mean_bits": mean_bits})

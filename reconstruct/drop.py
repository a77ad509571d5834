"""The drop of a quality that is limited, from paired samples to the document."""

from __future__ import annotations

from ..allocator import Drop, DropKind
from ..errors import InputError
from ..network import Data, SampleQuality, accuracy_drop, mean_drop, perplexity_rise

__all__ = ["can_measure", "measured_drop"]


def can_measure(kind: DropKind, data: Data) -> bool:
    """Whether data has what a drop needs: labels for accuracy, a label per token for perplexity."""
    if kind is DropKind.KL:
        return True
    return data.labels is not None and (kind is DropKind.ACCURACY or data.labels.ndim > 1)


def measured_drop(kind: DropKind, samples: SampleQuality) -> Drop:
    """How much worse than the float network, with its paired 95% interval.

    Parameters
    ----------
    samples : SampleQuality
        From `measure_samples` on data for which `can_measure` holds.

    Raises
    ------
    InputError
        The samples have no labels.
    """
    if kind is DropKind.KL:
        found = mean_drop(samples.loss)
        # KL is never below 0, whatever the normal interval says.
        found = found._replace(low=min(max(found.low, 0.0), found.value))
    elif samples.right is None or samples.float_right is None:
        raise InputError(f"a drop in {kind} needs labels; give labelled data, or limit the KL instead")
    elif kind is DropKind.ACCURACY:
        found = accuracy_drop(samples.right, samples.float_right)
    else:
        assert samples.cross_entropy is not None
        assert samples.float_cross_entropy is not None
        found = perplexity_rise(samples.cross_entropy, samples.float_cross_entropy)
    return Drop(kind=kind, value=found.value, low=found.low, high=found.high)

"""An order of samples of which every part is like the whole."""

from __future__ import annotations

__all__ = ["spread_order"]

# A multiple of the golden ratio falls into the largest gaps that the multiples before it have left.
GOLDEN = 0.6180339887498949


def spread_order(count: int) -> list[int]:
    """Where samples stand, in an order in which the first, and any others in a row, are spread over all.

    Sample k of the order is at the rank of ``k phi mod 1`` among all of them, with phi the golden ratio: data
    that is sorted, by class most often, is not learned from at one end and judged at the other. As random
    orders do, but with no luck in it: of n samples in a row at least one is among any ``2 count / n`` that
    are neighbours in the data.

    References
    ----------
    Sós, "On the distribution mod 1 of the sequence n alpha", 1958: the gaps have three lengths at most.
    """
    sorted_by_place = sorted(range(count), key=lambda k: k * GOLDEN % 1.0)
    order = [0] * count
    for rank, k in enumerate(sorted_by_place):
        order[k] = rank
    return order

"""Which part of the calibration data a method learns from, and which part judges what it learned."""

from __future__ import annotations

from ..errors import InputError

__all__ = ["check_held_out", "learned_and_judged"]


def check_held_out(method: str, share: float) -> None:
    """Refuse a share of held-out data that is none."""
    if not 0 < share < 1:
        raise InputError(
            f"{method} holds out {share} of the calibration data; it is a share between 0 and 1, such as "
            "0.0625"
        )


def learned_and_judged(samples: int, share: float) -> tuple[range, range]:
    """The first samples, which are learned from, and the last `share` of them, which judge.

    Of several samples at least one is on either side; a single one has to do for both.
    """
    learned = max(1, samples - max(1, round(share * samples)))
    return range(learned), range(learned, samples) if learned < samples else range(samples)

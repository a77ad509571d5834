"""Which strips have which option, written for people: ``{"w3": "0-4,9", "w5": "5-8"}``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["strip_options", "strip_ranges"]

RANGE_FORM = re.compile(r"\s*(\d{1,12})\s*(?:-\s*(\d{1,12})\s*)?")


def strip_ranges(options: Sequence[str]) -> dict[str, str]:
    """Index ranges of every option that occurs, options in their natural order.

    Parameters
    ----------
    options : sequence of str
        Option of each strip.

    Returns
    -------
    dict of str to str
        Option -> ranges such as ``"0-4,9"``: inclusive, ascending, as few as possible.
    """
    runs: dict[str, list[str]] = {}
    start = 0
    for strip in range(1, len(options) + 1):
        if strip == len(options) or options[strip] != options[start]:
            last = strip - 1
            runs.setdefault(options[start], []).append(str(start) if last == start else f"{start}-{last}")
            start = strip
    return {option: ",".join(runs[option]) for option in sorted(runs, key=_natural_order)}


def strip_options(ranges: Mapping[str, str], strips: int, what: str = "channel") -> tuple[str, ...]:
    """Option of every strip; the inverse of `strip_ranges`.

    Parameters
    ----------
    strips : int
        Strips of the layer.
    what : str
        What messages call a strip.

    Raises
    ------
    ValueError
        A text that is not ranges, a strip that does not exist, has two options or has none.
    """
    found: list[str | None] = [None] * strips
    for option, text in ranges.items():
        for part in text.split(","):
            match = RANGE_FORM.fullmatch(part)
            if match is None:
                raise ValueError(f"'{text}' are not {what}s of option {option}; write ranges such as 0-4,9")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ValueError(f"the range {first}-{last} of option {option} runs backwards")
            if last >= strips:
                raise ValueError(
                    f"option {option} names {what} {last}, but the {what}s are 0 to {strips - 1}"
                )
            for strip in range(first, last + 1):
                if found[strip] is not None:
                    raise ValueError(f"{what} {strip} has two options, {found[strip]} and {option}")
                found[strip] = option
    if None in found:
        raise ValueError(f"{what} {found.index(None)} has no option; name every {what} once")
    return tuple(option for option in found if option is not None)


def _natural_order(text: str) -> list[tuple[bool, int, str]]:
    # Numbers compare as numbers, so that w10 follows w2.
    parts = re.findall(r"\d+|\D+", text)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]

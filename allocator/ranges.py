"""Which channels have which option, written for people: ``{"w3": "0-4,9", "w5": "5-8"}``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

__all__ = ["channel_options", "channel_ranges"]

RANGE_FORM = re.compile(r"\s*(\d{1,12})\s*(?:-\s*(\d{1,12})\s*)?")


def channel_ranges(options: Sequence[str]) -> dict[str, str]:
    """Index ranges of every option that occurs, options in their natural order.

    Parameters
    ----------
    options : sequence of str
        Option of each channel.

    Returns
    -------
    dict of str to str
        Option -> ranges such as ``"0-4,9"``: inclusive, ascending, as few as possible.
    """
    runs: dict[str, list[str]] = {}
    start = 0
    for channel in range(1, len(options) + 1):
        if channel == len(options) or options[channel] != options[start]:
            last = channel - 1
            runs.setdefault(options[start], []).append(str(start) if last == start else f"{start}-{last}")
            start = channel
    return {option: ",".join(runs[option]) for option in sorted(runs, key=_natural_order)}


def channel_options(ranges: Mapping[str, str], channels: int) -> tuple[str, ...]:
    """Option of every channel; the inverse of `channel_ranges`.

    Raises
    ------
    ValueError
        A text that is not ranges, a channel that does not exist, has two options or has none.
    """
    found: list[str | None] = [None] * channels
    for option, text in ranges.items():
        for part in text.split(","):
            match = RANGE_FORM.fullmatch(part)
            if match is None:
                raise ValueError(f"'{text}' are not channels of option {option}; write ranges such as 0-4,9")
            first, last = int(match[1]), int(match[2] or match[1])
            if last < first:
                raise ValueError(f"the range {first}-{last} of option {option} runs backwards")
            if last >= channels:
                raise ValueError(
                    f"option {option} names channel {last}, but the channels are 0 to {channels - 1}"
                )
            for channel in range(first, last + 1):
                if found[channel] is not None:
                    raise ValueError(f"channel {channel} has two options, {found[channel]} and {option}")
                found[channel] = option
    if None in found:
        raise ValueError(f"channel {found.index(None)} has no option; name every channel once")
    return tuple(option for option in found if option is not None)


def _natural_order(text: str) -> list[tuple[bool, int, str]]:
    # Numbers compare as numbers, so that w10 follows w2.
    parts = re.findall(r"\d+|\D+", text)
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in parts]

"""Exact size of a stored weight, one option for the layer or one for each strip of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..errors import InputError
from .option import Option

__all__ = ["channel_code_bits", "stored_bits"]


def channel_code_bits(options: int) -> int:
    """Bits that name the option of one channel (tile, strip) out of `options`: ``ceil(log2(options))``.

    Channels are stored grouped by option, in their own order within a group, so these codes are the
    permutation too.
    """
    return (options - 1).bit_length()


def stored_bits(
    strips: Sequence[Option], row_weights: int, option_set: int, *, tile: int = 1, rows_per_strip: int = 1
) -> int:
    """Bits of a weight whose strips have these options: codes, steps, and option codes where they differ.

    With S strips of R rows of W weights, and 16-bit steps for each row and point,

        sum_s size_bits(o_s, R, W) + ceil(S / tile) * ceil(log2(option_set))

    without the last term where all options are the same.

    Parameters
    ----------
    strips : sequence of Option
        The option of every strip; a strip is an output channel unless the weight is cut otherwise.
    row_weights : int
        Weights per row: those of an output channel, or those of one of its runs of inputs.
    option_set : int
        Number of options that the plan chooses from.
    tile : int
        Consecutive strips that share an option and its code; the last tile may have fewer.
    rows_per_strip : int
        Rows of a strip: 1 for an output channel, all output channels for a run of inputs.

    Raises
    ------
    InputError
        A tile whose strips have different options.
    """
    if len(set(strips)) == 1:
        return strips[0].size_bits(len(strips) * rows_per_strip, row_weights)
    for start in range(0, len(strips), tile) if tile > 1 else ():
        found = set(strips[start : start + tile])
        if len(found) > 1:
            raise InputError(
                f"the tile of strips {start} to {min(start + tile, len(strips)) - 1} has the options "
                f"{', '.join(map(str, sorted(found)))}; a tile has one"
            )
    codes = -(-len(strips) // tile) * channel_code_bits(option_set)
    counts = Counter(strips)
    return codes + sum(
        count * option.size_bits(rows_per_strip, row_weights) for option, count in counts.items()
    )

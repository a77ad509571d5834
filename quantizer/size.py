"""Exact size of a stored weight, one option for the layer or one for each channel."""

from __future__ import annotations

from collections.abc import Sequence

from .option import Option

__all__ = ["channel_code_bits", "stored_bits"]


def channel_code_bits(options: int) -> int:
    """Bits that name one channel's option out of `options`: ``ceil(log2(options))``.

    Channels are stored grouped by option, in their own order within a group, so these codes are the
    permutation too.
    """
    return (options - 1).bit_length()


def stored_bits(channels: Sequence[Option], fan_in: int, option_set: int) -> int:
    """Bits of a weight whose channels have these options: codes, steps, and channel codes where they differ.

    Parameters
    ----------
    channels : sequence of Option
        The option of every output channel.
    fan_in : int
        Weights per output channel.
    option_set : int
        Number of options that the plan chooses from.
    """
    if len(set(channels)) == 1:
        return channels[0].size_bits(len(channels), fan_in)
    codes = len(channels) * channel_code_bits(option_set)
    return codes + sum(option.size_bits(1, fan_in) for option in channels)

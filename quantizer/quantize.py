"""A weight as its option stores it: the front door of the room."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError
from .grid import Rounding
from .option import Option, StepUnit
from .points import MAX_JOINT_BITS, Points, fit_greedy, fit_joint
from .steps import StepSearch, check_exponent, least_step

__all__ = ["PointFit", "QuantizedRows", "Quantizer"]

# Rows are fitted in pieces whose weights, and sums of points, stay in the processor's cache.
CHUNK_WEIGHTS = 2**17
# A step whose square is still a number.
NOTHING = 2.0**-60


class PointFit(enum.StrEnum):
    """How the points of a row are fitted: all together, or each on the residual of the ones before."""

    JOINT = "joint"
    GREEDY = "greedy"


@dataclass(frozen=True)
class QuantizedRows:
    """The integer codes and steps of a weight.

    Attributes
    ----------
    option : Option
    codes : Tensor, shape (points, channels, fan_in), int8
    steps : Tensor, shape (points, channels, groups), float32
        One channel for a step per tensor, one group for a step per channel. Never zero, 11 significant
        bits, and all within 2^28 of the largest, so that `steps_to_half` stores them exactly.
    """

    option: Option
    codes: Tensor
    steps: Tensor

    def dequantize(self) -> Tensor:
        """``sum_i steps[i] * codes[i]``, shape (channels, fan_in), float32."""
        _, channels, fan_in = self.codes.shape
        groups = self.steps.shape[2]
        size = self.option.group or fan_in
        total = torch.zeros(channels, fan_in, device=self.steps.device)
        for codes, steps in zip(self.codes, self.steps, strict=True):
            wide = steps if groups == 1 else steps.repeat_interleave(size, 1)[:, :fan_in]
            total += codes.to(steps.dtype) * wide
        return total

    def channels(self, index: Tensor) -> QuantizedRows:
        """The same storage of some output channels only."""
        steps = self.steps if self.option.unit is StepUnit.TENSOR else self.steps[:, index]
        return QuantizedRows(self.option, self.codes[:, index], steps)


@dataclass(frozen=True)
class Quantizer:
    """How steps are searched and points fitted, the same for every option.

    Parameters
    ----------
    search : StepSearch
    p : float
        Exponent of the p-norm search, at least 1.
    rounding : Rounding
    fit : PointFit
        The joint fit minimises the squared error with nearest rounding; other searches and floor
        rounding take the greedy form.
    """

    search: StepSearch = StepSearch.MSE
    p: float = 2.0
    rounding: Rounding = Rounding.NEAREST
    fit: PointFit = PointFit.JOINT

    def __post_init__(self) -> None:
        check_exponent(self.p)

    def settings(self) -> dict[str, str | float]:
        """The fields as documents keep them; the inverse of `from_settings`."""
        return {"search": str(self.search), "p": self.p, "rounding": str(self.rounding), "fit": str(self.fit)}

    @classmethod
    def from_settings(cls, settings: Mapping[str, str | float]) -> Quantizer:
        """The quantizer that a document names.

        Raises
        ------
        InputError
            An unknown field or value.
        """
        try:
            return cls(
                search=StepSearch(str(settings["search"])),
                p=float(settings["p"]),
                rounding=Rounding(str(settings["rounding"])),
                fit=PointFit(str(settings["fit"])),
            )
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{dict(settings)} is no quantizer ({error}); it has search ({', '.join(StepSearch)}), p, "
                f"rounding ({', '.join(Rounding)}) and fit ({', '.join(PointFit)})"
            ) from error

    def quantize(self, rows: Tensor, option: Option) -> QuantizedRows:
        """Codes and steps of `rows`, shape (channels, fan_in), under `option`.

        Rows that do not share a step do not touch each other, except that a step below 2^-28 of the
        tensor's largest cannot be stored beside it: its codes become zero, or where one bit has no zero the
        step becomes that fraction of the largest.

        Raises
        ------
        InputError
            A group that is larger than the row, or a weight that is NaN or infinite.
        """
        channels, fan_in = rows.shape
        if not bool(rows.isfinite().all()):
            count = int((~rows.isfinite()).sum())
            raise InputError(
                f"{count} of {rows.numel()} weights are NaN or infinite; only finite weights have codes, "
                "check the file the weights come from"
            )
        cells = self._cells(rows.detach().to(torch.float32), option)
        sums = 2 ** min(option.bits * option.points, MAX_JOINT_BITS)
        chunk = max(1, CHUNK_WEIGHTS // max(cells.shape[1], sums))
        pieces = [self._fit(part, option) for part in torch.split(cells, chunk)]
        codes = torch.cat([piece.codes for piece in pieces], 1)
        steps = torch.cat([piece.steps for piece in pieces], 1)
        codes, steps = _within_half_range(codes, steps, option.bits)
        if option.unit is StepUnit.TENSOR:
            return QuantizedRows(option, codes.view(-1, channels, fan_in), steps[:, :, None])
        codes = codes.view(option.points, channels, -1)[:, :, :fan_in]
        steps = steps.view(option.points, channels, -1)
        return QuantizedRows(option, codes, steps)

    def _cells(self, rows: Tensor, option: Option) -> Tensor:
        """The weights that share a step, one row each; a short last group is filled up.

        With zeros, or for one bit, which has none, with its own weights.
        """
        fan_in = rows.shape[1]
        if option.unit is StepUnit.TENSOR:
            return rows.reshape(1, -1)
        if option.unit is StepUnit.CHANNEL:
            return rows
        if option.group > fan_in:
            raise InputError(
                f"option {option} has groups of {option.group} weights, but a channel has only {fan_in}; "
                f"use a group of at most {fan_in} or w{option.bits}"
            )
        missing = -fan_in % option.group
        if missing and option.bits == 1:
            own = rows[:, missing - option.group :]
            rows = torch.cat([rows, own.repeat(1, -(-missing // own.shape[1]))[:, :missing]], 1)
        else:
            rows = torch.nn.functional.pad(rows, (0, missing))
        return rows.reshape(-1, option.group)

    def _fit(self, cells: Tensor, option: Option) -> Points:
        plain = self.search is StepSearch.MSE and self.rounding is Rounding.NEAREST
        if self.fit is PointFit.JOINT and plain:
            return fit_joint(cells, option.bits, option.points)
        return fit_greedy(
            cells, option.bits, option.points, search=self.search, p=self.p, rounding=self.rounding
        )


def _within_half_range(codes: Tensor, steps: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Raise the steps that half precision cannot hold beside the largest, and zero their codes.

    One bit has no zero, but the steps are next to nothing. A step whose codes are all zero means nothing, so
    it neither counts as the largest nor needs its value.
    """
    live = steps.where(codes.any(2), 0.0)
    # Without any live step every scale is as good, but for codes of one bit, which are never zero.
    nothing = torch.full_like(live[0, 0], NOTHING if bits == 1 else 1.0)
    floor = least_step(live) if bool(live.any()) else nothing
    small = live.abs() < floor
    if bits > 1:
        codes = codes.masked_fill(small[:, :, None], 0)
    return codes, steps.where(~small, floor)

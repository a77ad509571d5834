"""Named bundles of settings: methods as their papers put them together, in the terms of this package."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from .corrections import Correction
from .named import MethodName

__all__ = ["PRESETS", "Preset", "PresetName"]


class PresetName(enum.StrEnum):
    """The bundles there are; the value is how it is written."""

    ADAQUANT = "adaquant"
    BRECQ = "brecq"
    LAPQ = "lapq"
    MULTIPOINT = "multipoint"
    ALL_LOW_BIT = "all-low-bit"


@dataclass(frozen=True)
class Preset:
    """A bundle of settings.

    Attributes
    ----------
    summary : str
        What it does, in a line.
    source : str
        Where it was published.
    options : str
        The option set, see `parse_options`.
    unit : str
        What options are chosen for, ``auto`` where plans per layer and per channel compete.
    objective : str
        ``additive``, ``block``, ``joint`` or ``auto``.
    after : str or None
        What makes the weights of the options that are scored; None: what suits the method.
    method : str
        A `MethodName`, or ``auto``.
    corrections : tuple of Correction
        What is corrected after it, in this order.
    ends : int or None
        Bits of the first and the last layer, and of what they read where activations have options; None makes
        no exception of them.
    by_output_error : bool
        The plan is not solved from scores: see `multipoint_plan`.
    """

    summary: str
    source: str
    options: str = "w2..8"
    unit: str = "layer"
    objective: str = "additive"
    after: str | None = None
    method: str = "auto"
    corrections: tuple[Correction, ...] = ()
    ends: int | None = 8
    by_output_error: bool = False

    def pins(self, layers: Sequence[str], *, activations: bool) -> dict[str, str]:
        """The option of the first and the last of these layers, where they are an exception."""
        if self.ends is None:
            return {}
        return dict.fromkeys((layers[0], layers[-1]), f"w{self.ends}" + f"a{self.ends}" * activations)


PRESETS: dict[PresetName, Preset] = {
    PresetName.ADAQUANT: Preset(
        summary="scores after AdaQuant, solved exactly per layer; AdaQuant, batch norm, biases tuned",
        source="Hubara et al., Accurate post training quantization with small calibration sets, ICML 2021",
        after="adaquant",
        method=MethodName.ADAQUANT,
        corrections=(Correction.BATCH_NORM, Correction.TUNE),
        ends=None,
    ),
    PresetName.BRECQ: Preset(
        summary="scores after reconstructing every block, with its interactions, solved exactly; BRECQ",
        source="Li et al., BRECQ, ICLR 2021, section 3.4; first and last layer of 8 bits: section 4",
        objective="block",
        after="brecq",
        method=MethodName.BRECQ,
    ),
    PresetName.LAPQ: Preset(
        summary="per layer; steps by the loss of the whole network, then bias correction",
        source="Nahshan et al., Loss aware post-training quantization, Machine Learning 110, 2021",
        method=MethodName.LAPQ,
        corrections=(Correction.BIAS,),
    ),
    PresetName.MULTIPOINT: Preset(
        summary="one width everywhere, greedy points on the channels of greatest output error",
        source="Liu et al., Post-training quantization with multiple points, AAAI 2021",
        options="w4x1..4",
        unit="channel",
        method=MethodName.NEAREST,
        by_output_error=True,
    ),
    PresetName.ALL_LOW_BIT: Preset(
        summary="no layer above 4 bits, the first and the last included; the method as without a preset",
        source="none: what integer-only low-bit hardware asks for",
        options="w2..4",
        unit="auto",
        objective="auto",
        ends=None,
    ),
}
"""Every bundle by its name."""

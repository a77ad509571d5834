"""What a low-bit tensor is: option, grid, step search, points and packing."""

from .activation import (
    ActivationOption,
    OptionSet,
    activation_part,
    parse_activation,
    parse_option_set,
    weight_part,
)
from .grid import Grid, Rounding, codes_of, places_of, signed_grid, sum_grid
from .option import Option, StepUnit, option_names, parse_option, parse_options
from .packing import pack_codes, packed_bytes, unpack_codes
from .points import Points, fit_greedy, fit_joint, fit_point
from .quantize import PointFit, QuantizedRows, Quantizer
from .ranges import ActivationGrid, RangeSearch, RangeSettings, candidate_ranges, fit_range, leans_on_few
from .size import channel_code_bits, stored_bits
from .steps import StepSearch, least_step, search_steps, steps_from_half, steps_to_half
from .sums import code_combinations

__all__ = [
    "ActivationGrid",
    "ActivationOption",
    "Grid",
    "Option",
    "OptionSet",
    "PointFit",
    "Points",
    "QuantizedRows",
    "Quantizer",
    "RangeSearch",
    "RangeSettings",
    "Rounding",
    "StepSearch",
    "StepUnit",
    "activation_part",
    "candidate_ranges",
    "channel_code_bits",
    "code_combinations",
    "codes_of",
    "fit_greedy",
    "fit_joint",
    "fit_point",
    "fit_range",
    "leans_on_few",
    "least_step",
    "option_names",
    "pack_codes",
    "packed_bytes",
    "parse_activation",
    "parse_option",
    "parse_option_set",
    "parse_options",
    "places_of",
    "search_steps",
    "signed_grid",
    "steps_from_half",
    "steps_to_half",
    "stored_bits",
    "sum_grid",
    "unpack_codes",
    "weight_part",
]

"""apportion: mixed-precision quantization of PyTorch networks under a proven budget.

The stages of a job, each a function: `capture` or `load_model`, `load_data`, `measure_profile`,
`solve_plan`, `finalize_nearest`, `judge`, `save_network`, and `load`, `load_state` and `export_onnx` for what
they leave behind. The command ``allocate`` runs them all.
"""

import os

if "OMP_WAIT_POLICY" not in os.environ:
    # On Linux torch's threads spin while they wait, which on shared cores holds up the one they wait for;
    # 1,000 spins lose nothing on free ones. The library reads this when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from .allocator import Plan, parse_budget, read_plan, write_plan
from .errors import ApportionError, InfeasibleError, InputError
from .export import export_onnx, load, load_state, save_network
from .network import Data, Network, capture, load_data, load_model
from .quantizer import Option, OptionSet, parse_option, parse_option_set, parse_options
from .reconstruct import finalize_nearest, judge
from .sensitivity import (
    ActivationSettings,
    Profile,
    measure_profile,
    read_profile,
    solve_plan,
    write_profile,
)

__all__ = [
    "ActivationSettings",
    "ApportionError",
    "Data",
    "InfeasibleError",
    "InputError",
    "Network",
    "Option",
    "OptionSet",
    "Plan",
    "Profile",
    "capture",
    "export_onnx",
    "finalize_nearest",
    "judge",
    "load",
    "load_data",
    "load_model",
    "load_state",
    "measure_profile",
    "parse_budget",
    "parse_option",
    "parse_option_set",
    "parse_options",
    "read_plan",
    "read_profile",
    "save_network",
    "solve_plan",
    "write_plan",
    "write_profile",
]
__version__ = "0.1.0"

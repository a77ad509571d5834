"""apportion: mixed-precision quantization of PyTorch networks under a proven budget."""

from .errors import ApportionError, InfeasibleError, InputError

__all__ = ["ApportionError", "InfeasibleError", "InputError"]
__version__ = "0.1.0"

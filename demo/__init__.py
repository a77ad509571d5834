"""The embedded default: a trained network for 8 x 8 digits, with its calibration and its held-out data."""

from .data import Digits, digits_data
from .network import DigitsNetwork, digits_network

__all__ = ["Digits", "DigitsNetwork", "digits_data", "digits_network"]

"""Packages that only some exports need, imported late."""

from __future__ import annotations

import importlib

from ..errors import InputError

__all__ = ["need_onnx"]


def need_onnx() -> None:
    """See that the packages of the ONNX export are there.

    Raises
    ------
    InputError
        One of them is not installed; says how to install them.
    """
    for package in ("onnx", "onnxscript", "onnxruntime"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise InputError(
                f'ONNX needs the package {package} ({error}); install it with: pip install "apportion[onnx]"'
            ) from error

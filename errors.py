"""Errors that a user can cause and mend; the command line turns each into one paragraph and exit code 2."""

__all__ = ["ApportionError", "InfeasibleError", "InputError", "NotFiniteError"]


class ApportionError(Exception):
    """Base of every error that names what was given, what is allowed and what to do."""


class InputError(ApportionError, ValueError):
    """A file, value or document that cannot be used; the message says which and why."""


class NotFiniteError(InputError):
    """A quantized network that computes NaN or infinities; where other weights compete, these drop out."""


class InfeasibleError(ApportionError, ValueError):
    """A budget that no assignment meets; the message names the least and the greatest complexity."""

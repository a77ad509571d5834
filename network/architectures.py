"""What is used of the transformers library, and which of its architectures."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..errors import InputError
from .checkpoint import Checkpoint
from .reason import message_of, quiet

__all__ = ["Library", "load_library"]

_HEADS = {
    "a causal language model": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "a masked language model": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "an image classifier": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "a text classifier": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
}
_MOST_LAYERS = 10_000


class Library(NamedTuple):
    """What is used of the transformers library."""

    version: str
    package: Any
    heads: Any
    no_init_weights: Any
    conversions_of: Any
    renaming: type
    rename: Any

    def architecture(self, checkpoint: Checkpoint) -> tuple[Any, type[nn.Module]]:
        """The configuration and the class of a model, both the library's own.

        Raises
        ------
        InputError
            An architecture that is not the library's, without a supported head, or too large to build.
        """
        given, path = checkpoint.config, checkpoint.folder / "config.json"
        names = given.get("architectures")
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise InputError(f"{path} has the architectures {names!r}; it must name one, with its head")
        known = {name for heads in _HEADS.values() for name in _flat(getattr(self.heads, heads).values())}
        if names[0] not in known:
            raise InputError(
                f"{path} names the architecture '{names[0]}', which is not {', '.join(_HEADS)} of "
                f"transformers {self.version}; give one with such a head, or a factory by file.py:function"
            )
        _refuse_giants(given, path)
        # Some of its kernels are code that it would look for elsewhere.
        plain = {name: value for name, value in given.items() if not name.endswith("_implementation")}
        try:
            with quiet():
                config = self.package.CONFIG_MAPPING[given.get("model_type")].from_dict(plain)
        except Exception as error:
            raise InputError(
                f"transformers {self.version} does not take {path}: {message_of(error)}"
            ) from error
        return config, getattr(self.package, names[0])


def load_library() -> Library:
    """Import the library, only now that it is needed.

    Raises
    ------
    InputError
        It is not installed, or of another version than this package knows.
    """
    try:
        with warnings.catch_warnings():
            # The library's own, on import.
            warnings.simplefilter("ignore")
            import transformers
            from transformers.conversion_mapping import get_model_conversion_mapping
            from transformers.core_model_loading import WeightRenaming, rename_source_key
            from transformers.initialization import no_init_weights
            from transformers.models.auto import modeling_auto
    except ImportError as error:
        raise InputError(
            f"models given by hf: need the package transformers ({error}); install it with: "
            'pip install "apportion[transformers]"'
        ) from error
    return Library(
        transformers.__version__,
        transformers,
        modeling_auto,
        no_init_weights,
        get_model_conversion_mapping,
        WeightRenaming,
        rename_source_key,
    )


def _flat(names: Any) -> Iterator[str]:
    for name in names:
        yield from (name,) if isinstance(name, str) else name


def _refuse_giants(config: dict[str, Any], path: Path) -> None:
    """Numbers of layers and experts that would take hours to build before any tensor is missed."""
    for name, value in config.items():
        counts = name.startswith(("num_", "n_")) and isinstance(value, int)
        if counts and ("layer" in name or "expert" in name or "head" in name) and value > _MOST_LAYERS:
            raise InputError(f"{path} has {name} = {value:,}; at most {_MOST_LAYERS:,} are built")
        if isinstance(value, dict):
            _refuse_giants(value, path)

"""Networks of the transformers library from a local folder: first the program, then its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from ..errors import InputError
from .architectures import load_library
from .capture import assemble, check_finite, export_module
from .checkpoint import Checkpoint, Stored, open_checkpoint
from .experts import split_experts
from .network import Network
from .reason import message_of, quiet
from .stored import find_stored
from .tensors import StreamedTensors

__all__ = ["MOST_CONTEXT", "Skeleton", "capture_skeleton", "context_of", "load_huggingface"]

MOST_CONTEXT = 512
"""Tokens of a sample where neither the user nor the model says fewer."""

# They number the places of a sample from `pad_token_id + 1` on, out of `max_position_embeddings`.
_PADDED_POSITIONS = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "layoutlmv3",
        "lilt",
        "longformer",
        "luke",
        "markuplm",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)


@dataclass(frozen=True)
class Skeleton:
    """The program of an architecture, with its tensors named but not read.

    Attributes
    ----------
    checkpoint : Checkpoint
    graph : torch.fx.Graph
        As `capture` makes it, nothing folded or counted yet.
    tensors : dict
        Every tensor that the graph reads. Those of the checkpoint are fake: they have shape and type, and no
        values. Tables that the model's code computes are there.
    stored : dict
        Where the fake ones are in the checkpoint, by the same names.
    samples : tuple of Tensor
        Two example inputs, fake.
    mode : FakeTensorMode
        Which computes with fake tensors.
    """

    checkpoint: Checkpoint
    graph: fx.Graph
    tensors: dict[str, Tensor]
    stored: dict[str, Stored]
    samples: tuple[Tensor, ...]
    mode: FakeTensorMode

    def network(self, example: Tensor | None = None) -> Network:
        """The network with all tensors read, in float32.

        Raises
        ------
        InputError
            A file is damaged, a tensor is not finite, the network fails on the example, or nothing can be
            quantized.
        """
        tensors = {
            name: self.checkpoint.read(self.stored[name]) if name in self.stored else tensor
            for name, tensor in self.tensors.items()
        }
        blank = tuple(torch.zeros(sample.shape, dtype=sample.dtype) for sample in self.samples)
        given = blank if example is None else (_two(example),)
        try:
            with quiet():
                return assemble(self._copy(), tensors, given, self._bits())
        except InputError:
            raise
        except (RuntimeError, IndexError, ValueError) as error:
            shape = tuple(given[0].shape[1:])
            tokens = "; token ids must be in its vocabulary, and samples no longer than its positions"
            raise InputError(
                f"{self.checkpoint.folder} does not run on samples of shape {shape}: {message_of(error)}"
                + ("" if given[0].is_floating_point() else tokens)
            ) from error

    def streamed(self, memory_bytes: int) -> Network:
        """The network whose tensors are read as they are asked for, in float32.

        Parameters
        ----------
        memory_bytes : int
            What the tensors that are kept may weigh together, see `StreamedTensors`.

        Raises
        ------
        InputError
            Nothing can be quantized; as a tensor is read: its file is damaged, or it is not finite.
        """
        empty = self.weightless()

        def read(name: str) -> Tensor:
            if name not in self.stored:
                return self.tensors[name]
            tensor = self.checkpoint.read(self.stored[name])
            check_finite({name: tensor}, {name})
            return tensor

        tensors = StreamedTensors(empty.tensors, read, torch.device("cpu"), memory_bytes)
        return Network(empty.graph, tensors, empty.inputs, empty.float_bits)

    @property
    def weight_bytes(self) -> int:
        """What the checkpoint's tensors weigh in float32."""
        return sum(4 * self.tensors[name].numel() for name in self.stored)

    def weightless(self) -> Network:
        """The network with fake tensors: layers and sizes are those of `network`, without values.

        Batch norms, which are folded with their values, stay in its graph.
        """
        with quiet():
            return assemble(self._copy(), dict(self.tensors), self.samples, self._bits(), self.mode)

    def _copy(self) -> fx.Graph:
        graph = fx.Graph()
        graph.output(graph.graph_copy(self.graph, {}))
        return graph

    def _bits(self) -> dict[str, int]:
        return {name: self.checkpoint.bits(stored) for name, stored in self.stored.items()}


def load_huggingface(
    folder: Path,
    *,
    example: Tensor | None = None,
    context: int | None = None,
    memory_bytes: int | None = None,
) -> Network:
    """Load a network from a local folder of the transformers library, in float32.

    The head is the one that `architectures` in `config.json` names: a language model (causal or masked), or a
    classifier of images or texts. Nothing is downloaded, and nothing of the folder is run.

    Parameters
    ----------
    folder : Path
        With `config.json` and safetensors weights, see `open_checkpoint`.
    example : Tensor, optional
        A few samples; default: zeros of the shape that the configuration states.
    context : int, optional
        Tokens per sample, where there is no example; default: see `context_of`.
    memory_bytes : int, optional
        Where the weights are larger they stay in their files and are read as they are asked for, and a
        quarter of this keeps what was read last; default: all are read at once.

    Returns
    -------
    Network
        `float_bits` counts tensors in the checkpoint's own types: 16 bits for a number of bfloat16.

    Raises
    ------
    InputError
        The transformers library is not installed, the folder is refused (`open_checkpoint`), the
        architecture is none that is supported, tensors are missing or of other shapes, or the network cannot
        be captured.
    """
    skeleton = capture_skeleton(open_checkpoint(folder), example=example, context=context)
    if memory_bytes is not None and skeleton.weight_bytes > memory_bytes:
        return skeleton.streamed(memory_bytes // 4)
    return skeleton.network(example)


def capture_skeleton(
    checkpoint: Checkpoint, *, example: Tensor | None = None, context: int | None = None
) -> Skeleton:
    """Capture the program of a checkpoint's architecture, without reading its tensors.

    Mixtures of experts are written out, see `split_experts`.

    Raises
    ------
    InputError
        As `load_huggingface`.
    """
    library = load_library()
    config, architecture = library.architecture(checkpoint)
    build: Callable[[Any], Any] = architecture
    if example is None:
        example = _blank(config, architecture, context, checkpoint)
    else:
        _check_kind(example, architecture, checkpoint)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    where = f"{checkpoint.folder} ({architecture.__name__})"
    try:
        with quiet(), _without_weights(mode), library.no_init_weights():
            module = build(config)
            split_experts(module)
            module.tie_weights()
    except (Exception, SystemExit) as error:
        raise InputError(
            f"transformers {library.version} cannot build {where} from its configuration: {message_of(error)}"
        ) from error
    with mode:
        samples = (mode.from_tensor(_two(example)),)
    graph, tensors = export_module(module, samples)
    return Skeleton(
        checkpoint, graph, tensors, find_stored(library, module, tensors, checkpoint), samples, mode
    )


def context_of(checkpoint: Checkpoint, context: int | None = None) -> int:
    """Tokens per sample: those asked for, else what the model can take, at most `MOST_CONTEXT`.

    Raises
    ------
    InputError
        More than the model can take, or fewer than 2.
    """
    names = ("max_position_embeddings", "n_positions", "seq_length")
    stated = [checkpoint.config[name] for name in names if isinstance(checkpoint.config.get(name), int)]
    most = min(stated, default=None)
    if most is not None and checkpoint.config.get("model_type") in _PADDED_POSITIONS:
        padding = checkpoint.config.get("pad_token_id")
        # Where it is not stated it is 1 in all of them.
        most -= (padding if isinstance(padding, int) else 1) + 1
    if context is None:
        return min(MOST_CONTEXT, most or MOST_CONTEXT)
    if context < 2 or (most is not None and context > most):
        allowed = "2 or more" if most is None else f"2 to {most:,}"
        raise InputError(f"the context is {context:,} tokens; {checkpoint.folder} takes {allowed}")
    return context


def _takes_images(model: type[nn.Module]) -> bool:
    return bool(getattr(model, "main_input_name", "input_ids") == "pixel_values")


def _check_kind(example: Tensor, model: type[nn.Module], checkpoint: Checkpoint) -> None:
    """Refuse token ids for a model of images, and what is no token ids for one of texts."""
    images = _takes_images(model)
    if example.is_floating_point() == images and example.ndim == (4 if images else 2):
        return
    takes = "images (samples, channels, height, width) as floats" if images else "token ids (samples, tokens)"
    kind = "floats" if example.is_floating_point() else "whole numbers"
    raise InputError(
        f"{checkpoint.folder} ({model.__name__}) takes {takes}, and the data holds {kind}, "
        f"{tuple(example.shape[1:])} of a sample; give data of that form"
    )


def _blank(config: Any, model: type[nn.Module], context: int | None, checkpoint: Checkpoint) -> Tensor:
    """Zeros in the shape of one sample."""
    if not _takes_images(model):
        return torch.zeros((1, context_of(checkpoint, context)), dtype=torch.int64)
    size, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    sides = [size, size] if isinstance(size, int) else size
    if not isinstance(sides, (list, tuple)) or len(sides) != 2:
        raise InputError(f"{checkpoint.folder} does not state the size of its images; give data with --data")
    return torch.zeros((1, channels, *sides))


def _two(example: Tensor) -> Tensor:
    return torch.cat([example, example])[:2] if len(example) < 2 else example[:2]


@contextmanager
def _without_weights(mode: FakeTensorMode) -> Iterator[None]:
    """Modules built inside have fake parameters; buffers, which their code computes, are real."""
    register = nn.Module.register_parameter

    def register_fake(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not isinstance(parameter, FakeTensor):
            with mode:
                parameter = nn.Parameter(torch.empty(parameter.shape), requires_grad=False)
        register(self, name, parameter)

    nn.Module.register_parameter = register_fake  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]

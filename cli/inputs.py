"""Which network and data a command works on."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..allocator import match_layers
from ..demo import digits_data, digits_network
from ..errors import InputError
from ..network import (
    Data,
    Network,
    capture,
    check_data,
    give_back_freed_memory,
    load_data,
    load_model,
    text_form,
    with_next_tokens,
)

__all__ = ["DEMO", "Inputs", "Source", "bytes_of", "source_of"]

DEMO = "digits"
"""Name of the embedded network and data, used when no model is given."""

DEVICES = ("cpu", "cuda")
MEMORY_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}
LEAST_MEMORY, GREATEST_MEMORY = 2**20, 2**50


@dataclass(frozen=True)
class Inputs:
    """A captured network, the data it is calibrated on, and the data it is judged on."""

    name: str
    network: Network
    calibration: Data
    held_out: Data | None

    def without(self, patterns: Sequence[str]) -> Inputs:
        """The same with some layers left float.

        Raises
        ------
        InputError
            A pattern that matches no layer, or no layer would be left.
        """
        names = [layer.name for layer in self.network.layers]
        rows = {row for pattern in patterns for row in match_layers(pattern, names, f"exclude {pattern}")}
        out = [names[row] for row in sorted(rows)]
        return replace(self, network=self.network.without(out, "excluded"))


@dataclass(frozen=True)
class Source:
    """Where network and data come from, as given on the command line."""

    model: str | None
    weights: Path | None
    data: str | None
    eval_data: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    samples: int | None
    device: str
    tokenizer: Path | None = None
    context: int | None = None
    memory_bytes: int | None = None

    def load(self) -> Inputs:
        """Load and check both.

        Raises
        ------
        InputError
            Anything that is missing, unreadable or does not fit; says which and why.
        """
        device = _device(self.device)
        held_out: Data | None
        if self.model is None:
            calibration, held_out = self._demo_data()
            name = DEMO
            network = capture(digits_network(), calibration.inputs[:2])
        else:
            if self.data is None:
                raise InputError(
                    f"model {self.model} needs calibration data: give --data with a .npz, a .safetensors, "
                    "a folder of images, a .txt or file.py:loader"
                )
            calibration = self._data(self.data, self.samples)
            held_out = self._data(self.eval_data, None) if self.eval_data is not None else None
            name = self.model
            network = load_model(
                self.model,
                weights=self.weights,
                example=calibration.inputs[:2],
                memory_bytes=self.memory_bytes,
            )
            if network.is_streamed:
                give_back_freed_memory()
        calibration = calibration.taken_by(network)
        held_out = held_out.taken_by(network) if held_out is not None else None
        for data in filter(None, (calibration, held_out)):
            check_data(network, data)
        network = network.to(device)
        calibration = with_next_tokens(network, calibration)
        held_out = with_next_tokens(network, held_out) if held_out is not None else None
        return Inputs(name, network, calibration, held_out)

    def _demo_data(self) -> tuple[Data, Data]:
        if self.weights is not None:
            raise InputError("--weights goes with --model; the embedded network brings its own")
        calibration, held_out = (Data(digits.inputs, digits.labels, digits.name) for digits in digits_data())
        calibration = (
            self._data(self.data, self.samples) if self.data else calibration.part(slice(self.samples))
        )
        held_out = self._data(self.eval_data, None) if self.eval_data else held_out
        return calibration, held_out

    def _data(self, spec: str, limit: int | None) -> Data:
        own, context = text_form(self.model or "", self.context)
        data = load_data(
            spec,
            mean=self.mean,
            std=self.std,
            limit=limit,
            tokenizer=self.tokenizer or own,
            context=context,
        )
        given = None if data.inputs.is_floating_point() else data.inputs.shape[1]
        if self.context is not None and given != self.context:
            has = "holds no tokens" if given is None else f"has samples of {given:,} tokens"
            raise InputError(f"--context is {self.context:,}, and {spec} {has}; leave --context out")
        return data


def source_of(
    model: str | None,
    weights: Path | None,
    data: str | None,
    eval_data: str | None,
    mean: str | None,
    std: str | None,
    samples: int | None,
    device: str,
    tokenizer: Path | None = None,
    context: int | None = None,
    memory: str | None = None,
) -> Source:
    """A source from arguments as they are written.

    Raises
    ------
    InputError
        A mean or deviation that is no list of numbers.
    """
    return Source(
        model,
        weights,
        data,
        eval_data,
        _numbers_of(mean, "--mean"),
        _numbers_of(std, "--std"),
        samples,
        device,
        tokenizer,
        context,
        None if memory is None else bytes_of(memory),
    )


def bytes_of(text: str) -> int:
    """A memory size such as 2GiB, 500MB or plain bytes.

    Raises
    ------
    InputError
        Not such a size, or out of range.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?)B?", text.strip().upper())
    size = float(match[1]) * MEMORY_UNITS.get(match[2], 0) if match else 0.0
    if not LEAST_MEMORY <= size <= GREATEST_MEMORY:
        raise InputError(f"--memory is '{text}'; give a size from 1MiB to 1024TiB, such as 2GiB or 500MB")
    return int(size)


def _numbers_of(text: str | None, option: str) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"{option} is '{text}'; give numbers such as 0.485,0.456,0.406") from error


def _device(text: str) -> torch.device:
    try:
        device = torch.device(text)
        if device.type not in DEVICES:
            raise RuntimeError(f"devices are of type {' or '.join(DEVICES)}")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise InputError(f"--device {text} cannot be used: {reason}; cpu always can") from error
    # Of the first backward pass on CUDA, whose thread finds no context and makes one: nothing is wrong.
    warnings.filterwarnings("ignore", message="Attempting to run cuBLAS")
    return device

"""The packed file: bit for bit what was finalized, as large as planned, refused where it is not whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from apportion.allocator import Plan
from apportion.errors import InputError
from apportion.export import read_packed, write_packed
from apportion.export.writer import tensor_checksum
from apportion.network import Data, Network
from apportion.quantizer import parse_option, parse_options
from apportion.reconstruct import Finalized, correct_biases, finalize_nearest
from apportion.sensitivity import measure_profile, solve_plan

from .conftest import rewrite_file, with_checksum

Assign = Callable[[Mapping[str, Sequence[str]]], Plan]
Contents = tuple[dict[str, Tensor], dict[str, str]]


def same(found: Finalized, expected: Finalized) -> None:
    """Equal options, channels, codes and steps, and their types."""
    for layer, other in zip(found.layers, expected.layers, strict=True):
        assert layer.name == other.name
        for part, wanted in zip(layer.parts, other.parts, strict=True):
            assert part.rows.option == wanted.rows.option
            for name in ("codes", "steps"):
                left, right = getattr(part.rows, name), getattr(wanted.rows, name)
                assert left.dtype == right.dtype
                assert torch.equal(left, right)
            assert torch.equal(part.index, wanted.index)


def header_bytes(path: Path) -> int:
    """The length field of a safetensors file, and the JSON that it measures."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def check_size(path: Path, plan: Plan) -> None:
    stored_bytes = path.stat().st_size - header_bytes(path)
    planned_bytes = plan.complexity.size_bits / 8
    # Each stored tensor ends on a whole byte.
    assert abs(stored_bytes - planned_bytes) <= 0.01 * planned_bytes


@pytest.mark.parametrize("option", ["w1x2", "w2", "w3", "w4", "w8", "w2x2", "w4t", "w3g16"])
def test_codes_and_steps_of_every_option_come_back_bit_for_bit(
    network: Network, plan: Plan, assign: Assign, tmp_path: Path, option: str
) -> None:
    group = parse_option(option).group
    chosen = assign(
        {
            layer.name: [option] * layer.shape[0]
            for layer in plan.layers
            if torch.Size(layer.shape[1:]).numel() >= group
        }
    )
    finalized = finalize_nearest(network, chosen)
    path = tmp_path / "weights.safetensors"
    write_packed(path, network, chosen, finalized)
    packed = read_packed(path)
    same(packed.finalized, finalized)
    assert packed.plan == chosen
    expected = {**network.tensors, **finalized.tensors(network)}
    found = packed.tensors()
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor)
    check_size(path, chosen)


@pytest.mark.parametrize("group", [13, 17, 40])
def test_a_short_last_group_comes_back_bit_for_bit(
    network: Network, data: Data, tmp_path: Path, group: int
) -> None:
    few = Data(data.inputs[:2], None, data.name)
    profile, arrays = measure_profile(network, few, parse_options(f"w8,w2x2g{group}"))
    plan = solve_plan(profile, arrays, "7.9b", "layer")
    layers = [layer for layer in plan.layers if layer.option == f"w2x2g{group}"]
    assert any(torch.Size(layer.shape[1:]).numel() % group for layer in layers)
    finalized = finalize_nearest(network, plan)
    write_packed(tmp_path / "weights.safetensors", network, plan, finalized)
    same(read_packed(tmp_path / "weights.safetensors").finalized, finalized)


@pytest.fixture
def mixed(plan: Plan, assign: Assign) -> Plan:
    """A plan whose layers mix options with and without points in every order."""
    orders = (["w3", "w2x2", "w8"], ["w2", "w2", "w4"], ["w8", "w2"], ["w2x2"])
    return assign(
        {
            layer.name: tuple(islice(cycle(orders[index % 4]), layer.shape[0]))
            for index, layer in enumerate(plan.layers)
        }
    )


def test_mixed_channels_come_back_bit_for_bit_at_the_planned_size(
    network: Network, data: Data, mixed: Plan, tmp_path: Path
) -> None:
    finalized = correct_biases(network, data, finalize_nearest(network, mixed))
    path = tmp_path / "weights.safetensors"
    write_packed(path, network, mixed, finalized)
    packed = read_packed(path)
    same(packed.finalized, finalized)
    for name, bias in finalized.biases.items():
        assert torch.equal(packed.rest[name], bias)
    check_size(path, mixed)
    assert sum(torch.Size(layer.shape).numel() for layer in mixed.layers) >= 40_000


@pytest.mark.parametrize("unit", ["layer", "channel"])
def test_the_file_of_resnet20_has_the_planned_size(resnet20: Network, tmp_path: Path, unit: str) -> None:
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    profile, arrays = measure_profile(resnet20, Data(inputs, None, "noise"), parse_options("w2..5"))
    plan = solve_plan(profile, arrays, "4b", unit)  # type: ignore[arg-type]
    finalized = finalize_nearest(resnet20, plan)
    path = tmp_path / "weights.safetensors"
    write_packed(path, resnet20, plan, finalized)
    check_size(path, plan)
    same(read_packed(path).finalized, finalized)


@pytest.fixture
def written(network: Network, mixed: Plan, tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    write_packed(path, network, mixed, finalize_nearest(network, mixed))
    return path


BIAS = "=stem.bias"
Change = Callable[[dict[str, Tensor], dict[str, Any]], object]


def rewrite(path: Path, change: Change) -> None:
    """The file with its tensors and header changed, and the checksums of what they are then."""

    def changed(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        header = json.loads(metadata["apportion"])
        change(tensors, header)
        header["checksums"] = {name: tensor_checksum(tensor) for name, tensor in tensors.items()}
        metadata.update(with_checksum(json.dumps(header)))

    rewrite_file(path, changed)


def in_plan(edit: Callable[[Any], object]) -> Change:
    return lambda _, header: edit(header["plan"])


@pytest.mark.parametrize("kept", [0, 7, 100, 5_000, -1])
def test_a_truncated_file_is_refused(written: Path, kept: int) -> None:
    written.write_bytes(written.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"cannot read packed weights .*weights\.safetensors"):
        read_packed(written)


@pytest.mark.parametrize("memory_bytes", [None, 0])
@pytest.mark.parametrize("place", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_a_single_bit_that_is_not_as_written_is_refused(
    written: Path, place: float, memory_bytes: int | None
) -> None:
    data = bytearray(written.read_bytes())
    header = header_bytes(written)
    data[header + round(place * (len(data) - header - 1))] ^= 1
    written.write_bytes(data)
    with pytest.raises(InputError, match=r"weights\.safetensors is damaged: '.+' is not what was written"):
        list(read_packed(written, memory_bytes=memory_bytes).finalized.layers)


@pytest.mark.parametrize("memory_bytes", [None, 0])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t, m: t.update({"=more": torch.zeros(3)}), r"'=more' is not what was written"),
        (lambda t, m: t.pop("=stem.bias"), r"'=stem\.bias' is missing"),
        (lambda t, m: t.update({BIAS: t[BIAS][:, None]}), r"'=stem\.bias' is not what was written"),
        (lambda t, m: t.update({BIAS: t[BIAS].view(torch.int32)}), r"'=stem\.bias' is not what was written"),
        (lambda t, m: m.update(apportion=m["apportion"].replace('0":-', '0":-1', 1)), r"its header is not"),
    ],
)
def test_tensors_and_a_header_that_were_not_written_are_refused(
    written: Path,
    change: Callable[[dict[str, Tensor], dict[str, str]], object],
    reason: str,
    memory_bytes: int | None,
) -> None:
    rewrite_file(written, change)
    with pytest.raises(InputError, match=rf"weights\.safetensors is damaged: {reason}"):
        read_packed(written, memory_bytes=memory_bytes)


def test_a_layer_that_is_missing_is_refused_where_it_is_read(written: Path) -> None:
    gone = ""

    def without_codes(tensors: dict[str, Tensor], _: dict[str, str]) -> None:
        nonlocal gone
        gone = codes(tensors)
        del tensors[gone]

    rewrite_file(written, without_codes)
    layers = read_packed(written, memory_bytes=0).finalized.layers
    with pytest.raises(InputError, match=rf"damaged: '{gone}' is missing"):
        list(layers)


def test_a_file_without_a_checksum_of_its_header_is_of_another_version(written: Path) -> None:
    save_file({"weight": torch.zeros(3)}, written, metadata={"apportion": "{}"})
    with pytest.raises(InputError, match=r"another version of apportion.* run `allocate finalize --force`"):
        read_packed(written)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read packed weights .*none\.safetensors"):
        read_packed(tmp_path / "none.safetensors")


def test_other_safetensors_and_other_versions_are_refused(written: Path) -> None:
    rewrite(written, lambda _, metadata: metadata.update(format="apportion-packed-3"))
    with pytest.raises(InputError, match=r"header of .* format: Input should be 'apportion-packed-2'"):
        read_packed(written)
    save_file({"weight": torch.zeros(3)}, written)
    with pytest.raises(InputError, match=r"is not a packed network"):
        read_packed(written)


@pytest.mark.parametrize("text", ["", "[1", "[" * 9_999])
def test_a_header_that_is_not_json_is_refused(written: Path, text: str) -> None:
    save_file({"weight": torch.zeros(3)}, written, metadata=with_checksum(text))
    with pytest.raises(InputError, match=r"the header of .* (is not JSON|nested more than 64)"):
        read_packed(written)


def codes(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("/codes"))


def steps(tensors: dict[str, Tensor]) -> str:
    return next(name for name in sorted(tensors) if name.endswith("/steps"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t, m: t.pop(codes(t)), r"does not hold what its plan says: .*codes"),
        (lambda t, m: t.pop(steps(t)), r"does not hold what its plan says: .*steps"),
        (lambda t, m: t.update({codes(t): t[codes(t)][:-1].clone()}), r"packed codes have \d+ bytes"),
        (lambda t, m: t.update({codes(t): t[codes(t)].float()}), r"does not hold what its plan says"),
        (lambda t, m: t.update({codes(t): t[codes(t)].bfloat16()}), r"does not hold what its plan says"),
        (lambda t, m: t.update({steps(t): t[steps(t)][:-1].clone()}), r"steps is float16 of shape"),
        (lambda t, m: t.update({steps(t): t[steps(t)].T.contiguous()}), r"steps is float16 of shape"),
        (lambda t, m: t.update({steps(t): t[steps(t)].float()}), r"steps is float32 of shape"),
        (lambda t, m: t[steps(t)].fill_(torch.nan), r"holds a step that is NaN or infinite"),
        (lambda t, m: m.update(exponents={}), r"does not hold what its plan says"),
        (lambda t, m: m.update(exponents=[1]), r"header of .* exponents"),
        (lambda t, m: m.pop("exponents"), r"header of .* exponents: Field required"),
        (lambda t, m: m["exponents"].update({"stem/w4/0": -(10**8)}), r"greater than or equal"),
        (lambda t, m: m.update(layouts={}), r"layouts and its plan name different layers"),
        (lambda t, m: next(iter(m["layouts"].values())).update(dtype="torch.int8"), r"dtype"),
        (lambda t, m: m.pop("plan"), r"header of .* plan: Field required"),
    ],
)
def test_a_file_that_is_not_whole_is_refused(written: Path, change: Change, reason: str) -> None:
    rewrite(written, change)
    with pytest.raises(InputError, match=reason):
        read_packed(written)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda p: p["layers"].pop(), r"layouts and its plan name different layers"),
        (lambda p: p["layers"][0].update(name="other"), r"layouts and its plan name different layers"),
        (lambda p: p["layers"][3].update(option="w9", strips=None), r"option has 9 bits"),
        (lambda p: p["layers"][3].update(option="w8", strips=None), r"does not hold what its plan says"),
        (lambda p: p["layers"][3]["shape"].__setitem__(0, -16), r"layers.3.shape"),
        (lambda p: p["layers"][3]["shape"].__setitem__(0, 2**24), r"shape \[16777216, .* more weights"),
        (
            lambda p: p["layers"][3]["shape"].__setitem__(1, 2**24),
            r"shape \[\d+, 16777216",
        ),
        (lambda p: p["layers"][3]["shape"].__setitem__(1, 2), r"packed codes have \d+ bytes"),
        (
            lambda p: p["layers"][3]["shape"].__setitem__(0, 10**12),
            r"layers.3.shape.0: .* less than or equal",
        ),
        (lambda p: p.update(version=2), r"version"),
    ],
)
def test_a_plan_that_its_tensors_do_not_bear_out_is_refused(
    written: Path, edit: Callable[[Any], object], reason: str
) -> None:
    rewrite(written, in_plan(edit))
    with pytest.raises(InputError, match=reason):
        read_packed(written)


def test_the_same_plan_gives_the_same_bytes(network: Network, mixed: Plan, tmp_path: Path) -> None:
    finalized = finalize_nearest(network, mixed)
    for name in ("one", "two"):
        write_packed(tmp_path / name, network, mixed, finalized)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()

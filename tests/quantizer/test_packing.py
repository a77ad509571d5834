"""Packed codes are the codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apportion.errors import InputError
from apportion.quantizer import pack_codes, packed_bytes, unpack_codes


def random_codes(count: int, bits: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (count,), generator=generator)
    return (2 * codes + 1 if bits == 1 else codes).to(torch.int8)


def packed_digit_by_digit(codes: list[int], bits: int) -> list[int]:
    """The slow and obvious form: one long string of binary digits, cut into bytes."""
    places = [(code + 1) // 2 if bits == 1 else code + 2 ** (bits - 1) for code in codes]
    digits = "".join(format(place, f"0{bits}b") for place in places)
    return [int(digits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(digits), 8)]


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 8), st.integers(0, 300), st.integers(0, 2**16))
def test_unpacking_undoes_packing(bits: int, count: int, seed: int) -> None:
    codes = random_codes(count, bits, seed)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert len(packed) == packed_bytes(count, bits)
    assert torch.equal(unpack_codes(packed, bits, count), codes)


@settings(derandomize=True, deadline=None)
@given(st.integers(1, 8), st.integers(0, 100), st.integers(0, 2**16))
def test_the_bytes_are_the_binary_digits_in_order(bits: int, count: int, seed: int) -> None:
    codes = random_codes(count, bits, seed)
    assert pack_codes(codes, bits).tolist() == packed_digit_by_digit(codes.tolist(), bits)


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize("surplus", [-1, 0, 5])
def test_streams_longer_than_one_piece_are_packed_seamlessly(bits: int, surplus: int) -> None:
    codes = random_codes(2**20 + surplus, bits, seed=bits)
    assert torch.equal(unpack_codes(pack_codes(codes, bits), bits, len(codes)), codes)


def test_codes_of_any_shape_are_packed_in_row_order() -> None:
    codes = random_codes(60, 3, seed=0).view(3, 4, 5)
    assert torch.equal(pack_codes(codes, 3), pack_codes(codes.flatten(), 3))
    sliced = codes[:, :, :4]
    assert torch.equal(unpack_codes(pack_codes(sliced, 3), 3, 48), sliced.flatten())


@pytest.mark.parametrize("bits", range(2, 8))
@pytest.mark.parametrize("side", [-1, 1])
def test_a_code_outside_the_range_is_refused(bits: int, side: int) -> None:
    half = 2 ** (bits - 1)
    code = half if side > 0 else -half - 1
    with pytest.raises(InputError, match=f"{bits} bits hold -{half} to {half - 1}"):
        pack_codes(torch.tensor([0, code], dtype=torch.int8), bits)


@pytest.mark.parametrize("code", [-2, 0, 2])
def test_one_bit_holds_minus_one_and_one_alone(code: int) -> None:
    with pytest.raises(InputError, match="hold"):
        pack_codes(torch.tensor([1, code, -1], dtype=torch.int8), 1)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_stream_of_another_length_is_refused(change: int) -> None:
    stream = torch.zeros(packed_bytes(100, 3) + change, dtype=torch.uint8)
    with pytest.raises(InputError, match="100 codes of 3 bits take 38: the file is truncated"):
        unpack_codes(stream, 3, 100)

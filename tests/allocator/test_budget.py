"""Budgets are read exactly, print back as written, and teach their grammar when they cannot be read."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import AmountForm, BudgetKind, average_budget, parse_budget
from apportion.errors import InfeasibleError, InputError


@pytest.mark.parametrize(
    ("text", "kind", "value", "bits"),
    [
        ("4b", BudgetKind.AVERAGE_BITS, "4", 4000),
        ("3.5b", BudgetKind.AVERAGE_BITS, "3.5", 3500),
        (".5b", BudgetKind.AVERAGE_BITS, "0.5", 500),
        ("3.1415b", BudgetKind.AVERAGE_BITS, "3.1415", 3141),
        ("512B", BudgetKind.BYTES, "512", 512 * 8 - 96),
        ("1.2kB", BudgetKind.BYTES, "1200", 9600 - 96),
        ("1.2KB", BudgetKind.BYTES, "1200", 9600 - 96),
        ("1.2MB", BudgetKind.BYTES, "1200000", 9_600_000 - 96),
        ("2GB", BudgetKind.BYTES, "2000000000", 16_000_000_000 - 96),
        ("300KiB", BudgetKind.BYTES, "307200", 307_200 * 8 - 96),
        ("1MiB", BudgetKind.BYTES, "1048576", 2**23 - 96),
        ("0.5 GiB", BudgetKind.BYTES, "536870912", 2**32 - 96),
        (" 25% ", BudgetKind.FLOAT_PERCENT, "25", 8024 - 96),
        ("size = 4b", BudgetKind.AVERAGE_BITS, "4", 4000),
        ("12.5%", BudgetKind.FLOAT_PERCENT, "12.5", 4012 - 96),
    ],
)
def test_every_form_means_what_the_grammar_says(text: str, kind: BudgetKind, value: str, bits: int) -> None:
    budget = parse_budget(text)
    assert budget.kind is kind
    assert budget.value == Decimal(value)
    assert budget.bits(weight_count=1000, fixed_bits=96, float_bits=32_096) == bits


@settings(derandomize=True, deadline=None)
@given(
    number=st.decimals("0.001", "999999", places=3),
    unit=st.sampled_from(["b", "B", "kB", "MB", "GB", "KiB", "MiB", "GiB", "%"]),
)
def test_a_budget_prints_back_and_reads_the_same_again(number: Decimal, unit: str) -> None:
    budget = parse_budget(f"{number} {unit}")
    assert str(budget) == f"{number}{unit}"
    assert parse_budget(str(budget)) == budget


def test_tenths_of_bits_are_not_lost_to_binary_fractions() -> None:
    # In floats 4.35 * 100 is below 435.
    assert parse_budget("4.35b").bits(100, 0, 0) == 435


def test_an_average_does_not_pay_for_what_is_not_quantized() -> None:
    assert parse_budget("4b").bits(1000, 10**9, 10**10) == 4000


@pytest.mark.parametrize("text", ["1kB", "10%"])
def test_a_file_that_its_fixed_part_fills_is_infeasible(text: str) -> None:
    with pytest.raises(InfeasibleError, match=rf"budget {text} allows 8,000 bits .* needs 8,000 bits"):
        parse_budget(text).bits(1000, 8000, 80_000)


@pytest.mark.parametrize(
    "text",
    ["", "4", "b", "four bits", "4,5b", "1e3b", "nan", "nanb", "inf", "infMB", "4b4", "0x4b", "9" * 20 + "b"],
)
def test_what_is_no_budget_is_told_the_grammar(text: str) -> None:
    with pytest.raises(
        InputError,
        match=r"is not a budget; write 4b or 3\.5b .* 1\.2MB, 300KiB .*header.* 25% .* act_memory=",
    ):
        parse_budget(text)


@pytest.mark.parametrize("text", ["0b", "0.0MB", "-4b", "-1%"])
def test_a_budget_is_above_zero(text: str) -> None:
    with pytest.raises(InputError, match=rf"budget '{text}' is not above 0; write 4b"):
        parse_budget(text)


@pytest.mark.parametrize("text", ["4mb", "4Mb", "4kb", "4bits", "4TB", "4%%"])
def test_units_that_could_be_bits_or_bytes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=rf"'{text[1:]}' in the budget '{text}' is not a unit; write 4b"):
        parse_budget(text)


@pytest.mark.parametrize(
    ("text", "quantity", "value"),
    [
        ("bops=2.5G", "bops", "2500000000"),
        ("latency = 3.5", "latency", "3.5"),
        ("energy_2=.25k", "energy_2", "250"),
        ("macs=3G", "macs", "3000000000"),
        ("my-table=12T", "my-table", "12000000000000"),
    ],
)
def test_a_name_limits_the_total_of_that_quantity(text: str, quantity: str, value: str) -> None:
    budget = parse_budget(text)
    assert (budget.kind, budget.quantity) == (BudgetKind.TOTAL, quantity)
    assert budget.value == Decimal(value)
    assert parse_budget(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "latency=3.5ms",
            r"'ms' in the budget 'latency=3.5ms' is not a multiple; write macs=80M, bops=2\.5G",
        ),
        ("latency=0", r"the budget 'latency=0' is not above 0; write macs=80M, bops=2\.5G"),
        ("latency=nan", r"'latency=nan' is not a budget"),
        ("=3", r"'=3' is not a budget"),
        ("size=4", r"'size=4' is not a budget; write 4b"),
        ("4 latency=3", r"is not a budget"),
    ],
)
def test_what_is_no_total_is_told_why(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_budget(text)


def test_a_total_of_another_quantity_is_no_limit_on_the_size() -> None:
    with pytest.raises(InputError, match=r"limits latency and not the size; write 4b"):
        parse_budget("latency=3").bits(1000, 0, 32_000)


@settings(derandomize=True, deadline=None)
@given(bits=st.integers(1, 10**12), weights=st.integers(1, 10**9))
def test_an_average_budget_allows_the_bits_it_was_made_for_and_hardly_more(bits: int, weights: int) -> None:
    allowed = parse_budget(average_budget(bits, weights)).bits(weights, 0, 0)
    assert bits <= allowed <= bits + weights // 10_000 + 1


@settings(derandomize=True, deadline=None)
@given(
    amount=st.integers(1, 10**13),
    text=st.sampled_from(["4b", "1.2MB", "300KiB", "512B", "25%"]),
    weights=st.integers(1, 10**12),
    fixed=st.integers(0, 10**12),
)
def test_a_size_that_messages_round_up_is_a_budget_that_allows_it(
    amount: int, text: str, weights: int, fixed: int
) -> None:
    ledger = (weights, fixed, 32 * weights + fixed)
    written = parse_budget(text).form(*ledger).text(amount)
    assert written.lstrip(".0123456789") == text.lstrip(".0123456789")
    assert parse_budget(written).bits(*ledger) >= amount


@pytest.mark.parametrize(
    ("form", "amount", "written"),
    [
        (AmountForm(), 1920, "1920"),
        (AmountForm(), 1_234_567, "1234570"),
        (AmountForm(3), 1, "0.333334"),
        (AmountForm(10**12), 1, "0.000000001"),
        (AmountForm(8 * 1024, "KiB", 8192), 0, "1KiB"),
        (AmountForm(), 0, "0"),
    ],
)
def test_amounts_are_written_without_an_exponent(form: AmountForm, amount: int, written: str) -> None:
    assert form.text(amount) == written

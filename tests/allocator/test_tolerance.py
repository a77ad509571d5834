"""How much may be lost: the grammar, and what a drop says of itself."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from apportion.allocator import Drop, DropKind, parse_tolerance
from apportion.errors import InputError


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("0.1%", DropKind.ACCURACY, 0.001),
        (" 2 % ", DropKind.ACCURACY, 0.02),
        ("0%", DropKind.ACCURACY, 0.0),
        ("0.01kl", DropKind.KL, 0.01),
        (".5 kl", DropKind.KL, 0.5),
        ("1%ppl", DropKind.PERPLEXITY, 0.01),
        ("150%ppl", DropKind.PERPLEXITY, 1.5),
    ],
)
def test_a_tolerance_is_read_exactly(text: str, kind: DropKind, value: float) -> None:
    tolerance = parse_tolerance(text)
    assert (tolerance.kind, tolerance.value) == (kind, value)
    assert str(tolerance) == text.replace(" ", "")
    assert parse_tolerance(str(tolerance)) == tolerance


@pytest.mark.parametrize("text", ["", "0.1", "0.1b", "1ppl", "kl", "%", "1e-3kl", "nan%", "inf kl", "0.1%%"])
def test_what_is_not_a_tolerance_is_answered_with_the_grammar(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a drop of quality; write 0.1% .* 0.01kl .* 1%ppl"):
        parse_tolerance(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [("-0.1%", "below 0"), ("-1kl", "below 0"), ("0kl", "above 0"), ("100%", "less than 100%")],
)
def test_a_tolerance_that_makes_no_sense_says_why(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_tolerance(text)


def test_a_drop_of_one_answer_in_a_thousand_is_within_a_tenth_of_a_point() -> None:
    # No rounding may come between a share that was counted and the limit as written.
    assert all((lost / 1000 <= parse_tolerance("0.1%").value) == (lost <= 1) for lost in range(5))
    assert parse_tolerance("0.7%").value >= 7 / 1000


def test_a_drop_describes_itself_in_the_units_people_use() -> None:
    drop = Drop(kind=DropKind.ACCURACY, value=0.0008, low=-0.0021, high=0.0038)
    assert drop.described() == "accuracy drop 0.08 points (95%: -0.21 to 0.38)"
    drop = Drop(kind=DropKind.PERPLEXITY, value=0.01, low=0.005, high=0.015)
    assert drop.described() == "perplexity rise 1.00% (95%: 0.50 to 1.50)"
    assert Drop(kind=DropKind.KL, value=0.01234, low=0.01, high=0.02).described() == (
        "KL 0.0123 (95%: 0.01 to 0.02)"
    )


def test_an_interval_that_does_not_hold_its_drop_is_refused() -> None:
    with pytest.raises(ValidationError, match="does not hold the drop"):
        Drop(kind=DropKind.KL, value=0.1, low=0.2, high=0.3)

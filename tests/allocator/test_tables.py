"""Tables of costs: read exactly, refused where they cannot be meant, never less in whole numbers."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.allocator import CostTable, WholeCosts, read_table
from apportion.errors import InputError

COSTS = {"conv1": {"w2": 0.1, "w4": 0.25}, "fc": {"w2": 1.0, "w4": 1e-3}}
costs = st.floats(0, 1e6).map(lambda cost: float(f"{cost:.6g}"))


def table_at(path: Path, text: str) -> CostTable:
    path.write_text(text, encoding="utf-8")
    return read_table("latency", path)


def test_all_forms_of_a_table_read_the_same(tmp_path: Path) -> None:
    entries = [(layer, option, cost) for layer, options in COSTS.items() for option, cost in options.items()]
    lines = "\n".join(f"{layer}, {option} ,{cost}" for layer, option, cost in entries)
    listed = [{"layer": layer, "option": option, "cost": cost} for layer, option, cost in entries]
    tables = [
        table_at(tmp_path / "a.csv", f"layer,option,cost\n{lines}\n\n"),
        table_at(tmp_path / "b.csv", f"\ufefflayer,option,cost\r\n{lines}"),
        table_at(tmp_path / "c.json", json.dumps(listed)),
        table_at(tmp_path / "d.json", json.dumps(COSTS)),
    ]
    assert all(table == CostTable("latency", COSTS) for table in tables)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.csv", "", r"begins with ''; give a \.csv file with the columns layer,option,cost"),
        ("a.csv", "name,option,cost\nfc,w2,1", r"begins with 'name,option,cost'"),
        ("a.csv", "layer,option,cost\nfc,w2", r"line 2: 2 values; a line has layer,option,cost"),
        (
            "a.csv",
            "layer,option,cost\nfc,w2,nan",
            r"line 2: the cost is 'nan'; costs are numbers, at least 0",
        ),
        ("a.csv", "layer,option,cost\nfc,w2,-1", r"line 2: the cost is '-1'"),
        ("a.csv", "layer,option,cost\nfc,w2,inf", r"line 2: the cost is 'inf'"),
        ("a.csv", "layer,option,cost\nfc,w2,1e999", r"line 2: the cost is '1e999'"),
        ("a.csv", "layer,option,cost\nfc,w2,1e19", r"layer 'fc' has cost 1e\+19 for option w2"),
        ("a.csv", "layer,option,cost\nfc,w2,1\nfc,w2,1", r"gives layer 'fc', option w2 two costs"),
        ("a.csv", 'layer,option,cost\nfc,"w2,1', r"is not CSV: unexpected end"),
        ("a.json", "{", r"is not JSON"),
        ("a.json", "3", r"is neither a list of entries nor an object of layers"),
        ("a.json", '[{"layer": "fc"}]', r"is neither a list of entries"),
        ("a.json", '{"fc": 3}', r"is neither a list of entries"),
        ("a.json", '{"fc": {"w2": "3"}}', r"layer 'fc', option w2 has cost '3'; costs are numbers"),
        ("a.json", '{"fc": {"w2": true}}', r"has cost True"),
        ("a.json", '{"fc": {"w2": -1}}', r"has cost -1"),
        ("a.json", '{"fc": {"w2": NaN}}', r"holds NaN"),
        ("a.json", '{"fc": {"w2": 1, "w2": 2}}', r"the field 'w2' twice"),
        (
            "a.json",
            '[{"layer": 1, "option": "w2", "cost": 1}]',
            r"names layer 1, option 'w2'; names are texts",
        ),
        ("a.txt", "layer,option,cost", r"is neither \.csv nor \.json"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused_where_it_is(
    tmp_path: Path, name: str, text: str, reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        table_at(tmp_path / name, text)


def test_a_table_that_is_not_there_or_takes_a_name_that_is_counted_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read table latency .*No such file"):
        read_table("latency", tmp_path / "no.csv")
    for name in ("size", "macs", "bops"):
        with pytest.raises(InputError, match=rf"a table cannot be named {name}"):
            read_table(name, tmp_path / "no.csv")
    with pytest.raises(InputError, match=r"'two words' cannot name a table"):
        CostTable("two words", {})


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf"), 1e19])
def test_a_cost_that_is_none_is_refused_with_its_layer(cost: float) -> None:
    with pytest.raises(InputError, match=r"table latency: layer 'fc' has cost .* for option w2"):
        CostTable("latency", {"fc": {"w2": cost}})


def test_missing_entries_are_named(tmp_path: Path) -> None:
    table = CostTable("latency", COSTS)
    needed: dict[str, Any] = {"conv1": ["w2", "w8"], "head": ["w4"]}
    with pytest.raises(
        InputError, match=r"no cost for layer 'conv1' w8, 'head' w4; every option that a layer"
    ):
        table.restricted(needed)
    assert table.restricted({"fc": ["w4"]}).costs == {"fc": {"w4": 1e-3}}


def test_strips_pay_shares_that_add_up_exactly() -> None:
    table = CostTable("latency", COSTS)
    # In floats 0.1 + 0.1 + 0.1 is not 0.3.
    assert table.total([("conv1", ["w2"] * 3)] * 3) == Fraction(3, 10)
    assert table.total([("conv1", ["w2", "w4", "w4"])]) == Fraction(1, 10) / 3 + Fraction(1, 4) * 2 / 3


@settings(derandomize=True, deadline=None)
@given(
    drawn=st.lists(st.lists(costs, min_size=3, max_size=3), min_size=1, max_size=6),
    strips=st.integers(1, 999),
)
def test_whole_numbers_are_never_less_than_the_costs_and_hardly_more(
    drawn: list[list[float]], strips: int
) -> None:
    names, options = [f"layer{row}" for row in range(len(drawn))], ["w2", "w3", "w4"]
    table = CostTable(
        "latency",
        {name: dict(zip(options, row, strict=True)) for name, row in zip(names, drawn, strict=True)},
    )
    whole = WholeCosts.of(table, names, options, [strips] * len(names))
    for row, name in enumerate(names):
        for column, option in enumerate(options):
            exact = table.exact(name, option) * whole.scale
            assert 0 <= int(whole.layer[row, column]) - exact < 1
            assert 0 <= int(whole.strip[row, column]) - exact / strips < 1
    # Sums stay exact in floats, and one part is next to nothing of the whole.
    greatest = sum(int(row.max()) for row in whole.layer)
    assert greatest <= 2**50 + len(names)
    assert whole.scale * 10 > 2**40 / max(1e-6, *(max(row) for row in drawn)) or (
        whole.layer == [[table.exact(n, o) * whole.scale for o in options] for n in names]
    ).all()  # fmt: skip


def test_short_decimals_stay_exact() -> None:
    whole = WholeCosts.of(CostTable("latency", COSTS), ["conv1", "fc"], ["w2", "w4"], [3, 7])
    assert whole.scale % 1000 == 0
    assert whole.layer.tolist() == [[whole.scale // 10, whole.scale // 4], [whole.scale, whole.scale // 1000]]
    assert (whole.strip[0] * 3 == whole.layer[0]).all()
    assert (whole.strip[1] * 7 == whole.layer[1]).all()

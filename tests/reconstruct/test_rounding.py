"""Learned rounding: it beats its start or keeps it, moves weights by one value at most, and repeats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import LayerPlan, Plan
from apportion.errors import InputError, NotFiniteError
from apportion.network import Data, Network, capture
from apportion.quantizer import parse_option
from apportion.reconstruct import (
    Finalized,
    Gptq,
    Granularity,
    LearnedRounding,
    Learning,
    UnitReport,
    finalize_nearest,
    layer_shapes,
    measure_finalized,
)

QUICK = Learning(iterations=120, batch=16, rate=3e-2)
FROM_NEAREST = LearnedRounding(start=None, learning=replace(QUICK, soften=1.0))


def with_options(plan: Plan, network: Network, options: Sequence[str]) -> Plan:
    """The plan with these options for the channels of every layer in turn; its sizes are not counted."""
    layers = tuple(
        LayerPlan.from_strips(
            name,
            shape,
            list(islice(cycle(options), shape[0])),
            size_bits=0,
            predicted_loss=0.0,
            mean_bits=0.0,
        )
        for name, shape in layer_shapes(network).items()
    )
    return plan.model_copy(update={"layers": layers})


def reports_of(
    method: LearnedRounding, network: Network, plan: Plan, data: Data
) -> tuple[Finalized, list[UnitReport]]:
    reports: list[UnitReport] = []
    return method.finalize(network, plan, data, on_unit=reports.append), reports


@pytest.mark.parametrize("granularity", list(Granularity))
@pytest.mark.parametrize("fisher", [False, True])
def test_every_granularity_loses_far_less_than_nearest(
    network: Network, plan: Plan, data: Data, granularity: Granularity, fisher: bool
) -> None:
    chosen = with_options(plan, network, ["w2"])
    method = replace(FROM_NEAREST, granularity=granularity, fisher=fisher)
    finalized, reports = reports_of(method, network, chosen, data)
    learned = measure_finalized(network, finalized, data).loss
    assert learned < 0.5 * measure_finalized(network, finalize_nearest(network, chosen), data).loss
    assert [name for report in reports for name in report.layers] == [layer.name for layer in network.layers]


@pytest.mark.parametrize(
    ("granularity", "units"),
    [(Granularity.LAYER, 9), (Granularity.BLOCK, 6), (Granularity.NETWORK, 1)],
)
def test_layers_learn_together_as_the_granularity_says(
    network: Network, plan: Plan, data: Data, granularity: Granularity, units: int
) -> None:
    told: list[tuple[int, int]] = []
    method = LearnedRounding(granularity=granularity, learning=replace(QUICK, iterations=1))
    method.finalize(network, plan, data, lambda *step: told.append(step))
    assert told == [(done, units) for done in range(1, units + 1)]


@pytest.mark.parametrize("start", [None, Gptq()])
@pytest.mark.parametrize("learning", [QUICK, replace(QUICK, rate=10.0, pull=0.0, iterations=3)])
def test_a_unit_is_kept_only_where_it_beats_its_start(
    network: Network, plan: Plan, data: Data, start: Gptq | None, learning: Learning
) -> None:
    method = LearnedRounding(start=start, learning=learning)
    _, reports = reports_of(method, network, with_options(plan, network, ["w3"]), data)
    assert [report.kept for report in reports] == [
        report.learned_error < report.start_error for report in reports
    ]


def test_where_no_unit_is_kept_the_result_is_the_start(network: Network, plan: Plan, data: Data) -> None:
    chosen = with_options(plan, network, ["w3"])
    # One step of this size from the middle of nowhere: worse than any start.
    spoiled = replace(FROM_NEAREST, learning=Learning(iterations=3, rate=10.0, pull=0.0))
    finalized, reports = reports_of(spoiled, network, chosen, data)
    kept = {name for report in reports if report.kept for name in report.layers}
    assert len(kept) < len(network.layers)
    for learned, start in zip(finalized.layers, finalize_nearest(network, chosen).layers, strict=True):
        if learned.name not in kept:
            assert torch.equal(learned.dequantize(), start.dequantize())


def test_from_nearest_every_code_moves_by_one_at_most_and_towards_the_weight(
    network: Network, plan: Plan, data: Data
) -> None:
    chosen = with_options(plan, network, ["w3"])
    learned = FROM_NEAREST.finalize(network, chosen, data)
    moved = 0
    for layer, after, before in zip(
        network.layers, learned.layers, finalize_nearest(network, chosen).layers, strict=True
    ):
        (new,), (old,) = after.parts, before.parts
        step = new.rows.codes.int() - old.rows.codes.int()
        away = network.weight(layer).reshape(layer.channels, -1) / old.rows.steps[0] - old.rows.codes[0]
        assert int(step.abs().max()) <= 1
        # Where a weight lies beyond the last code, the one before is the only neighbour.
        inside = old.rows.codes[0].float().add(0.5).abs() < 3
        assert bool((step[0] * away >= 0)[inside].all())
        moved += int(step.abs().sum())
    assert moved > 100


@pytest.mark.parametrize("option", ["w2x2", "w3x2"])
def test_with_the_last_point_alone_the_earlier_points_stay(
    network: Network, plan: Plan, data: Data, option: str
) -> None:
    chosen = with_options(plan, network, [option])
    method = replace(FROM_NEAREST, all_points=False)
    moved = 0
    for after, before in zip(
        method.finalize(network, chosen, data).layers, finalize_nearest(network, chosen).layers, strict=True
    ):
        (new,), (old,) = after.parts, before.parts
        assert torch.equal(new.rows.codes[:-1], old.rows.codes[:-1])
        moved += int((new.rows.codes[-1] != old.rows.codes[-1]).sum())
    assert moved > 0


def test_points_of_a_coarse_grid_lose_less_when_learned(network: Network, plan: Plan, data: Data) -> None:
    chosen = with_options(plan, network, ["w2x2"])
    nearest = measure_finalized(network, finalize_nearest(network, chosen), data).loss
    assert measure_finalized(network, FROM_NEAREST.finalize(network, chosen, data), data).loss < nearest


@pytest.mark.parametrize("start", [None, Gptq()])
def test_any_mix_of_options_keeps_to_its_widths(
    network: Network, plan: Plan, data: Data, start: Gptq | None
) -> None:
    chosen = with_options(plan, network, ["w3", "w2x2", "w8", "w2", "w3x3"])
    finalized = LearnedRounding(start=start, learning=QUICK).finalize(network, chosen, data)
    nearest = finalize_nearest(network, chosen)
    for after, before in zip(finalized.layers, nearest.layers, strict=True):
        for new, old in zip(after.parts, before.parts, strict=True):
            half = 2 ** (parse_option(str(new.rows.option)).bits - 1)
            assert int(new.rows.codes.min()) >= -half
            assert int(new.rows.codes.max()) < half
            assert torch.equal(new.index, old.index)
            if start is not None and new.rows.option.points > 1:
                # GPTQ refits every point by itself.
                continue
            # All points of a channel are stretched together, by little.
            ratios = new.rows.steps / old.rows.steps
            assert bool(((ratios - 1).abs() < 0.3).all())
            torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=5e-3, atol=0)
    learned = measure_finalized(network, finalized, data).loss
    assert learned < measure_finalized(network, nearest, data).loss


def test_seeds_repeat_and_differ_whatever_the_memory(network: Network, plan: Plan, data: Data) -> None:
    chosen = with_options(plan, network, ["w2"])

    def weights(seed: int, memory_bytes: int = 2**31) -> Tensor:
        method = replace(
            FROM_NEAREST, learning=replace(QUICK, seed=seed, drop=0.5), memory_bytes=memory_bytes
        )
        finalized = method.finalize(network, chosen, data)
        return torch.cat([layer.dequantize().flatten() for layer in finalized.layers])

    first = weights(1)
    assert torch.equal(first, weights(1, memory_bytes=0))
    assert not torch.equal(first, weights(2))


def test_eight_bits_are_left_as_they_start(network: Network, plan: Plan, data: Data) -> None:
    chosen = with_options(plan, network, ["w8"])
    finalized, reports = reports_of(replace(FROM_NEAREST, learning=QUICK), network, chosen, data)
    quiet = [report for report in reports if report.iterations == 0]
    assert quiet
    start = {layer.name: layer for layer in finalize_nearest(network, chosen).layers}
    for layer in finalized.layers:
        if any(layer.name in report.layers for report in quiet):
            assert torch.equal(layer.dequantize(), start[layer.name].dequantize())


class Tokens(nn.Module):
    """A weight that two blocks share, and a product on samples and tokens folded into one axis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = nn.Linear(12, 12)
        self.folded = nn.Linear(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        x = x + self.shared(x).relu()
        x = self.folded(x.reshape(-1, width)).relu().reshape(samples, tokens, width)
        x = x + self.shared(x).relu()
        out: Tensor = self.head(x.mean(1))
        return out


@pytest.fixture(scope="module")
def tokens(token_data: Data) -> tuple[Network, Data]:
    return capture(Tokens(), token_data.inputs[:2]), token_data


@pytest.mark.parametrize("granularity", list(Granularity))
def test_shared_weights_and_folded_tokens_are_learned(
    tokens: tuple[Network, Data], plan: Plan, granularity: Granularity
) -> None:
    network, data = tokens
    chosen = with_options(plan, network, ["w2"])
    method = replace(FROM_NEAREST, granularity=granularity, held_out=0.25)
    finalized, reports = reports_of(method, network, chosen, data)
    before = sum(report.start_error for report in reports)
    after = sum(min(report.start_error, report.learned_error) for report in reports)
    assert after < 0.95 * before
    assert [layer.name for layer in finalized.layers] == [layer.name for layer in network.layers]
    assert sorted(name for report in reports for name in report.layers) == ["folded", "head", "shared"]


@pytest.mark.parametrize(
    ("granularity", "units"),
    [(Granularity.BLOCK, ["0 2 6", "8"]), (Granularity.LAYER, ["0", "2", "6", "8"])],
)
def test_blocks_between_two_uses_of_a_weight_are_one(
    plan: Plan, granularity: Granularity, units: list[str]
) -> None:
    torch.manual_seed(0)
    data = Data(torch.randn(64, 12), None, "normal")
    wide = [nn.Linear(12, 12) for _ in range(3)]
    layers = [each for layer in (wide[0], wide[1], wide[0], wide[2]) for each in (layer, nn.ReLU())]
    network = capture(nn.Sequential(*layers, nn.Linear(12, 5)), data.inputs[:2])
    chosen = with_options(plan, network, ["w2"])
    method = replace(FROM_NEAREST, granularity=granularity)
    finalized, reports = reports_of(method, network, chosen, data)
    assert [" ".join(report.layers) for report in reports] == units
    nearest = measure_finalized(network, finalize_nearest(network, chosen), data).loss
    assert measure_finalized(network, finalized, data).loss < nearest


def test_shared_weights_and_folded_tokens_go_through_gptq(tokens: tuple[Network, Data], plan: Plan) -> None:
    network, data = tokens
    chosen = with_options(plan, network, ["w2"])
    nearest = measure_finalized(network, finalize_nearest(network, chosen), data).loss
    finalized = LearnedRounding(learning=QUICK).finalize(network, chosen, data)
    assert measure_finalized(network, finalized, data).loss < 0.7 * nearest


def test_every_seed_that_is_allowed_lasts_to_the_end(network: Network, plan: Plan, data: Data) -> None:
    learning = replace(QUICK, iterations=1, seed=2**62)
    chosen = with_options(plan, network, ["w2"])
    found = replace(FROM_NEAREST, learning=learning, fisher=True).finalize(network, chosen, data)
    assert len(found.layers) == len(network.layers)


def test_one_sample_is_enough(network: Network, plan: Plan, data: Data) -> None:
    one = Data(data.inputs[:1], None, data.name)
    method = LearnedRounding(learning=replace(QUICK, iterations=2))
    assert len(method.finalize(network, plan, one).layers) == len(network.layers)


def scaled(scale: float) -> nn.Sequential:
    """Layers whose outputs are as large as `scale`; the last divides by it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    with torch.no_grad():
        module[0].weight.mul_(scale)
        module[0].bias.mul_(scale)
        module[2].bias.mul_(scale)
        module[4].weight.div_(scale)
    return module.eval()


@pytest.mark.parametrize("fisher", [False, True])
def test_half_precision_learns_whatever_the_size_of_the_values(plan: Plan, fisher: bool) -> None:
    # Values above 255 have squares beyond half precision.
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(128, 3, generator=generator) @ torch.randn(3, 12, generator=generator)
    method = replace(FROM_NEAREST, fisher=fisher, held_out=0.25)
    errors = []
    for dtype in (torch.float32, torch.float16):
        data = Data(inputs.to(dtype), None, "normal")
        network = capture(scaled(1000.0).to(dtype), data.inputs[:2])
        _, reports = reports_of(method, network, with_options(plan, network, ["w2"]), data)
        assert all(report.iterations for report in reports)
        errors.append([report.start_error for report in reports])
    # The second unit enters as the first was learned.
    assert errors[1][0] == pytest.approx(errors[0][0], rel=0.01)
    assert reports[0].kept
    assert reports[0].learned_error < 0.9 * reports[0].start_error


def test_outputs_too_large_to_be_squared_are_refused_by_the_layers_name(plan: Plan) -> None:
    data = Data(torch.randn(32, 12, generator=torch.Generator().manual_seed(0)), None, "normal")
    network = capture(scaled(1e20), data.inputs[:2])
    with pytest.raises(
        NotFiniteError, match=r"what leaves layer '0' on data 'normal' is NaN or infinite, or"
    ):
        FROM_NEAREST.finalize(network, with_options(plan, network, ["w2"]), data)


class Answers(nn.Module):
    """Comparisons after a layer, where branches meet, and, where wanted, at the end."""

    def __init__(self, *, last: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 16)
        self.left, self.right, self.end = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        x = self.second((self.first(x) > 0).float()).relu()
        out: Tensor = self.end((self.left(x) > self.right(x)).float())
        return (out > 0).float() if self.last else out


@pytest.mark.parametrize("granularity", list(Granularity))
@pytest.mark.parametrize("fisher", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_comparisons_let_no_slope_through(
    plan: Plan, granularity: Granularity, fisher: bool, last: bool
) -> None:
    data = Data(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), None, "normal")
    network = capture(Answers(last=last).eval(), data.inputs[:2])
    method = replace(FROM_NEAREST, granularity=granularity, fisher=fisher)
    _, reports = reports_of(
        replace(method, learning=replace(QUICK, iterations=5)),
        network,
        with_options(plan, network, ["w2"]),
        data,
    )
    iterations = {name: report.iterations for report in reports for name in report.layers}
    if granularity is Granularity.BLOCK:
        assert iterations["first"] > 0
        assert iterations["left"] == iterations["right"] == 0
    if granularity is Granularity.NETWORK:
        assert (iterations["first"] == 0) == last


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"iterations": 0}, r"learned rounding has iterations 0; it is between 1 and"),
        ({"rate": float("nan")}, r"learned rounding has rate nan"),
        ({"warmup": 1.5}, r"learned rounding has warmup 1\.5; it is between 0 and 1"),
        ({"drop": -0.1}, r"learned rounding has drop -0\.1"),
    ],
)
def test_settings_outside_their_range_are_refused(given: dict[str, float], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        Learning(**given)  # type: ignore[arg-type]


def test_a_start_that_looks_at_the_float_network_only_is_refused() -> None:
    with pytest.raises(InputError, match=r"starts from GPTQ on quantized inputs; leave sequential set"):
        LearnedRounding(start=Gptq(sequential=False))
    with pytest.raises(InputError, match=r"holds out 1\.0 of the calibration data"):
        LearnedRounding(held_out=1.0)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.linear(x + y)
        return out


def test_a_network_of_two_inputs_is_refused(plan: Plan) -> None:
    one = torch.zeros(2, 4)
    network = capture(TwoInputs(), (one, one))
    chosen = with_options(plan, network, ["w2"])
    with pytest.raises(InputError, match=r"the network takes 2 inputs; this method needs a network of one"):
        LearnedRounding().finalize(network, chosen, Data(one, None, "zeros"))

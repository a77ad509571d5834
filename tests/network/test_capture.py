"""Capturing: the program computes what the module computes, for any batch, or says why it cannot."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, library, nn

from apportion.errors import InputError
from apportion.network import Network, capture


class Body(nn.Module):
    """A linear layer, a convolution, and a forward given as a function."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.tall = nn.Linear(8, 4)
        self.norm = nn.BatchNorm1d(4)
        self.function = forward

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def relative(given: Tensor, expected: Tensor) -> float:
    return float((given - expected).norm() / expected.norm())


@pytest.mark.parametrize("samples", [1, 3, 8])
def test_the_network_equals_the_module_at_any_batch_size(
    mixed: nn.Module, mixed_network: Network, images: Tensor, samples: int
) -> None:
    with torch.inference_mode():
        expected = mixed(images[:samples])
        # Folding batch norm reorders roundings: about 1e-7 per layer.
        assert relative(mixed_network.run(images[:samples]), expected) < 1e-5


def test_no_batch_norm_or_in_place_operation_is_left(mixed_network: Network) -> None:
    targets = [node.target for node in mixed_network.graph.nodes if node.op == "call_function"]
    assert not [target for target in targets if "batch_norm" in str(target) or target._schema.is_mutable]


def test_in_place_writes_into_views_are_seen_by_all_who_share_them() -> None:
    def forward(body: Body, x: Tensor) -> Tensor:
        y = body.linear(x)
        view = y[:, :2]
        y.mul_(2)
        view[:, 0] = 1.0
        view.relu_()
        return torch.cat([y, view], dim=1)

    module = Body(forward).eval()
    x = torch.randn(3, 4)
    with torch.inference_mode():
        torch.testing.assert_close(capture(module, x).run(x), module(x))


WRITES: dict[str, Callable[[Tensor], object]] = {
    "a part": lambda y: y[:, :2].copy_(2 * y[:, 2:]),
    "one for several": lambda y: y[:, :3].copy_(y[:, 3:]),
    "doubles": lambda y: y.copy_(3 * y.double()),
}


@pytest.mark.parametrize("name", WRITES)
def test_slopes_pass_through_assignments_to_parts_of_a_tensor(name: str) -> None:
    def forward(body: Body, x: Tensor) -> Tensor:
        y = body.linear(x) * 1
        WRITES[name](y)
        return y.square()

    module, x = Body(forward).eval(), torch.randn(3, 4)
    network = capture(module, x)
    weight = network.tensors["linear.weight"].clone().requires_grad_()
    network.run(x, tensors={"linear.weight": weight}).sum().backward()
    (expected,) = torch.autograd.grad(module(x).sum(), [module.linear.weight])
    torch.testing.assert_close(weight.grad, expected)


def test_a_module_that_writes_into_its_input_leaves_the_data_as_it_was() -> None:
    def forward(body: Body, x: Tensor) -> Tensor:
        x -= 0.5
        return body.linear(x)

    module = Body(forward).eval()
    x = torch.randn(3, 4)
    given = x.clone()
    network = capture(module, x)
    with torch.inference_mode():
        torch.testing.assert_close(network.run(x), module(given.clone()))
    assert torch.equal(x, given)


def test_a_single_example_is_enough_and_the_module_is_left_as_it_was() -> None:
    module = Body(lambda body, x: F.dropout(body.linear(x), 0.5, body.training)).train()
    network = capture(module, torch.randn(1, 4))
    assert module.training
    assert module.linear.training
    assert network.run(torch.randn(5, 4)).shape == (5, 4)


def test_logits_are_taken_from_a_dictionary_and_the_first_float_from_a_tuple() -> None:
    x = torch.randn(2, 4)
    both = {"hidden": lambda body, x: x * 2, "logits": lambda body, x: body.linear(x)}
    named = Body(lambda body, x: {name: function(body, x) for name, function in both.items()}).eval()
    tupled = Body(lambda body, x: (x.argmax(-1), body.linear(x), x * 2)).eval()
    with torch.inference_mode():
        for module in (named, tupled):
            torch.testing.assert_close(capture(module, x).run(x), module.linear(x))


def test_several_inputs_are_passed_in_order() -> None:
    module = Body(lambda body, x, y: body.linear(x) - y).eval()
    x, y = torch.randn(3, 4), torch.randn(3, 4)
    network = capture(module, (x, y))
    with torch.inference_mode():
        torch.testing.assert_close(network.run((x, y)), module(x, y))
    with pytest.raises(InputError, match="takes 2 inputs; 1 were given"):
        network.run(x)


def test_regions_without_gradients_or_autocast_are_inlined_and_let_gradients_pass() -> None:
    def forward(body: Body, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = body.linear(x)
        with torch.autocast("cpu", enabled=False):
            y = y * 2
        return y.detach() + 1

    module = Body(forward).eval()
    network = capture(module, torch.randn(2, 4))
    x = torch.randn(3, 4, requires_grad=True)
    output = network.run(x)
    torch.testing.assert_close(output, module(x))
    output.sum().backward()
    torch.testing.assert_close(x.grad, 2 * module.linear.weight.sum(0).expand(3, 4))


def test_fused_attention_is_captured_as_its_layers() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    network = capture(encoder, torch.randn(2, 5, 8))
    assert [layer.name for layer in network.layers] == [
        "self_attn.in_proj_weight",
        "self_attn.out_proj",
        "linear1",
        "linear2",
    ]
    assert torch.backends.mha.get_fastpath_enabled()


def branch_on_values(body: Body, x: Tensor) -> Tensor:
    if body.linear(x).sum() > 0:
        return x
    return body.linear(x)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (branch_on_values, "cannot capture the model: Could not guard on data-dependent expression"),
        (lambda body, x: torch.from_numpy(body.linear(x).numpy()), r"numpy\(\) is not supported"),
        (lambda body, x: body.linear(x).reshape(2, -1), "its code fixes the number of samples"),
        (lambda body, x: body.tall(x), "does not run on the given data, of shape .2, 4.: mat1 and mat2"),
        (lambda body, x: body.linear(x) + torch.rand(4), "its forward is random or keeps state"),
        (lambda body, x: F.dropout(body.linear(x), 0.5, True), "drops values at random .node dropout"),
        (
            lambda body, x: F.batch_norm(body.linear(x), None, None, training=True),
            "normalises by the statistics of the batch",
        ),
        (
            lambda body, x: torch.cond(x.sum() > 0, body.linear, lambda y: y * 2, (x,)),
            "uses cond, which cannot be captured",
        ),
        (lambda body, x: x * 2, "no layer to quantize"),
        (lambda body, x: body.linear(x).argmax(-1), "no floating-point tensor; return the logits"),
        (lambda body, x: body.linear(x).sum(), r"returns shape \(\) for 2 samples"),
        (
            lambda body, x: (body.linear(x) * 2j).imag,
            "argument of type complex, which cannot be stored; give",
        ),
        (lambda body, x: body.linear(x) / 0, "output on the given data is NaN or infinite"),
    ],
)
def test_what_cannot_be_captured_is_refused_in_one_paragraph_with_the_reason(
    forward: Callable[..., Any], message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        capture(Body(forward), torch.randn(2, 4))
    assert "\n" not in str(caught.value)


def test_the_refusal_names_the_line_of_the_users_code() -> None:
    with pytest.raises(InputError, match=re.escape(f"(at {__file__.split('/')[-1]}, line ") + r"\d+: if "):
        capture(Body(branch_on_values), torch.randn(2, 4))


def test_autocast_is_refused_because_it_depends_on_how_the_program_runs() -> None:
    def forward(body: Body, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return body.linear(x)

    with pytest.raises(InputError, match="autocast"):
        capture(Body(forward), torch.randn(2, 4))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_named(value: float) -> None:
    module = Body(lambda body, x: body.linear(x))
    module.linear.weight.data[1, 2] = value
    with pytest.raises(InputError, match=r"'linear.weight' has 1 values of 16 that are NaN or infinite"):
        capture(module, torch.randn(2, 4))


@pytest.mark.parametrize("dtype", [torch.complex128, torch.float8_e4m3fn, torch.uint16])
def test_a_table_of_a_type_that_cannot_be_stored_is_named(dtype: torch.dtype) -> None:
    module = Body(lambda body, x: body.linear(x) + body.table.to(torch.complex64).real)
    module.register_buffer("table", torch.ones(4).to(dtype))
    with pytest.raises(InputError, match=rf"'table' is of type {str(dtype).split('.')[1]}, which cannot be"):
        capture(module, torch.randn(2, 4))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.LazyLinear(3), r"'tall.weight' is of a lazy layer .* call the module once on a sample"),
        (
            nn.Linear(4, 3, device="meta"),
            r"'tall.weight' is on the device meta .* build the module",
        ),
    ],
)
def test_tensors_without_values_are_named(part: nn.Module, message: str) -> None:
    module = Body(lambda body, x: body.tall(body.linear(x)))
    module.tall = part
    with pytest.raises(InputError, match=message):
        capture(module, torch.randn(2, 4))


MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda maps: maps,
    "activated": lambda maps: F.batch_norm(maps, torch.zeros(4), torch.ones(4)).relu() * 2,
    "resized": lambda maps: F.interpolate(maps, scale_factor=2.0, mode="bilinear"),
    "pooled": lambda maps: F.avg_pool2d(F.pad(maps, (1, 1)), 2).log_softmax(1),
    "joined": lambda maps: torch.cat([maps, maps.chunk(2, dim=1)[0].sigmoid()], dim=1)[:, 1:],
}


class Segmenting(nn.Module):
    """Classes at every place of an image."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.after = nn.Conv2d(3, 4, 1), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.conv(x))


@pytest.mark.parametrize("name", MAPS)
def test_maps_with_their_classes_on_the_second_axis_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"classes must be on the last axis: return output.movedim\(1, -1\)"):
        capture(Segmenting(MAPS[name]), torch.randn(2, 3, 6, 6))


@pytest.mark.parametrize("after", [lambda maps: maps.movedim(1, -1), lambda maps: maps.flatten(1)])
def test_classes_of_every_place_on_the_last_axis_are_taken(after: Callable[[Tensor], Tensor]) -> None:
    module, x = Segmenting(after).eval(), torch.randn(2, 3, 6, 6)
    with torch.inference_mode():
        torch.testing.assert_close(capture(module, x).run(x), module(x))


PROBABILITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits: logits.softmax(-1),
    "of tokens": lambda logits: logits.view(-1, 2, 2).softmax(-1),
    "averaged": lambda logits: (logits.softmax(-1) + (3 * logits).softmax(-1)) / 2,
    "in half precision": lambda logits: logits.softmax(-1).bfloat16(),
}


@pytest.mark.parametrize("name", PROBABILITIES)
def test_probabilities_are_refused_because_the_loss_is_of_logits(name: str) -> None:
    # The softmax of what lies from 0 to 1 is nearly even, whatever the network answers.
    with pytest.raises(InputError, match=r"the model returns probabilities, .* return the logits"):
        capture(Body(lambda body, x: PROBABILITIES[name](body.linear(x))), torch.randn(3, 4))


@pytest.mark.parametrize("after", [Tensor.relu, Tensor.sigmoid, lambda logits: logits.log_softmax(-1)])
def test_outputs_that_only_resemble_probabilities_are_taken(after: Callable[[Tensor], Tensor]) -> None:
    module, x = Body(lambda body, x: after(body.linear(x))).eval(), torch.randn(3, 4)
    with torch.inference_mode():
        torch.testing.assert_close(capture(module, x).run(x), module(x))


def test_an_operator_that_is_not_pytorchs_own_is_named() -> None:
    @library.custom_op("apportion_test::twice", mutates_args=())
    def twice(x: Tensor) -> Tensor:
        return x * 2

    twice.register_fake(torch.empty_like)
    with pytest.raises(InputError, match=r"calls apportion_test.twice.default, which is not one of"):
        capture(Body(lambda body, x: twice(body.linear(x))), torch.randn(2, 4))


def test_a_mask_of_infinities_is_not_an_error() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))

        def forward(self, x: Tensor) -> Tensor:
            return (self.linear(x)[:, None] + self.mask).softmax(-1).sum(1)

    module = Masked().eval()
    x = torch.randn(2, 4)
    with torch.inference_mode():
        torch.testing.assert_close(capture(module, x).run(x), module(x))


def test_an_example_without_samples_is_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(0, 4\) holds no sample"):
        capture(Body(lambda body, x: body.linear(x)), torch.randn(0, 4))

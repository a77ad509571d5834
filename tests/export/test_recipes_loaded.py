"""Each recipe loads in its toolkit and gives the layers the planned bits, where the toolkit is installed."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from apportion.allocator import LayerPlan, Plan
from apportion.export import make_recipe

# The toolkits' own imports warn.
pytestmark = pytest.mark.filterwarnings("ignore")

PLANNED = {"conv": (5, None), "body": (4, 32), "middle": (3, None), "head": (6, None)}


class Net(nn.Module):
    """A convolution and three matrices."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 32, 3)
        self.body = nn.Linear(288, 64)
        self.middle = nn.Linear(64, 32)
        self.head = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.body(self.conv(x).flatten(1))))


INPUTS = torch.ones(2, 3, 5, 5)


@pytest.fixture
def planned(plan: Plan) -> Plan:
    """The bits and groups of `PLANNED`."""
    layers = []
    for name, (bits, group) in PLANNED.items():
        shape = tuple(Net().get_submodule(name).weight.shape)
        option = f"w{bits}g{group}" if group else f"w{bits}"
        layers.append(
            LayerPlan(name=name, shape=shape, option=option, size_bits=1, predicted_loss=0, mean_bits=1)
        )
    return plan.model_copy(update={"layers": tuple(layers)})


def test_torchao_quantizes_to_the_planned_integers(planned: Plan) -> None:
    pytest.importorskip("torchao")
    from torchao.core.config import config_from_dict
    from torchao.quantization import quantize_

    recipe = make_recipe(planned, "torchao", lower=True)
    assert list(recipe.lowered) == ["conv"]
    module = Net()
    quantize_(module, config_from_dict(json.loads(recipe.text)), filter_fn=None)
    for name, (bits, group) in PLANNED.items():
        weight = module.get_submodule(name).weight
        if name == "conv":
            assert type(weight) is nn.Parameter
            continue
        assert weight.target_dtype == getattr(torch, f"int{bits}")
        assert tuple(weight.block_size) == (1, group or weight.shape[1])
    assert module(INPUTS).shape == (2, 32)


def test_compressed_tensors_takes_the_planned_integers(planned: Plan) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    recipe = make_recipe(planned, "compressed-tensors", lower=True)
    module = Net()
    apply_quantization_config(module, QuantizationConfig.model_validate(json.loads(recipe.text)))
    assert getattr(module.conv, "quantization_scheme", None) is None
    for name in ("body", "middle", "head"):
        weights = module.get_submodule(name).quantization_scheme.weights
        assert (weights.num_bits, weights.group_size, weights.symmetric) == (*PLANNED[name], True)


def test_modelopt_quantizes_to_the_planned_integers(planned: Plan) -> None:
    pytest.importorskip("modelopt")
    import modelopt.torch.quantization as toolkit

    recipe = make_recipe(planned, "modelopt")
    module = toolkit.quantize(Net(), recipe.document, lambda module: module(INPUTS))
    for name, (bits, group) in PLANNED.items():
        layer = module.get_submodule(name)
        assert layer.weight_quantizer.num_bits == bits
        assert (layer.weight_quantizer.block_sizes or {}).get(-1) == group
        assert not layer.input_quantizer.is_enabled


def test_autoround_plans_the_same_integers(planned: Plan) -> None:
    pytest.importorskip("auto_round")
    from auto_round.compressors.utils import set_layer_config

    recipe = make_recipe(planned, "autoround", lower=True)
    config, *_ = set_layer_config(Net(), json.loads(recipe.text), "W4A16", torch.float16, (nn.Linear,), ())
    for name in ("body", "middle", "head"):
        bits, group = PLANNED[name]
        assert (config[name]["bits"], config[name]["group_size"]) == (bits, group or -1)


def test_nncf_compresses_to_the_planned_integers(planned: Plan) -> None:
    pytest.importorskip("nncf")
    import nncf

    recipe = make_recipe(planned, "nncf", lower=True)
    assert set(recipe.lowered) == {"conv", "middle", "head"}
    module = Net()
    for call in json.loads(recipe.text)["compress_weights"]:
        scope = nncf.IgnoredScope(**call.pop("ignored_scope"))
        mode = nncf.CompressWeightsMode(call.pop("mode"))
        data = nncf.Dataset([INPUTS])
        module = nncf.compress_weights(module, mode=mode, ignored_scope=scope, dataset=data, **call)
    hooks = {name: type(hook).__name__ for name, hook in module.named_modules() if "weight__0" in name}
    kinds = {name.split(".")[2].split(":")[0]: kind for name, kind in hooks.items() if name.endswith(".0")}
    assert kinds == {
        "conv": "INT8SymmetricWeightsDecompressor",
        "body": "INT4SymmetricWeightsDecompressor",
        "middle": "INT4SymmetricWeightsDecompressor",
        "head": "INT8SymmetricWeightsDecompressor",
    }
    assert module(INPUTS).shape == (2, 32)

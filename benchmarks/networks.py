"""The real networks and data of the benchmarks, split into what scores may see and what judges them."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from report import assets_folder

from apportion.network import Data, Network, capture, load_data

__all__ = ["LLAMA", "MOBILENET", "NETWORKS", "RESNET", "VIT", "Subject", "load_subject", "load_tied_llama"]

RESNET, MOBILENET, VIT = "cifar10_resnet20", "mobilenetv1_075_in1k", "vit_tiny_in1k"
NETWORKS = (RESNET, MOBILENET, VIT)
LLAMA = "babyllama105"
"""A language model; its samples are windows of tokens, and its labels the tokens that follow."""
WINDOW, JUDGING_WINDOWS = 256, 64


@dataclass(frozen=True)
class Subject:
    """A captured network, calibration data, and data that only judges."""

    name: str
    network: Network
    calibration: Data
    held_out: Data


def load_subject(name: str, samples: int, device: str = "cpu") -> Subject:
    """Load a network onto a device, with `samples` calibration inputs and the data that judges it."""
    models = _models()
    if name == LLAMA:
        calibration = _windows("tinystories_calib", samples)
        held_out = _windows("tinystories_test", JUDGING_WINDOWS)
    elif name == RESNET:
        calibration, held_out = _cifar(models, samples)
    else:
        calibration = _imagenet(models, name, "imagenet_sample1000_224.zip", samples)
        held_out = _imagenet(models, name, "imagenet_nips17_a500_224.zip", None)
    network = capture(models.load(name), calibration.inputs[:2])
    return Subject(name, network.to(device), calibration, held_out)


def load_tied_llama(samples: int, judging: int) -> Subject:
    """The language model with its table and its last layer as the one tensor that they were trained as."""
    module = _models().load(LLAMA)
    module.output.weight = module.tok_embeddings.weight
    calibration = _windows("tinystories_calib", samples)
    network = capture(module, calibration.inputs[:2])
    return Subject(LLAMA, network, calibration, _windows("tinystories_test", judging))


def _models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("asset_models", assets_folder() / "models.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"no models.py in {assets_folder()}: set APPORTION_ASSETS")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _windows(part: str, count: int) -> Data:
    """The first windows of a text that do not overlap."""
    with np.load(assets_folder() / "babyllama105.ids.npz") as arrays:
        tokens = torch.from_numpy(arrays[part].astype(np.int64))
    inputs = tokens[: count * WINDOW].view(count, WINDOW)
    labels = tokens[1 : count * WINDOW + 1].view(count, WINDOW)
    return Data(inputs, labels, f"{count} windows of {part}")


def _cifar(models: ModuleType, samples: int) -> tuple[Data, Data]:
    with np.load(assets_folder() / "cifar10_lossless.npz") as arrays:
        train = models.preprocess(RESNET, arrays["train_images"][:samples])
        test = np.concatenate([arrays["test_images"], arrays["extra_test_images"]])
        labels = np.concatenate([arrays["test_labels"], arrays["extra_test_labels"]])
    held_out = Data(models.preprocess(RESNET, test), torch.from_numpy(labels), f"{len(test)} test images")
    return Data(train, None, f"{samples} training images"), held_out


def _imagenet(models: ModuleType, name: str, archive: str, samples: int | None) -> Data:
    """Images of a zip; labels are in the file names, `..LLLL..` before the first underscore or suffix."""
    path = assets_folder() / archive
    data = load_data(str(path), limit=samples, mean=models.ZOO[name][1][0], std=models.ZOO[name][1][1])
    labels = None
    if samples is None:
        import zipfile

        names = sorted(each for each in zipfile.ZipFile(path).namelist() if each.endswith(".jpg"))
        labels = torch.tensor([int(each.rsplit("/", 1)[-1][5:9]) for each in names])
    return Data(data.inputs, labels, f"{len(data.inputs)} images of {archive.split('_224')[0]}")

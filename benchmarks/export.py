"""Exported networks: size, agreement with PyTorch, accuracy and speed in onnxruntime.

    python benchmarks/export.py
    python benchmarks/export.py cifar10_resnet20        measures this network again and keeps the others

Scores and plans see calibration data only; accuracies are of other data, computed by onnxruntime. Times are
medians of runs on one thread and one sample, in rounds over all forms of a network, so that what else
the machine does meets them alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from networks import LLAMA, MOBILENET, NETWORKS, RESNET, VIT, Subject, load_subject
from onnx import helper, numpy_helper
from report import RESULTS, Table, write_report

from apportion.allocator import Plan
from apportion.export import export_onnx, load, measure_latency, save_network
from apportion.export.onnx_builder import Builder
from apportion.export.onnx_file import filled, serialized
from apportion.export.onnx_graph import open_graph
from apportion.network import Network
from apportion.quantizer import parse_options
from apportion.reconstruct import finalize_nearest
from apportion.sensitivity import measure_profile, solve_plan

SAMPLES = {RESNET: 256, MOBILENET: 64, VIT: 16, LLAMA: 16}
JUDGED = {RESNET: 1184, MOBILENET: 200, VIT: 100, LLAMA: 32}
"""Samples for scores, and held-out samples in onnxruntime."""
COMPARED = 8
EIGHT, FOUR_LAYER = "w8", "4b per layer"
INTEGER_PLANS = (EIGHT, FOUR_LAYER)
"""Plans that are run by integer kernels too: those with one width for a layer."""
ROUNDS, RUNS = 15, 3
"""Rounds over all forms; each counts the best of a few runs, which other work on the machine spoils least."""
FLOAT, UNPACKED, PACKED, INTEGER = "float", "unpacked once", "unpacked at every run", "integer kernels"
BATCH = 25
POINT_LAYERS = ((16, 32), (32, 16), (64, 8))
"""Channels and side of the 3x3 convolutions that are timed with two points."""


def main() -> None:
    """Measure and write results/export.{json,md}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="*", default=[*NETWORKS, LLAMA])
    names = parser.parse_args().networks
    torch.set_num_threads(1)
    measured = {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            measured[name] = measure(name, Path(folder))
    points = measure_points()
    documents = {document["network"]: document for document in kept()} | measured
    write_page([documents[name] for name in (*NETWORKS, LLAMA) if name in documents], points)


def kept() -> list[dict[str, Any]]:
    """What was measured before."""
    path = RESULTS / "export.json"
    return json.loads(path.read_text())["data"]["networks"] if path.exists() else []


def measure(name: str, folder: Path) -> dict[str, Any]:
    """One network under all plans."""
    subject = load_subject(name, SAMPLES[name])
    network = subject.network
    content = float_content(network)
    accuracies = {"float": accuracy(session(content), subject)}
    rows = []
    for label, plan in plans(subject).items():
        run, path = folder / label, folder / f"{label}.onnx"
        save_network(run, network, plan, finalize_nearest(network, plan))
        written = export_onnx(run, path)
        sessions = {
            FLOAT: session(content),
            UNPACKED: session(path.read_bytes(), unpack=True),
            PACKED: session(path.read_bytes()),
        }
        integer = {}
        if label in INTEGER_PLANS:
            path = folder / "integer.onnx"
            integer["integer_difference"] = export_onnx(run, path, kernels="integer").difference
            integer["integer_kernels"] = kernels(path, folder)
            sessions[INTEGER] = session(path.read_bytes())
            integer["integer_accuracy"] = accuracy(sessions[INTEGER], subject)
        row = {
            "plan": label,
            "plan_bytes": written.planned_bytes,
            "packed_bytes": (run / "weights.safetensors").stat().st_size,
            "onnx_bytes": written.file_bytes,
            "graph_bytes": written.graph_bytes,
            "weights_over_plan": sum(layer.stored_bits for layer in written.layers)
            / sum(layer.planned_bits for layer in written.layers),
            "difference": difference(sessions[PACKED], load(run), subject),
            "accuracy": accuracy(sessions[UNPACKED], subject),
            "seconds": times(sessions, subject),
            **integer,
        }
        if name == RESNET and label == EIGHT:
            row["predicted_ms"] = predicted_ms(network, subject)
        print(name, row, flush=True)
        rows.append(row)
    return {
        "network": name,
        "float_bytes": len(content),
        "float_accuracy": accuracies["float"],
        "held_out": f"{JUDGED[name]} of {subject.held_out.name}",
        "rows": rows,
    }


def predicted_ms(network: Network, subject: Subject) -> float:
    """What the table of latencies says of the whole network with 8-bit weights."""
    inputs = subject.held_out.inputs[:1]
    return sum(each.median_ms for each in measure_latency(network, inputs, parse_options("w8")))


def plans(subject: Subject) -> dict[str, Plan]:
    """Every weight in 8 bits, and 4 and 3.5 stored bits in the mean."""
    eight = measure_profile(subject.network, subject.calibration, parse_options("w8"))
    scores = measure_profile(subject.network, subject.calibration, parse_options("w2..8"))
    return {
        EIGHT: solve_plan(*eight, "40b", "layer"),
        FOUR_LAYER: solve_plan(*scores, "4b", "layer"),
        "4b per channel": solve_plan(*scores, "4b", "channel"),
        "3.5b per channel": solve_plan(*scores, "3.5b", "channel"),
    }


def float_content(network: Network) -> bytes:
    """The float network in ONNX, by the same exporter."""
    weights = {}
    for layer in network.layers:
        tensor = numpy_helper.from_array(network.weight(layer).detach().numpy(), layer.weight)
        weights[layer.weight] = Builder(layer.name, "", tensors=[tensor])
    return serialized(filled(open_graph(network), weights))


def session(content: bytes, *, unpack: bool = False) -> onnxruntime.InferenceSession:
    """A session of one thread; with `unpack`, weights become floats when it is made."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    settings.log_severity_level = 3
    if unpack:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])


def outputs(made: onnxruntime.InferenceSession, inputs: torch.Tensor) -> np.ndarray:
    """What a session computes."""
    return made.run(None, {made.get_inputs()[0].name: inputs.numpy()})[0]


def accuracy(made: onnxruntime.InferenceSession, subject: Subject) -> float:
    """Share of right top-1 answers on held-out data."""
    judged = JUDGED[subject.name]
    inputs, labels = subject.held_out.inputs[:judged], subject.held_out.labels[:judged]
    right = 0
    for start in range(0, len(inputs), BATCH):
        answers = outputs(made, inputs[start : start + BATCH]).argmax(-1)
        right += int((answers == labels[start : start + BATCH].numpy()).sum())
    return right / labels.numel()


def difference(made: onnxruntime.InferenceSession, network: Network, subject: Subject) -> float:
    """Largest difference between logits of onnxruntime and PyTorch, on held-out data."""
    inputs = subject.held_out.inputs[:COMPARED]
    with torch.inference_mode():
        return float(np.abs(outputs(made, inputs) - network(inputs).numpy()).max())


def times(sessions: dict[str, onnxruntime.InferenceSession], subject: Subject) -> dict[str, list[float]]:
    """Seconds of every round on one sample, by session."""
    inputs = subject.held_out.inputs[:1]
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for index in range(ROUNDS + 1):
        for name, made in sessions.items():
            seconds = best(made, inputs)
            # The first round warms up.
            if index:
                found[name].append(seconds)
    return found


def best(made: onnxruntime.InferenceSession, inputs: torch.Tensor) -> float:
    """Seconds of the fastest of a few runs."""
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        outputs(made, inputs)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def kernels(path: Path, folder: Path) -> dict[str, int]:
    """Operators of the graph that onnxruntime runs after its own optimization."""
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimized.onnx")
    settings.log_severity_level = 3
    onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    return dict(Counter(node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node))


def measure_points() -> list[list[object]]:
    """Two 4-bit points of a convolution: summed as weights, or as channels of the output."""
    rows = []
    generator = np.random.default_rng(0)
    for channels, side in POINT_LAYERS:
        codes = generator.integers(-8, 8, (2, channels, channels, 3, 3)).astype(np.int8)
        steps = (generator.random((2, channels)) / 99).astype(np.float16)
        forms = {form: points_content(form, codes, steps, side) for form in ("weights", "channels")}
        sessions = {form: session(content) for form, content in forms.items()}
        inputs = torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))
        left, right = (outputs(made, inputs) for made in sessions.values())
        assert np.allclose(left, right, atol=1e-3)
        seconds: dict[str, list[float]] = {form: [] for form in forms}
        for _ in range(5 * ROUNDS):
            for form, made in sessions.items():
                seconds[form].append(best(made, inputs))
        medians = [1e3 * statistics.median(seconds[form]) for form in forms]
        sizes = [len(content) for content in forms.values()]
        rows.append([f"{channels} channels, {side} x {side}", *sizes, *medians, medians[1] / medians[0]])
    return rows


def points_content(form: str, codes: np.ndarray, steps: np.ndarray, side: int) -> bytes:
    """One convolution with two points in either form."""
    builder = Builder("layer", "v")
    channels = codes.shape[1]
    if form == "weights":
        points = []
        for index in range(2):
            stored = builder.integers(f"codes{index}", torch.from_numpy(codes[index]), 4)
            scale = builder.tensor(f"steps{index}", steps[index])
            points.append(builder.node("DequantizeLinear", [stored, scale], axis=0, output_dtype=1))
        builder.node("Conv", ["x", builder.node("Add", points)], pads=[1, 1, 1, 1])
    else:
        stored = builder.integers("codes", torch.from_numpy(codes.reshape(-1, *codes.shape[2:])), 4)
        scale = builder.tensor("steps", steps.reshape(-1))
        weight = builder.node("DequantizeLinear", [stored, scale], axis=0, output_dtype=1)
        wide = builder.node("Conv", ["x", weight], pads=[1, 1, 1, 1])
        shape = (1, 2, channels, side, side)
        axes = builder.constant(np.array([1], np.int64))
        builder.node("ReduceSum", [builder.reshape(wide, shape), axes], keepdims=0)
    shape = [1, channels, side, side]
    graph = helper.make_graph(
        builder.nodes,
        "points",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info(builder.nodes[-1].output[0], 1, shape)],
        builder.tensors,
    )
    model = helper.make_model(graph, ir_version=13, opset_imports=[helper.make_opsetid("", 25)])
    return serialized(model)


def write_page(documents: list[dict[str, Any]], points: list[list[object]]) -> None:
    """Write the page from what was measured."""
    sizes, quality, speed = [], [], []
    for document in documents:
        name = document["network"]
        quality.append([name, "float", None, 100 * document["float_accuracy"], None, None])
        for row in document["rows"]:
            stored = row["onnx_bytes"] - row["graph_bytes"]
            sizes.append(
                [
                    name, row["plan"], row["plan_bytes"], row["packed_bytes"], stored,
                    100 * (stored / row["plan_bytes"] - 1), row["graph_bytes"], row["onnx_bytes"],
                ]
            )  # fmt: skip
            quality.append(
                [
                    name, row["plan"], row["difference"], 100 * row["accuracy"],
                    row.get("integer_difference"),
                    100 * row["integer_accuracy"] if "integer_accuracy" in row else None,
                ]
            )  # fmt: skip
            seconds = row["seconds"]
            forms = (UNPACKED, PACKED, INTEGER)
            ratios = [paired(seconds[form], seconds[FLOAT]) if form in seconds else None for form in forms]
            low_bit = row["integer_kernels"].get("MatMulNBits", 0) if "integer_kernels" in row else None
            speed.append([name, row["plan"], 1e3 * statistics.median(seconds[FLOAT]), *ratios, low_bit])
    tables = [
        Table(
            "Bytes",
            [
                "network", "plan", "by the plan", "packed file", "stored in ONNX", "over the plan, %",
                "ONNX graph", "ONNX file",
            ],
            sizes,
        ),
        Table(
            "Agreement with PyTorch, and top-1 on held-out data in onnxruntime, %",
            [
                "network", "plan", "largest difference", "top-1", "difference, integer kernels",
                "top-1, integer kernels",
            ],
            quality,
        ),
        Table(
            "Time of one sample over that of the float network, same run: median (quartiles)",
            ["network", "plan", "float, ms", UNPACKED, PACKED, INTEGER, "MatMulNBits run"],
            speed,
        ),
        Table(
            "Two 4-bit points of a 3x3 convolution, summed as weights or as channels of the output",
            ["layer", "bytes, weights", "bytes, channels", "ms, weights", "ms, channels", "ratio of times"],
            points,
        ),
    ]  # fmt: skip
    held_out = [f"{document['network']}: {document['held_out']}" for document in documents]
    predictions = [
        f"The table of `allocate latency` gives {document['network']} with 8-bit weights "
        f"{row['predicted_ms']:.2f} ms for its layers together; the whole network, with all that is between "
        f"them, takes {1e3 * statistics.median(row['seconds'][PACKED]):.2f} ms."
        for document in documents
        for row in document["rows"]
        if "predicted_ms" in row
    ]
    worst = max(row["difference"] for document in documents for row in document["rows"])
    notes = [
        f"Largest difference between onnxruntime and PyTorch: {worst:.1e}. Plans `w8` have 8 bits and a "
        "step per channel everywhere; the others choose among w2 to w8. *Over the plan* compares what the "
        "file stores of weights, steps, orders, biases and float tensors with the plan; the graph (nodes, "
        "names and shapes) is in no budget, as the header of the packed file is not. It weighs most where "
        "layers are small and have many options.",
        "`unpacked once` sets onnxruntime's `session.disable_quant_qdq`: weights become floats when the "
        "session is made, and the network runs as the float one does. By default they stay packed and are "
        "unpacked at every run, which costs time and saves memory. `integer kernels` are those of "
        "`--kernels integer`, for linear layers; convolutions stay as they are. They round inputs to 8 bits.",
        f"Held-out data: {'; '.join(held_out)}. The top-1 of {LLAMA} is that of the next token. Scores are "
        f"of few samples ({', '.join(map(str, SAMPLES.values()))}) and weights are rounded to the "
        "nearest: this page is about the export, not about the best plans.",
        *predictions,
        "Points are exported as sums of weights: no larger, and one convolution in the place of two.",
    ]
    write_report(
        "export",
        "Exported networks in onnxruntime",
        "python benchmarks/export.py",
        tables,
        notes,
        {"networks": documents, "points": points},
    )


def paired(seconds: list[float], reference: list[float]) -> str:
    """Median and quartiles of the ratios of rounds."""
    ratios = sorted(one / other for one, other in zip(seconds, reference, strict=True))
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


if __name__ == "__main__":
    main()

"""Whether low-bit activations make the float target misleading, and whether GPTQ's trial tells.

    python benchmarks/float_target.py
    python benchmarks/float_target.py vit_tiny_in1k --pairs w8a8

One pair of options for all. GPTQ with and without its float target is fitted to most of the calibration data
and compared on the rest, as `Gptq.confirmed` does; then both are fitted to all of it and judged on other
data, and so is AdaQuant in one case. Every case is kept; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any
from unittest.mock import patch

import torch
from networks import RESNET, VIT, Subject, load_subject
from report import RESULTS, Table, write_report

from apportion.network import float_logits, mean_drop, measure_samples
from apportion.quantizer import parse_option_set
from apportion.reconstruct import AdaQuant, Gptq, Method, Nearest, measure_finalized
from apportion.reconstruct.gptq import JUDGED
from apportion.reconstruct.held_out import learned_and_judged, typical_ratio
from apportion.sensitivity import ActivationSettings, measure_profile, uniform_plans

SAMPLES = {RESNET: 256, VIT: 64}
PAIRS = {RESNET: ("w3a3", "w4a4", "w4a8", "w5a5", "w6a6", "w8a8"), VIT: ("w4a4", "w4a8", "w6a6", "w8a8")}
ADAQUANT = {(VIT, "w6a6")}
TARGETS = {"without": Gptq(float_target=False), "aimed": Gptq()}
KEPT = RESULTS / "float_target.json"


def main() -> None:
    """Measure the cases named and write results/float_target.{json,md}."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="NETWORK", help=", ".join(SAMPLES))
    parser.add_argument("--pairs", nargs="*")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found: dict[str, Any] = json.loads(KEPT.read_text())["data"]["cases"] if KEPT.exists() else {}
    for name in given.networks or SAMPLES:
        subject = load_subject(name, SAMPLES[name])
        for pair in given.pairs or PAIRS[name]:
            case = f"{name}, {pair}"
            if case not in found:
                found[case] = _measure(subject, pair)
                print(case, found[case], flush=True)
            _write(found)


def _measure(subject: Subject, pair: str) -> dict[str, Any]:
    network, data, options = subject.network, subject.calibration, parse_option_set(pair)
    activations = ActivationSettings(options.activations)
    profile, _ = measure_profile(network, data, options.weights, activations=activations)
    plan = uniform_plans(profile)[pair]
    learned, judged = learned_and_judged(len(data), JUDGED)
    fitted, others = data.part(slice(learned.stop)), data.part(slice(judged.start, None))
    reference, far = float_logits(network, others), float_logits(network, subject.held_out)

    def held_out(method: Method) -> float:
        return measure_finalized(network, method.finalize(network, plan, data), subject.held_out, far).loss

    # Each target is carried through, whatever a trial says.
    with patch.object(Gptq, "confirmed", lambda self, *given: self):
        trial = {
            target: measure_samples(
                network, others, gptq.finalize(network, plan, fitted).tensors(network), reference
            ).loss
            for target, gptq in TARGETS.items()
        }
        losses = {"GPTQ": {target: held_out(gptq) for target, gptq in TARGETS.items()}}
        if (subject.name, pair) in ADAQUANT:
            losses["AdaQuant"] = {target: held_out(AdaQuant(start=gptq)) for target, gptq in TARGETS.items()}
    difference = trial["aimed"] - trial["without"]
    return {
        "samples": len(data),
        "judged": len(others),
        "mean": mean_drop(difference).value,
        "standard_error": float(difference.double().std()) / math.sqrt(len(difference)),
        "typical_ratio": typical_ratio(trial["aimed"], trial["without"]),
        "nearest": held_out(Nearest()),
        "losses": losses,
    }


def _write(found: dict[str, Any]) -> None:
    header = ["case", "images that judge", "mean difference", "typical ratio"]
    trial = [
        [
            name,
            case["judged"],
            f"{case['mean']:+.4f} ± {case['standard_error']:.4f}",
            case["typical_ratio"],
            case["losses"]["GPTQ"]["aimed"] / case["losses"]["GPTQ"]["without"],
        ]
        for name, case in found.items()
    ]
    judged = [
        [f"{name}, {method}", case["nearest"], losses["without"], losses["aimed"]]
        for name, case in found.items()
        for method, losses in case["losses"].items()
    ]
    write_report(
        "float_target",
        "GPTQ's float target under low-bit activations",
        "python benchmarks/float_target.py",
        [
            Table("The trial, aimed against without", [*header, "ratio on held-out data"], trial),
            Table("KL on held-out data", ["case", "nearest", "without", "aimed"], judged),
        ],
        [
            "Layers aim at the float network's output, or at their float weights' output on the quantized "
            "network's inputs. On a quarter of the calibration data both are compared, fitted to the rest: "
            "the mean difference of their losses with its standard error, and the geometric mean of their "
            "ratios softened by the median loss, by which GPTQ and AdaQuant decide: above 1 the float "
            "target is given up. Held-out data is seen by neither.",
        ],
        {"cases": found},
    )


if __name__ == "__main__":
    main()

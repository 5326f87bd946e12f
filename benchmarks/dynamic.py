"""Dynamic INT8 of two vision transformers, compared with FP32 and ONNX Runtime's quantize_dynamic.

One is timm's ViT-Tiny with random weights, on random images; the other is the small one that
`benchmarks.hard_nets` trains, on its 500 drawn images. All files run on the CPU provider, on one
thread, in turns; of each the least time of the processor counts, so that other work hardly does.

    python -m benchmarks.dynamic                # both, and the verdicts
    python -m benchmarks.dynamic --work DIR     # keep weights and files in DIR
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime import quantization

from benchmarks import hard_nets, nets
from benchmarks.against_fp32 import (
    BATCHES,
    Array,
    Reference,
    Runner,
    Score,
    open_onnx,
    run_model,
    score_model,
)
from qconvert import api
from qconvert.backends.int8_class import int8_class

NETS = ("vit_tiny", "transformer")
IMAGE_COUNT, ROUNDS = 64, 40
MIN_SPEEDUP = 1.1 if int8_class().limit else 1.5
# The options of quantize_dynamic, which takes convolutions too unless the operators are named.
PRODUCTS = {"op_types_to_quantize": ["MatMul", "Gemm"]}
PEERS: dict[str, dict[str, object]] = {
    "quantize_dynamic": {},
    "quantize_dynamic, products": PRODUCTS,
    "quantize_dynamic, products, per channel": {**PRODUCTS, "per_channel": True},
    "quantize_dynamic, products, 7 bits": {**PRODUCTS, "per_channel": True, "reduce_range": True},
}
# The settings of qconvert, and whether it learns on images.
OURS: dict[str, tuple[dict[str, object], bool]] = {
    "qconvert --no-portable": ({"quantize.portable": False}, False),
    "qconvert": ({}, False),
    "qconvert --images": ({}, True),
}


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="where trained networks and files are kept")
    parser.add_argument("--net", choices=NETS, nargs="+", default=[*NETS])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the clock")
    arguments = parser.parse_args(words)
    logging.getLogger().setLevel(logging.ERROR)  # advice about graphs that are not cleaned yet
    print(f"ONNX Runtime {onnxruntime.__version__}, {int8_class().name}")
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.net:
            work = (arguments.work or Path(folder)) / name
            if name == "transformer":
                compare(name, hard_nets.prepare_reference(work, name), arguments.rounds)
            else:
                compare(name, prepare_vit(work), arguments.rounds)


def prepare_vit(work: Path) -> Reference:
    """Export ViT-Tiny with random weights and run it once; existing files are reused."""
    work.mkdir(parents=True, exist_ok=True)
    source, model = work / "source.onnx", work / "fp32.onnx"
    if not model.exists():
        torch.manual_seed(0)
        nets.export(nets.timm_net("vit_tiny_patch16_224"), source, optimize=True)
        api.export(source, output=model)
    shape = (2 * IMAGE_COUNT, *nets.IMAGE[1:])
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    name = onnxruntime.InferenceSession(model).get_inputs()[0].name
    np.savez(work / "calibration.npz", **{name: images[IMAGE_COUNT:]})
    images = images[:IMAGE_COUNT]
    logits = run_model(model, images)
    return Reference(model, images, logits.argmax(1), logits)


def compare(net: str, reference: Reference, rounds: int) -> None:
    """Print the scores and speeds of all files of a network, and the verdict."""
    files = {"FP32": reference.model, **quantize_all(reference.model)}
    scores = {name: score_model(path, reference) for name, path in files.items()}
    runners = {name: open_onnx(path, threads=1) for name, path in files.items()}
    speeds = speedups(runners, reference.images, rounds)
    print(f"\n{net}, {len(reference.images)} images")
    print(f"{'file':42}{'MB':>6}{'top-1':>7}{'agrees':>8}{'SQNR':>7}{'KL':>9}  speed at batch 1, 8")
    for name, score in scores.items():
        row = f"{name:42}{score.megabytes:6.2f}{score.top1:7.1f}{score.agrees:8.1f}"
        gains = ", ".join(f"{speed:.2f}x" for speed in speeds[name])
        print(f"{row}{score.sqnr:7.2f}{score.kl:9.5f}  {gains}", flush=True)
    print_verdict(net, scores, speeds)


def speedups(runners: Mapping[str, Runner], images: Array, rounds: int) -> dict[str, Array]:
    """Return the speedup of each runner over FP32, for each batch size."""
    seconds = {name: np.full(len(BATCHES), np.inf) for name in runners}
    for at, batch in enumerate(BATCHES):
        for _ in range(rounds):
            for name, run in runners.items():
                run(images[:batch])  # the others have evicted this one from the CPU caches
                started = time.process_time()
                run(images[:batch])
                seconds[name][at] = min(seconds[name][at], time.process_time() - started)
    return {name: seconds["FP32"] / own for name, own in seconds.items()}


def print_verdict(net: str, scores: Mapping[str, Score], speeds: Mapping[str, Array]) -> None:
    """Print whether the default is fast enough, and as right as quantize_dynamic."""
    peer = scores["quantize_dynamic"].sqnr
    per_channel = scores["quantize_dynamic, products, per channel"].sqnr
    claims = {
        f"at least {MIN_SPEEDUP} times as fast as FP32": speeds["qconvert"].min() >= MIN_SPEEDUP,
        "SQNR at least that of quantize_dynamic": scores["qconvert"].sqnr >= peer,
        "with --no-portable at least that per channel": scores["qconvert --no-portable"].sqnr
        >= per_channel,
    }
    missed = [claim for claim, held in claims.items() if not held]
    print(f"{net}: {'MISSED ' + ', '.join(missed) if missed else 'every aim reached'}")


def quantize_all(model: Path) -> dict[str, Path]:
    """Quantize the model with both tools, and return the files by name."""
    paths = {name: model.with_name(f"peer-{at}.onnx") for at, name in enumerate(PEERS)}
    for name, options in PEERS.items():
        quantization.quantize_dynamic(model, paths[name], **options)
    for at, (name, (settings, learns)) in enumerate(OURS.items()):
        paths[name] = model.with_name(f"qconvert-{at}.onnx")
        images = {"images": model.with_name("calibration.npz")} if learns else {}
        api.quantize(
            model, output=paths[name], precision="int8-dynamic", settings=settings, **images
        )
    return paths


if __name__ == "__main__":
    main(sys.argv[1:])

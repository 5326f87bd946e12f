"""INT8 with the runtimes' defaults on this CPU, compared with OpenVINO and NNCF.

On x86 without VNNI, kernels add products of bytes in saturating 16 bits, so a file may be right on
one machine and wrong on another. Every tool calibrates EfficientNet-Lite0 on the same 200 images;
the files are compared with ONNX Runtime's FP32 on 300 others, and take turns under the clock.

    python -m benchmarks.any_cpu                          # all files, and the verdict
    python -m benchmarks.any_cpu --work DIR --rounds 30   # keep the files in DIR
    python -m benchmarks.any_cpu --work DIR --net lite2   # what pair limits cost another network
"""

import argparse
import contextlib
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization

from benchmarks.against_fp32 import (
    BATCHES,
    THREADS,
    Array,
    Reference,
    Runner,
    open_onnx,
    run_chunks,
    speedups,
    sqnr_db,
)
from benchmarks.quantization import (
    EVALUATION,
    RESIZES,
    ROUNDS,
    Reader,
    prepare_reference,
    quantize_command,
    run_python,
)
from qconvert.backends.int8_class import int8_class
from tests.any_cpu import environment

EMULATED, EMULATED_IMAGES = "Haswell", 20
COMPARED_IMAGES = 40
MIN_SQNR, MIN_AGREEMENT, MIN_SPEEDUP = 25.3, 98.8, 1.5
MIN_DEMO_SPEEDUP, MAX_DROP = 1.25, 0.2
EXACT = " exact"  # with `session.x64quantprecision`
PORTABLE = "qconvert portable, default"
OPTIONS: dict[str, tuple[object, ...]] = {
    "qconvert --no-portable, none": ("--no-portable", "--effort", "none"),
    "qconvert --no-portable, default": ("--no-portable",),
    "qconvert 7 bits, none": ("--weight-bits", 7, "--effort", "none"),
    "qconvert 7 bits, default": ("--weight-bits", 7),
    "qconvert portable, none": ("--portable", "--effort", "none"),
    PORTABLE: ("--portable",),
}


@dataclass(frozen=True)
class Row:
    """How near to FP32 the answers of one file are; shares in percent, SQNR in dB."""

    sqnr: float
    agrees: float
    top1: float


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="where prepared files are kept")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the clock; 0 for no speed")
    parser.add_argument("--net", choices=RESIZES, default="lite0")
    arguments = parser.parse_args(words)
    if not EVALUATION.is_dir():
        print("Any CPU: not measured, the images are not here (eval of imagenet-500)")
        return
    with tempfile.TemporaryDirectory() as folder:
        work = (arguments.work or Path(folder)) / arguments.net
        reference = prepare_reference(work, arguments.net)
        if arguments.net != "lite0":
            compare_portable(arguments.net, reference)
            return
        files = prepare_files(reference.model)
        runners = open_all(files)
        rows = {name: rate(run, reference) for name, run in runners.items()}
        rounds = arguments.rounds
        speeds = speedups(runners, "FP32", reference.images, rounds) if rounds else {}
        print_table(rows, speeds, rounds)
        print_verdict(rows, speeds, same_bits(runners, reference.images))
        print_emulated(files[PORTABLE], reference)
        print_demo(work)


def prepare_files(model: Path) -> dict[str, Path]:
    """Quantize the model with all tools; existing files are reused."""
    logging.getLogger().setLevel(logging.ERROR)  # ORT's advice is about graphs not cleaned yet
    files = {"FP32": model}
    for bits in (8, 7):
        path = files[f"ORT quantize_static, {bits} bits"] = model.with_name(f"ort-{bits}.onnx")
        if not path.exists():
            quantization.quantize_static(
                model,
                path,
                Reader(model),
                per_channel=True,
                reduce_range=bits == 7,
                activation_type=quantization.QuantType.QUInt8,
            )
    files.update({name: quantize(model, name, "lite0") for name in OPTIONS})
    for bits in (8, 7):
        path = files[f"NNCF, {bits} bits"] = model.with_name(f"nncf-{bits}.xml")
        if not path.exists():
            quantize_by_nncf(model, path, bits)
    return files


def quantize(model: Path, name: str, net: str) -> Path:
    """Quantize with qconvert; the results of other commands are reused."""
    path = model.with_name(re.sub(r"\W+", "-", name) + ".onnx")
    if not path.exists():
        command = quantize_command(model, path, "--backend", "cpu", *OPTIONS[name], net=net)
        run_python(*command, cache=str(model.parent / "cache"))
    return path


def quantize_by_nncf(model: Path, path: Path, bits: int) -> None:
    """Quantize as OpenVINO's guide does; 7 bits are NNCF's remedy for CPUs without VNNI."""
    import nncf
    import openvino
    from nncf.quantization.advanced_parameters import OverflowFix

    images = [next(iter(feeds.values())) for feeds in iter(Reader(model).get_next, None)]
    fix = OverflowFix.ENABLE if bits == 7 else None
    with contextlib.redirect_stdout(None):
        quantized = nncf.quantize(
            openvino.Core().read_model(model),
            nncf.Dataset(images),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(images),
            advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=fix),
        )
    openvino.save_model(quantized, path)


def open_all(files: Mapping[str, Path]) -> dict[str, Runner]:
    """Open all files in their runtimes, and some of them in both."""
    runners: dict[str, Runner] = {}
    for name, path in files.items():
        if path.suffix == ".onnx":
            runners[name] = open_onnx(path)
            if "8 bits" in name or "portable" in name:
                runners[name + EXACT] = open_onnx(path, exact=True)
    for name in ("FP32", "NNCF, 8 bits", "NNCF, 7 bits", "qconvert --no-portable, default"):
        runners[f"OpenVINO: {name}"] = open_openvino(files[name])
    runners[f"OpenVINO: {PORTABLE}"] = open_openvino(files[PORTABLE])
    return runners


def open_openvino(path: Path) -> Runner:
    """Open a file with OpenVINO's defaults for low latency."""
    import openvino

    options = {"INFERENCE_NUM_THREADS": THREADS, "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(path, "CPU", options).create_infer_request()

    def run(images: Array) -> Array:
        logits: Array = request.infer([images], share_inputs=True)[0]
        return logits

    return run


def rate(run: Runner, reference: Reference) -> Row:
    logits = run_chunks(run, reference.images)
    classes = logits.argmax(1)
    agrees = 100 * float((classes == reference.logits.argmax(1)).mean())
    top1 = 100 * float((classes == reference.labels).mean())
    return Row(sqnr_db(reference.logits, logits), agrees, top1)


def print_table(rows: Mapping[str, Row], speeds: Mapping[str, Array], rounds: int) -> None:
    batches = " and ".join(map(str, BATCHES))
    print(f"\nEfficientNet-Lite0 on {int8_class().name}, {THREADS} threads, 300 images")
    print(f"speed against ONNX Runtime's FP32 at batch {batches}, best of {rounds} turns")
    print(f"{'file':48}{'SQNR':>6}{'agrees':>8}{'top-1':>7}{'speed':>14}")
    for name, row in rows.items():
        speed = "".join(f"{gain:6.2f}x" for gain in speeds.get(name, ()))
        print(f"{name:48}{row.sqnr:6.2f}{row.agrees:8.1f}{row.top1:7.1f}{speed}")


def same_bits(runners: Mapping[str, Runner], images: Array) -> bool:
    """Whether the portable file answers the same with and without the exact kernels."""
    answers = [
        run_chunks(runners[name], images[:COMPARED_IMAGES]) for name in (PORTABLE, PORTABLE + EXACT)
    ]
    return np.array_equal(*answers)


def print_verdict(rows: Mapping[str, Row], speeds: Mapping[str, Array], is_equal: bool) -> None:
    row = rows[PORTABLE]
    claims = {
        f"at least {MIN_SQNR} dB": row.sqnr >= MIN_SQNR,
        f"agrees on {MIN_AGREEMENT} %": row.agrees >= MIN_AGREEMENT,
        f"same bits with exact kernels, {COMPARED_IMAGES} images": is_equal,
    }
    if speeds:
        claims[f"{MIN_SPEEDUP}x FP32 at batch 1"] = speeds[PORTABLE][0] >= MIN_SPEEDUP
    print_claims(PORTABLE, claims)


def print_claims(name: str, claims: Mapping[str, bool]) -> None:
    for claim, is_reached in claims.items():
        print(f"{name}: {'reached' if is_reached else 'MISSED'}: {claim}")


def print_emulated(path: Path, reference: Reference) -> None:
    """Print whether an emulated CPU gives the answers of this one."""
    if reason := environment.missing(EMULATED):
        print(f"{PORTABLE} on {EMULATED}: not run, {reason}")
        return
    model = onnx.load(path)
    images = {model.graph.input[0].name: reference.images[:EMULATED_IMAGES]}
    file = {"": environment.File(model, images)}
    with tempfile.TemporaryDirectory() as folder:
        native, emulated = (
            next(iter(environment.run_files(cpu, file, Path(folder))[""].values()))
            for cpu in (environment.HOST, EMULATED)
        )
    same = f"the answers of this CPU on {EMULATED_IMAGES} images"
    claim = {f"{same}, within a millionth": np.allclose(native, emulated, rtol=0, atol=1e-6)}
    print_claims(f"{PORTABLE} on {EMULATED}", claim)
    print(f"largest difference {np.abs(native - emulated).max():.1e}")


def print_demo(work: Path) -> None:
    """Print how much faster INT8 is on the demo's network."""
    command = [sys.executable, "-m", "qconvert", "demo", "--json", "-q", "-o", str(work / "demo")]
    variables = {**os.environ, "QCONVERT_CACHE_DIR": str(work / "cache")}
    process = subprocess.run(command, capture_output=True, text=True, check=False, env=variables)
    if process.returncode:
        raise SystemExit(process.stderr)
    variants: list[dict[str, Any]] = json.loads(process.stdout)["variants"]
    int8 = next(variant for variant in variants if variant["precision"] == "int8")
    gain = int8["latency"][0]["speedup"]
    claim = f"{MIN_DEMO_SPEEDUP}x FP32 at batch 1"
    print_claims(f"demo, {gain:.2f}x", {claim: gain >= MIN_DEMO_SPEEDUP})


def compare_portable(net: str, reference: Reference) -> None:
    """Print how many labels the portable file misses that exact 8 bits do not."""
    rows = {
        name: rate(open_onnx(quantize(reference.model, name, net), exact=True), reference)
        for name in ("qconvert --no-portable, default", PORTABLE)
    }
    fp32 = 100 * float((reference.logits.argmax(1) == reference.labels).mean())
    print(f"\n{net}, {len(reference.labels)} images, FP32 {fp32:.1f} % top-1, exact kernels")
    for name, row in rows.items():
        print(f"{name:48}{row.sqnr:6.2f}{row.agrees:8.1f}{row.top1:7.1f}")
    exact, portable = rows.values()
    drop = exact.top1 - portable.top1
    claim = f"top-1 at most {MAX_DROP} points below exact 8 bits"
    print_claims(f"{net}, {drop:+.1f} points", {claim: drop <= MAX_DROP})


if __name__ == "__main__":
    main(sys.argv[1:])

"""Run all steps on one network, as a user would type them, and return their outcomes."""

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from benchmarks.zoo.entry import Entry
from benchmarks.zoo.peer import peer_db
from benchmarks.zoo.reference import quantized_input_db, rtx_build_error, run_error

CALIBRATION, EVALUATION = 16, 8
# Short benchmarks: speed does not matter here.
QUICK = ["--batch-sizes", "1", "--seconds", "0.01", "--set", "bench.rounds=3"]
BACKENDS, PRECISIONS = ("cpu", "tensorrt-rtx"), ("fp32", "fp16", "int8")
TEXT = 400
# A result below this SQNR in dB needs an explanation.
POOR = 10
MODEL = "model.onnx"
Result = dict[str, Any]


def trial(name: str, entry: Entry, work: Path) -> Result:
    """Run every step in the folder `work`, and return the outcomes."""
    started = time.monotonic()
    result: Result = {"name": name, "family": entry.family, "steps": {}, "variants": {}}
    for file, rows, seed in (("calibration", CALIBRATION, 1), ("evaluation", EVALUATION, 2)):
        np.savez(work / f"{file}.npz", **entry.feeds(rows, seed))
    model = _model(entry, work, result["steps"])
    if model is None:
        return _finish(result, started)
    result.update(_describe(model))
    if _build(result, entry, (BACKENDS, PRECISIONS), work):
        # One failure ends the whole build, so build the variants one by one.
        for backend, precision in itertools.product(BACKENDS, PRECISIONS):
            _build(result, entry, ((backend,), (precision,)), work)
    feeds = entry.feeds(EVALUATION, 2)
    result["run_error"] = run_error(model, feeds)
    result["quantized_input_db"] = (
        quantized_input_db(model, feeds) if not result["run_error"] else None
    )
    scores = [result["variants"].get(f"{backend}-int8", {}).get("sqnr_db") for backend in BACKENDS]
    if any(score is not None and score < POOR for score in scores):
        result["peer_db"] = peer_db(work / "build" / MODEL, entry.feeds(CALIBRATION, 1), feeds)
    if "tensorrt-rtx-fp32" not in result["variants"]:
        result["rtx_error"] = rtx_build_error(model, entry)
    return _finish(result, started)


def _build(result: Result, entry: Entry, targets: tuple[Sequence[str], ...], work: Path) -> int:
    """Build engines, record their outcome, and return the exit code."""
    backends, precisions = targets
    step = "build" if len(backends) > 1 else f"{backends[0]}-{precisions[0]}"
    options = ["--backend", ",".join(backends), "--precision", ",".join(precisions)]
    options += ["--images", work / "calibration.npz", "--eval", work / "evaluation.npz"]
    options += [*QUICK, *_inputs(entry), "-o", work / step]
    options += entry.options
    model = work / MODEL
    result["steps"][step] = command(["build", model, *options], work)
    if (work / step / "report.json").is_file():
        report = json.loads((work / step / "report.json").read_text())
        result["variants"] |= {variant["name"]: _variant(variant) for variant in report["variants"]}
    code: int = result["steps"][step]["code"]
    return code


def _model(entry: Entry, work: Path, steps: Result) -> Path | None:
    """Return the ONNX file: written by the entry, or exported from PyTorch with a parity check."""
    model = work / MODEL
    if not isinstance(entry.source, str):
        return entry.source(model)
    options = [*_inputs(entry), "--images", work / "calibration.npz", "-o", model]
    steps["export"] = command(["export", entry.source, *options], work)
    return model if model.is_file() else None


def _inputs(entry: Entry) -> list[str]:
    specs = [spec for spec in entry.inputs if spec.shape]
    return [word for spec in specs for word in ("--input", spec.option())]


def command(words: Sequence[str | Path], work: Path) -> Result:
    """Run qconvert, and return its exit code, its error message and its duration."""
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-m", "qconvert", *map(str, words)],
        env={**os.environ, "QCONVERT_CACHE_DIR": str(work / "cache"), "QCONVERT_NO_PROGRESS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - started
    (work / f"{len(list(work.glob('*.log')))}-{words[0]}.log").write_text(process.stderr)
    error = "" if process.returncode == 0 else _last_error(process.stderr.replace(f"{work}/", ""))
    return {"code": process.returncode, "seconds": round(seconds, 1), "error": error}


def _last_error(text: str) -> str:
    """Return the last error of a command, or the end of its traceback."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
    message = lines[starts[-1] :] if starts else lines[-6:]
    return " ".join(" ".join(message).split())[:TEXT]


def _describe(model: Path) -> Result:
    proto = onnx.load(model, load_external_data=False)
    opset = next((opset_id.version for opset_id in proto.opset_import if opset_id.domain == ""), 0)
    operators = Counter(node.op_type for node in proto.graph.node)
    return {"opset": opset, "nodes": len(proto.graph.node), "operators": operators.most_common(8)}


def _variant(variant: Mapping[str, Any]) -> Result:
    accuracy = variant["accuracy"] or {}
    reasons = Counter(f"{node['op']}: {node['reason']}" for node in variant["unquantized"])
    return {
        "sqnr_db": accuracy.get("sqnr_db"),
        "cosine": accuracy.get("cosine"),
        "images": accuracy.get("n"),
        "quantized": variant["quantized"],
        "candidates": variant["candidates"],
        "unquantized": reasons.most_common(),
        "notes": [*variant["notes"], *accuracy.get("notes", ())],
        "bytes": variant["engine"] and variant["engine"]["bytes"],
    }


def _finish(result: Result, started: float) -> Result:
    result["seconds"] = round(time.monotonic() - started, 1)
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000
    return result

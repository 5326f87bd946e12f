"""One network through all steps, as a user would type them; what came of each is returned."""

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
from benchmarks.zoo.reference import opens, rounded_input_db, rtx_builds

CALIBRATION, EVALUATION = 16, 8
# Quick to time: what is fast is no question here.
QUICK = ["--batch-sizes", "1", "--seconds", "0.01", "--set", "bench.rounds=3"]
BACKENDS, PRECISIONS = ("cpu", "tensorrt-rtx"), ("fp32", "fp16", "int8")
TEXT = 400
# Below so many dB an explanation is due.
POOR = 10
MODEL = "model.onnx"
Told = dict[str, Any]


def trial(name: str, entry: Entry, work: Path) -> Told:
    """Run every step in the folder `work`, and return what became of it."""
    started = time.monotonic()
    found: Told = {"name": name, "family": entry.family, "steps": {}, "variants": {}}
    for file, rows, seed in (("calibration", CALIBRATION, 1), ("evaluation", EVALUATION, 2)):
        np.savez(work / f"{file}.npz", **entry.feeds(rows, seed))
    model = _model(entry, work, found["steps"])
    if model is None:
        return _ended(found, started)
    found.update(_about(model))
    if _built(found, entry, (BACKENDS, PRECISIONS), work):
        # One that fails ends the whole build: which of them would not?
        for each in itertools.product(BACKENDS, PRECISIONS):
            _built(found, entry, ((each[0],), (each[1],)), work)
    feeds = entry.feeds(EVALUATION, 2)
    found["opens"] = opens(model, feeds)
    found["rounded_input_db"] = rounded_input_db(model, feeds) if not found["opens"] else None
    scores = [found["variants"].get(f"{each}-int8", {}).get("sqnr_db") for each in BACKENDS]
    if any(each is not None and each < POOR for each in scores):
        found["peer_db"] = peer_db(work / "build" / MODEL, entry.feeds(CALIBRATION, 1), feeds)
    if "tensorrt-rtx-fp32" not in found["variants"]:
        found["rtx_original"] = rtx_builds(model, entry)
    return _ended(found, started)


def _built(found: Told, entry: Entry, wanted: tuple[Sequence[str], ...], work: Path) -> int:
    """Build engines, put down what became of them, and return the exit code."""
    backends, precisions = wanted
    step = "build" if len(backends) > 1 else f"{backends[0]}-{precisions[0]}"
    options = ["--backend", ",".join(backends), "--precision", ",".join(precisions)]
    options += ["--images", work / "calibration.npz", "--eval", work / "evaluation.npz"]
    options += [*QUICK, *_inputs(entry), "-o", work / step]
    options += entry.options
    model = work / MODEL
    found["steps"][step] = command(["build", model, *options], work)
    if (work / step / "report.json").is_file():
        report = json.loads((work / step / "report.json").read_text())
        found["variants"] |= {each["name"]: _variant(each) for each in report["variants"]}
    code: int = found["steps"][step]["code"]
    return code


def _model(entry: Entry, work: Path, steps: Told) -> Path | None:
    """Return the ONNX file: made, or exported from PyTorch with the parity that goes with it."""
    model = work / MODEL
    if not isinstance(entry.source, str):
        return entry.source(model)
    options = [*_inputs(entry), "--images", work / "calibration.npz", "-o", model]
    steps["export"] = command(["export", entry.source, *options], work)
    return model if model.is_file() else None


def _inputs(entry: Entry) -> list[str]:
    shaped = [each for each in entry.inputs if each.shape]
    return [word for each in shaped for word in ("--input", each.option())]


def command(words: Sequence[str | Path], work: Path) -> Told:
    """Run qconvert, and return its exit code, what it said at the end, and how long it took."""
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
    said = "" if process.returncode == 0 else _complaint(process.stderr.replace(f"{work}/", ""))
    return {"code": process.returncode, "seconds": round(seconds, 1), "said": said}


def _complaint(text: str) -> str:
    """Return the error that a command ended with, or the end of its traceback."""
    lines = text.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
    said = lines[starts[-1] :] if starts else lines[-6:]
    return " ".join(" ".join(said).split())[:TEXT]


def _about(model: Path) -> Told:
    proto = onnx.load(model, load_external_data=False)
    opset = next((each.version for each in proto.opset_import if each.domain == ""), 0)
    operators = Counter(node.op_type for node in proto.graph.node)
    return {"opset": opset, "nodes": len(proto.graph.node), "operators": operators.most_common(8)}


def _variant(told: Mapping[str, Any]) -> Told:
    scored = told["accuracy"] or {}
    left = Counter(f"{each['op']}: {each['reason']}" for each in told["unquantized"])
    return {
        "sqnr_db": scored.get("sqnr_db"),
        "cosine": scored.get("cosine"),
        "images": scored.get("n"),
        "quantized": told["quantized"],
        "candidates": told["candidates"],
        "left": left.most_common(),
        "notes": [*told["notes"], *scored.get("notes", ())],
        "bytes": told["engine"] and told["engine"]["bytes"],
    }


def _ended(found: Told, started: float) -> Told:
    found["seconds"] = round(time.monotonic() - started, 1)
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1000
    return found

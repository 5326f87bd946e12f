"""The reproducible facts of a run folder, and its incomplete or leftover files."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from qconvert.calibrate.calibration import load_calibration
from qconvert.core import config_file
from qconvert.core.cache import HASHES_FILE, KEY_FILE
from qconvert.report import json_file

TOP = {
    "run.toml", "model.onnx", "classes.txt", "calibration", "engines", "analysis", "report.json",
    "report.md", "report.html", "card.md",
}  # fmt: skip
# Fields of a report that differ each time.
TIMES = ("created", "seconds", "command")


def stable_facts(run: Path) -> dict[str, Any]:
    """Return the sizes, accuracies and hashes of a run: everything that timing does not affect.

    TensorRT may build different bytes from the same graph, so its engines have no hash here.
    """
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    facts = {
        key: report[key] for key in ("baseline", "baseline_bytes", "calibration", "evaluation")
    }
    for variant in report["variants"]:
        engine = variant["engine"]
        fields = ("accuracy", "quantized", "candidates", "unquantized", "by_precision")
        facts[variant["name"]] = {
            **{key: variant[key] for key in fields},
            **{key: engine[key] for key in ("bytes", "ratio", "files")},
            "sha256": engine["sha256"] if variant["backend"] == "cpu" else None,
        }
    return {**facts, **hashes(run, "*.onnx"), **hashes(run, "plan.json")}


def stable_report(run: Path) -> dict[str, Any]:
    """Return the report of a run without times and without marks of cached steps."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    for variant in report["variants"]:
        variant["engine"].pop("stored")
    return {key: value for key, value in report.items() if key not in TIMES}


def hashes(folder: Path, pattern: str) -> dict[str, str]:
    """Return the hash of every visible file that matches a pattern."""
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in sorted(folder.rglob(pattern))
        if path.is_file() and not hidden(path, folder)
    }


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def hidden(path: Path, below: Path) -> bool:
    """Return whether a path is hidden, or in a hidden folder."""
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def leftovers(run: Path) -> list[str]:
    """Return the hidden files of a run folder."""
    paths = (path.relative_to(run) for path in run.rglob(".*"))
    return sorted(str(path) for path in paths)


def incomplete_parts(run: Path) -> list[str]:
    """Return the visible files of a run folder that are incomplete."""
    if not run.exists():
        return []
    return list(_find_incomplete(run))


def _find_incomplete(run: Path) -> Iterator[str]:
    visible = [path for path in run.iterdir() if not path.name.startswith(".")]
    yield from (f"{path.name}: stray" for path in visible if path.name not in TOP)
    readers = {
        "run.toml": config_file.load,
        "model.onnx": onnx.load,
        "calibration/calibration.npz": load_calibration,
        "report.json": json_file.load,
    }
    for name, read in readers.items():
        if (run / name).exists() and (why := _read_problem(read, run / name)):
            yield f"{name}: {why}"
    for name in ("report.md", "card.md", "calibration/images.txt"):
        if (run / name).exists() and not (run / name).read_bytes().endswith(b"\n"):
            yield f"{name}: cut short"
    for engine in sorted(run.glob("engines/[!.]*")):
        yield from (f"{engine.name}: {why}" for why in _engine(engine))
    if (run / "report.json").is_file():
        yield from _report_problems(run)


def _engine(folder: Path) -> Iterator[str]:
    """Yield the differences between an engine and its recorded hashes."""
    try:
        content = json.loads((folder / HASHES_FILE).read_text(encoding="utf-8"))
        engine = json.loads((folder / "engine.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield str(error)
        return
    digests = {path.name: sha256(path) for path in folder.iterdir()}
    if {
        name: digest for name, digest in digests.items() if name not in (HASHES_FILE, KEY_FILE)
    } != content:
        yield "its files differ from the recorded hashes"
    for name in {*engine["files"], engine["graph"]}:
        if name not in digests:
            yield f"{name} is missing"
        elif name.endswith(".onnx") and (why := _read_problem(onnx.load, folder / name)):
            yield f"{name}: {why}"


def _report_problems(run: Path) -> Iterator[str]:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    for variant in report["variants"]:
        folder = run / "engines" / variant["name"]
        files = [folder / name for name in variant["engine"]["files"]]
        if not all(file.is_file() for file in files):
            yield f"report.json: {variant['name']} is not there"
        elif sum(file.stat().st_size for file in files) != variant["engine"]["bytes"]:
            yield f"report.json: {variant['name']} has another size"


def _read_problem(read: Any, path: Path) -> str:
    try:
        read(path)
    except Exception as error:  # any exception means that the file is incomplete
        return f"{type(error).__name__}: {error}"
    return ""

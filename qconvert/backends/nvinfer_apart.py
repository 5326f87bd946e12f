"""A native build in a process of its own: a builder that crashes ends nothing else.

It costs a build what Python takes to start and to import: 0.5 s of one core.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np

from qconvert.backends import apart, nvinfer
from qconvert.backends.base import Heard, Profile
from qconvert.backends.folder import Kept
from qconvert.errors import QConvertError, located
from qconvert.feeds import TensorSpec

_CHILD = "from qconvert.backends.nvinfer_apart import child; child()"


def build(module: str, kept: Kept, wishes: nvinfer.Wishes, out: Path, heard: Heard) -> None:
    """Build an engine with the module named, and write it to `out`; what `heard` raises ends it."""
    asked = {
        "graph": str(kept.path),
        "inputs": [(each.name, each.dtype.name, each.shape) for each in kept.inputs],
        "wishes": {**asdict(wishes), "timing_cache": _text(wishes.timing_cache)},
        "out": str(out),
    }
    _done(module, asked, heard)


def parse(module: str, graph: Path) -> None:
    """Refuse an ONNX file that the parser of the module named does not read, or not survive."""
    _done(module, {"graph": str(graph)}, lambda text, share: None)


def _done(module: str, asked: Mapping[str, Any], heard: Heard) -> None:
    with tempfile.TemporaryFile() as log, apart.start(_CHILD, stderr=log.fileno()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps({"module": module, **asked}).encode())
            process.stdin.close()
            refused = list(_refusals(process.stdout, heard))
            code = process.wait()
        finally:
            process.kill()
        if refused:
            raise refused[0]
        if code:
            raise _died(module, code, log)


def child() -> None:
    """Do what is asked on stdin, and tell on stdout how it goes."""
    asked = json.load(sys.stdin)
    # What libraries print must not come between.
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(*words: object) -> None:
        told.write(json.dumps(words) + "\n")
        told.flush()

    try:
        _work(asked, lambda text, share: tell("heard", text, share))
    except QConvertError as error:
        tell("refused", str(error), error.details, error.hint)
    except OSError as error:
        tell("unwritten", error.errno, error.strerror, error.filename)


def _work(asked: dict[str, Any], heard: Heard) -> None:
    if asked["module"] == "tensorrt":
        from qconvert.backends.ort_session import preload

        preload()
    trt = import_module(asked["module"])
    if "wishes" not in asked:
        nvinfer.parse(trt, Path(asked["graph"]))
        return
    given = asked["wishes"]
    profiles = tuple(Profile(**each) for each in given["profiles"])
    cache = Path(given["timing_cache"]) if given["timing_cache"] else None
    wishes = nvinfer.Wishes(**{**given, "profiles": profiles, "timing_cache": cache})
    told = asked["inputs"]
    inputs = [TensorSpec(name, np.dtype(kind), tuple(shape)) for name, kind, shape in told]
    engine = nvinfer.build(trt, Path(asked["graph"]), inputs, wishes, heard)
    out = Path(asked["out"])
    with located(out):
        out.write_bytes(engine)


def _refusals(lines: IO[bytes], heard: Heard) -> Iterator[Exception]:
    for line in lines:
        match json.loads(line):
            case ["heard", text, share]:
                heard(text, share)
            case ["refused", message, details, hint]:
                yield QConvertError(message, details=details, hint=hint)
            case ["unwritten", number, words, place]:
                yield OSError(number, words, place)


def _died(module: str, code: int, log: IO[bytes]) -> Exception:
    log.seek(0)
    said = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    if code > 0:
        return RuntimeError("\n".join(said) or f"the build ended with code {code}")
    return QConvertError(
        f"{nvinfer.PRODUCTS.get(module, module)} did not survive this graph: {apart.death(code)}",
        details=said[-3:],
        hint="leave parts of the graph in float with `--exclude`, or try another backend",
    )


def _text(path: Path | None) -> str:
    return str(path) if path is not None else ""

"""Times of single operators, from the profiler of ONNX Runtime.

The profiler names an operator after a node of the graph that ONNX Runtime made of the file, and
what that node computes is read from the graph.
"""

import json
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qconvert import backends
from qconvert.backends import ort, ort_coverage
from qconvert.backends.base import BuildProgressCallback, Engine
from qconvert.core import atomic
from qconvert.core.tensors import Tensors

EVENT = "_kernel_time"
# Runs in a row: the first brings the weights back into the caches that the other engines filled.
RUNS_IN_A_ROW = 5
# More runs would make the profile large, and change few of the least times.
MAX_RUNS = 200


@dataclass(frozen=True)
class OperatorTime:
    """An operator as ONNX Runtime runs it, and the least milliseconds of all its runs.

    `outputs` are the names of its tensors; ONNX Runtime renames some of them.
    """

    name: str
    op: str
    ms: float
    outputs: tuple[str, ...] = ()


def profile_engines(
    engines: Mapping[str, Engine],
    feeds: Mapping[str, Tensors],
    seconds: float,
    progress: BuildProgressCallback,
) -> dict[str, tuple[OperatorTime, ...]]:
    """Return the operators of engines, in the order in which they run; the engines take turns."""
    with atomic.temporary_folder() as folder:
        sessions = {name: _open(engine, folder / name) for name, engine in engines.items()}
        started, share, runs = time.perf_counter(), 0.0, 0
        while share < 1:
            for name, session in sessions.items():
                for _ in range(RUNS_IN_A_ROW):
                    session.run(None, feeds[name])
            runs += RUNS_IN_A_ROW
            elapsed = time.perf_counter() - started
            share = min(1.0, max(elapsed / (seconds * len(engines)), runs / MAX_RUNS))
            progress("times of operators", share)
        profiles = {
            name: Path(session.end_profiling()).read_text(encoding="utf-8")
            for name, session in sessions.items()
        }
    return {
        name: read_profile(profiles[name], _outputs(engine)) for name, engine in engines.items()
    }


def read_profile(text: str, outputs: Mapping[str, tuple[str, ...]]) -> tuple[OperatorTime, ...]:
    """Return the operators of a profile in the order in which they ran first."""
    times, operators = defaultdict[str, list[int]](list), dict[str, str]()
    for event in json.loads(text):
        if event.get("cat") == "Node" and event["name"].endswith(EVENT):
            name = event["name"].removesuffix(EVENT)
            times[name].append(event["dur"])
            operators[name] = event["args"]["op_name"]
    return tuple(
        OperatorTime(name, operators[name], min(microseconds) / 1000, outputs.get(name, ()))
        for name, microseconds in times.items()
    )


def _outputs(engine: Engine) -> dict[str, tuple[str, ...]]:
    """Return the outputs of every node of the graph that ONNX Runtime runs."""
    spec = backends.load(engine.backend).load_spec(engine)
    graph = ort_coverage.optimized_graph(engine.folder / engine.files[0], spec)
    return {node.name or "": tuple(value.name or "" for value in node.outputs) for node in graph}


def _open(engine: Engine, prefix: Path) -> Any:
    spec = backends.load(engine.backend).load_spec(engine)
    options = ort.session_options(spec)
    options.enable_profiling = True
    options.profile_file_prefix = str(prefix)
    return ort.create_session(engine.folder / engine.files[0], spec, options)

"""Models and engines that were made elsewhere, tried by a child before they are run here."""

from collections.abc import Iterable
from pathlib import Path

from qconvert import onnx_io, store
from qconvert.backends.base import Engine
from qconvert.backends.ort import VERSION
from qconvert.backends.rehearsal import patience, rehearse_file
from qconvert.feeds import draw, fixed_batch
from qconvert.store import digest


def rehearse_engines(engines: Iterable[Engine]) -> None:
    """Try the graphs of engines, and what the CPU loads of them."""
    for engine in engines:
        names = {engine.graph, *(engine.files[:1] if engine.backend == "cpu" else ())}
        for name in sorted(names):
            once(engine.folder / name, engine.folder / engine.graph)


def once(path: Path, graph: Path) -> None:
    """Try a file that takes the inputs of a graph, unless this store knows that it was tried."""
    model = onnx_io.load(graph)
    specs = onnx_io.inputs(model)
    known = not any(spec.is_open for spec in specs)
    feeds = draw(specs, fixed_batch(specs) or 1, seed=0) if known else {}
    recipe = {"file": digest(path), "graph": onnx_io.fingerprint(model), "onnxruntime": VERSION}
    seconds = patience(model)
    store.default().get("rehearse", recipe, lambda folder: rehearse_file(path, feeds, seconds))

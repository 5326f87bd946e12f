"""Build and run one engine on a machine of the laboratory, as backends are called by a run.

`python -m tests.gpu_lab.engines FOLDER JOB...`, where a job is `build` or `run`, and the folder
holds `graph.onnx` and `spec.json`. Prints what the test compares as JSON, and errors as users see
them.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx_ir as ir

from qconvert import backends
from qconvert.backends import cuda_runtime
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.core import onnx_io
from qconvert.core.formats import Precision
from tests.backends.graphs import make_graph
from tests.gpu_lab.lab.environment import Finished, Host
from tests.models import floats

Machine = Callable[..., Host]


def prepare(
    folder: Path,
    backend: str = "tensorrt",
    precision: Precision = "fp32",
    model: ir.Model | None = None,
    **options: str | int,
) -> Path:
    """Write what a process of the machine builds from."""
    folder.mkdir(exist_ok=True)
    onnx_io.save(model or make_graph(backend, precision), folder / "graph.onnx")
    settings = {name.replace("_", "-"): value for name, value in options.items()}
    spec = {"backend": backend, "precision": precision, "options": settings}
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


def do(machine: Host, folder: Path, *jobs: str) -> Finished:
    """Run jobs in one process of the machine, whose working folder is empty and stays so."""
    cwd = folder / "cwd"
    cwd.mkdir(exist_ok=True)
    done = machine.run("-m", "tests.gpu_lab.engines", folder, *jobs, cwd=cwd)
    assert list(cwd.iterdir()) == []
    return done


def result(done: Finished) -> dict[str, Any]:
    """Return what the jobs printed, of all of which an engine must be right."""
    assert done.code == 0, done.err
    values: dict[str, Any] = {}
    for line in done.out.splitlines():
        values |= json.loads(line)
    assert values.get("worst", 0) < 1e-5
    return values


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("jobs", nargs=-1)
def main(folder: Path, jobs: tuple[str, ...]) -> None:
    """Do the jobs."""
    spec = json.loads((folder / "spec.json").read_text())
    backend, target = backends.load(spec["backend"]), folder / "engine"
    build_spec = BuildSpec(spec["precision"], Profile(1, 2, 4), options=spec["options"])
    for job in jobs:
        if job == "build":
            target.mkdir()
            engine = backend.build(folder / "graph.onnx", build_spec, target, lambda *_: None)
            (folder / "engine.json").write_text(json.dumps(asdict(engine), default=str))
            sys.stdout.write(json.dumps({"files": engine.files, "notes": engine.notes}) + "\n")
        if job == "run":
            values = json.loads((folder / "engine.json").read_text())
            engine = Engine(**{**values, "folder": target, "files": tuple(values["files"])})
            sys.stdout.write(json.dumps(_run(engine)) + "\n")


def _run(engine: Engine) -> dict[str, Any]:
    """Run an engine on two batches, with inputs on the host and on the device."""
    from qconvert.backends.ort import open_cpu

    session = backends.load(engine.backend).open(engine)
    model = onnx_io.load(engine.folder / engine.graph)
    reference, worst = open_cpu(model, keep_qdq=True), 0.0
    [spec] = onnx_io.inputs(model)
    batches = (1, 2) if not isinstance(spec.shape[0], int) else (spec.shape[0],)
    for batch in batches:
        feeds = {spec.name: floats(batch, *spec.shape[1:], seed=batch)}  # type: ignore[arg-type]
        right = reference(feeds)
        for name, array in session.run(feeds).items():
            worst = max(worst, float(np.abs(array - right[name]).max()))
    if (bound := session.bind(feeds)) is not None:
        bound.enqueue()
        cuda_runtime.synchronize(bound.stream)
        for (address, size), array in zip(bound.outputs, right.values(), strict=True):
            found = np.empty_like(array, order="C")
            assert found.nbytes == size
            cuda_runtime.copy(found.ctypes.data, address, size, cuda_runtime.TO_HOST, "copy")
            worst = max(worst, float(np.abs(found - array).max()))
    return {"worst": worst, **asdict(session.coverage())}


if __name__ == "__main__":
    from qconvert.cli.error_boundary import run_guarded

    sys.exit(run_guarded(main, sys.argv[1:]))

"""Prove what a machine can do: build, time and score the demo's network with every backend.

Every engine is an ordinary `qconvert build` in a process of its own, so that a crash ends one line
of the table. The bundle holds what a report of a problem needs and nothing of the user's.
"""

import json
import os
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qconvert.backends import requirements
from qconvert.backends.base import Availability
from qconvert.backends.subprocess_worker import describe_exit
from qconvert.backends.system_probe import Installed, installed_packages
from qconvert.core import atomic
from qconvert.core.formats import Precision
from qconvert.demo.demo_files import NETWORK
from qconvert.measure.machine import describe_machine

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
# What a bundle takes: no image, no engine, no graph.
BUNDLED = ("logs/*.txt", "runs/*/report.json", "runs/*/run.toml", "runs/*/engines/*/*.json")


@dataclass(frozen=True)
class Proof:
    """What became of one engine.

    `result` is `ok`, `built` (it does not run here), `wrong` (it loses more points than allowed),
    `failed` or `not tried`; `detail` says why, `cure` what to do.
    """

    backend: str
    precision: str
    result: str
    detail: str
    cure: str = ""
    median_ms: float | None = None
    top1: float | None = None
    agreement: float | None = None
    seconds: float | None = None


def prove(states: Mapping[str, Availability], folder: Path) -> Iterator[Proof]:
    """Build, time and score the network of `folder / "demo"` in every precision."""
    for backend, state in states.items():
        if not state.builds:
            yield Proof(backend, "", "not tried", state.reason, state.cure)
            continue
        required = requirements(backend)
        for precision in PRECISIONS:
            if why := required.why_not(precision):
                yield Proof(backend, precision, "not tried", why)
            else:
                yield _build_and_score(backend, precision, folder)


def _build_and_score(backend: str, precision: str, folder: Path) -> Proof:
    """Run one build to its end, keep its output, and read its report."""
    name = f"{backend}-{precision}"
    folder = folder.resolve()
    run, demo = folder / "runs" / name, folder / "demo"
    command = [
        *("build", str(demo / NETWORK.name), "--images", str(demo / "calibration")),
        *("--eval", str(demo / "evaluation"), "--backend", backend, "--precision", precision),
        *("--max-drop", "2", "--seconds", "0.7", "--batch-sizes", "1", "--effort", "quick"),
        *("--fresh", "-o", str(run)),
    ]
    log = folder / "logs" / f"{name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        stream.write(f"$ qconvert {' '.join(command)}\n")
        stream.flush()
        child = subprocess.run(
            [sys.executable, "-m", "qconvert", *command],
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
            cwd=folder,  # away from the user's own qconvert.toml
            env={**os.environ, "COLUMNS": "200"},
        )
    seconds = time.monotonic() - started
    if child.returncode not in (0, 1):
        text = log.read_text(encoding="utf-8", errors="replace")
        said = dict(re.findall(r"^(error|hint): (.+)$", text, re.MULTILINE))
        reason = said.get("error") or describe_exit(child.returncode, text.splitlines())
        hint = said.get("hint", "")
        return Proof(backend, precision, "failed", reason, hint, seconds=seconds)
    data = json.loads((run / "report.json").read_text(encoding="utf-8"))
    variant = next(item for item in data["variants"] if item["name"] == name)
    score, timings = variant["accuracy"], variant["latency"]
    failed = [
        f"{gate['name']}: {gate['value']:.2f} pp" for gate in data["gates"] if not gate["passed"]
    ]
    runs_here = score["measured_on"] == "engine"
    return Proof(
        backend,
        precision,
        "wrong" if failed else "ok" if runs_here else "built",
        ", ".join(failed) or variant["unmeasured"].get("latency", ""),
        "attach the bundle to a report of the problem" if failed else "",
        timings[0]["median_ms"] if timings else None,
        score["top1"] if runs_here else None,
        score["agreement"] if runs_here else None,
        seconds,
    )


def write_bundle(
    folder: Path, installed: Installed, states: Mapping[str, Availability], proofs: Sequence[Proof]
) -> Path:
    """Write the bundle: versions, the machine, proofs, logs and reports, without private paths."""
    facts = {
        "machine": describe_machine(installed),
        "packages": dict(sorted(installed_packages().items())),
        "backends": {name: asdict(state) for name, state in states.items()},
        "proofs": [asdict(proof) for proof in proofs],
    }
    output = folder / "proof.zip"
    with atomic.temporary_folder(folder) as place:
        with zipfile.ZipFile(place / output.name, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("machine.json", _without_paths(json.dumps(facts, indent=1), folder))
            for path in sorted(path for mask in BUNDLED for path in folder.glob(mask)):
                text = path.read_text(encoding="utf-8", errors="replace")
                name = path.relative_to(folder).as_posix()
                archive.writestr(name, _without_paths(text, folder))
        (place / output.name).replace(output)
    return output


def _without_paths(text: str, folder: Path) -> str:
    """Replace the folders that tell who the user is and where things are kept."""
    for path, name in ((folder.resolve(), "PROOF"), (sys.prefix, "PYTHON"), (Path.home(), "~")):
        text = text.replace(str(path), name)
    return text

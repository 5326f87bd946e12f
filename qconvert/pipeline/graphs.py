"""The ONNX graph of every variant, kept in the store with its plan and what was found out."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from qconvert import __version__, backends, config_file, onnx_io
from qconvert.backends.base import FLOAT
from qconvert.backends.ort import VERSION
from qconvert.config import Config
from qconvert.pipeline import requests
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.progress import Progress, Tell
from qconvert.pipeline.rewriting import How, rewrite
from qconvert.pipeline.seen import Seen
from qconvert.pipeline.variants import Variant
from qconvert.quantize import plan as plans
from qconvert.quantize import plan_files
from qconvert.quantize.plan import Plan
from qconvert.quantize.plan_files import Planned
from qconvert.store import Store

GRAPH = "model.onnx"
PLAN = "plan.json"
MADE = "made.json"
LIBRARIES = ("onnx", "onnx-ir", "numpy")


@dataclass(frozen=True)
class Graph:
    """The folder of a graph, and how the graph came to be."""

    folder: Path
    plan: Plan | None
    islands: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return self.folder / GRAPH


@dataclass(frozen=True)
class Basis:
    """What all graphs of a run are made from; `found` is None where no image was looked at.

    `plans` has the plans that lie in a run already.
    """

    ready: Prepared
    config: Config
    found: Seen | None
    plans: Mapping[str, Planned] = field(default_factory=dict)


def graph_of(variant: Variant, basis: Basis, store: Store, tell: Tell) -> Graph:
    """Return the graph of a variant, from the store where it was made before."""
    started = time.perf_counter()
    how = _how(variant, basis)

    ended: list[Progress] = []

    def heard(progress: Progress) -> None:
        """Tell what is at work; what is done is told once it is kept."""
        if progress.seconds is None:
            tell(progress)
        else:
            ended.append(progress)

    def make(folder: Path) -> None:
        done = rewrite(basis.ready, basis.found, how, store, heard)
        onnx_io.save(done.model, folder / GRAPH)
        if done.plan is not None:
            plan_files.save(Planned(done.plan, done.learned), folder / PLAN)
        told = {
            "islands": done.islands,
            "notes": done.notes,
            "tried": [asdict(each) for each in done.tried],
        }
        (folder / MADE).write_text(json.dumps(told, indent=1), encoding="utf-8")

    found = store.get("rewrite", _recipe(how, basis), make)
    if found.stored:
        ended = [Progress("quantize", how.name, time.perf_counter() - started, stored=True)]
    for each in ended:
        tell(each)
    return read(found.path)


def read(folder: Path) -> Graph:
    """Return the graph that lies in a folder."""
    plan = plans.load(folder / PLAN) if (folder / PLAN).is_file() else None
    told = json.loads((folder / MADE).read_text(encoding="utf-8"))
    return Graph(folder, plan, told["islands"], tuple(told["notes"]))


def _how(variant: Variant, basis: Basis) -> How:
    wants = backends.wants(variant.backend)
    wishes = requests.wishes_of(basis.config)
    table = engine_settings(basis.config, variant.backend)
    typed = wants.typed or table.get("builder") == "native"
    alone = FLOAT.get(variant.precision)
    if alone is not None:
        return How(variant.name, replace(wishes, rest=alone if typed else "fp32"))
    rest = (basis.config.quantize.rest or wants.build_rest) if typed else "fp32"
    wishes = replace(wishes, rest=rest)
    planned = basis.plans.get(variant.name)
    if planned is not None:
        plan = replace(planned.plan, rest=rest)
        return How(variant.name, wishes, plan=plan, learned=planned.weights)
    scheme = requests.scheme_for(basis.config, wants)
    return How(variant.name, wishes, scheme, effort=basis.config.quantize.effort)


def engine_settings(config: Config, backend: str) -> dict[str, str | int | bool]:
    """Return the settings that belong to a backend, by the names that it knows."""
    table = asdict(getattr(config, backend.replace("-", "_")))
    return {name.replace("_", "-"): value for name, value in table.items()}


def _recipe(how: How, basis: Basis) -> dict[str, str]:
    """Return all that decides the graph."""
    found = basis.found
    seen = found.whole.origin.fingerprint if found is not None else ""
    # A run that goes on knows less than a new one: it has one calibration, and makes no other.
    known = found and (found.held_out, found.at_hand, found.apart, found.again is not None)
    chosen = config_file.plain(basis.config)["quantize"]
    return {
        "model": onnx_io.fingerprint(basis.ready.model),
        "name": f"{basis.ready.source.name} {how.name}",
        "metadata": json.dumps(dict(basis.ready.model.metadata_props), sort_keys=True),
        "calibration": seen,
        "known": repr(known),
        "settings": json.dumps(chosen if how.scheme is not None else {}, sort_keys=True),
        "plan": plans.dumps(how.plan) if how.plan is not None else "",
        "scheme": repr(how.scheme and (how.scheme.name, how.scheme.activations)),
        "rest": how.wishes.rest,
        "qconvert": __version__,
        "onnxruntime": VERSION,
        **{name: version(name) for name in LIBRARIES},
    }

"""What an engine takes and uses: its peak memory, and which parts of it run where."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qconvert import backends
from qconvert.backends.base import Coverage, Engine
from qconvert.feeds import draw, fixed_batch
from qconvert.measure.machine import machine
from qconvert.measure.memory import Peak, peak
from qconvert.pipeline.progress import Progress, Tell
from qconvert.pipeline.timing import hashes, inputs_of
from qconvert.report.numerals import count
from qconvert.store import Store

FOUND = "footprint.json"
ELSEWHERE = "measured for engines of the CPU only"


@dataclass(frozen=True)
class Footprint:
    """Where the nodes of an engine run, and the memory of a process that loads and runs it."""

    coverage: Coverage
    peak: Peak


def footprints(engines: Mapping[str, Engine], store: Store, tell: Tell) -> dict[str, Footprint]:
    """Return the footprint of each engine that runs here, from the store where it is known."""
    started = time.perf_counter()
    found = {}
    stored = bool(engines)
    for name, engine in engines.items():
        tell(Progress("inspect", name))
        recipe = {
            "name": name,
            "model": hashes({name: engine})[name][:16],
            "engine": hashes({name: engine})[name],
            "machine": json.dumps(machine(), sort_keys=True),
        }

        def make(folder: Path, engine: Engine = engine) -> None:
            told = asdict(_look(engine))
            (folder / FOUND).write_text(json.dumps(told), encoding="utf-8")

        kept = store.get("inspect", recipe, make)
        stored = stored and kept.stored
        told = json.loads((kept.path / FOUND).read_text(encoding="utf-8"))
        found[name] = Footprint(Coverage(**told["coverage"]), Peak(**told["peak"]))
    if engines:
        text = f"{count(len(engines), 'engine')}: nodes by precision, peak memory"
        tell(Progress("inspect", text, time.perf_counter() - started, stored))
    return found


def _look(engine: Engine) -> Footprint:
    coverage = backends.load(engine.backend).open(engine).coverage()
    coverage = Coverage(
        dict(coverage.by_provider),
        dict(coverage.by_precision) if coverage.by_precision is not None else None,
        coverage.unknown,
    )
    if engine.backend != "cpu":
        return Footprint(coverage, Peak(None, reason=ELSEWHERE))
    specs = inputs_of(engine)
    feeds = draw(specs, fixed_batch(specs) or 1, seed=0)
    return Footprint(coverage, peak(engine.folder / engine.files[0], feeds, engine.threads))

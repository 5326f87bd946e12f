"""The engines of a run timed in turns, on one machine at one time, or taken from the store."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from qconvert import backends, onnx_io
from qconvert.backends.base import Engine, Session
from qconvert.config import Bench
from qconvert.feeds import Feeds, TensorSpec, draw, fixed_batch
from qconvert.measure import stats
from qconvert.measure.latency import Latency, interleave
from qconvert.measure.machine import machine
from qconvert.measure.turns import Effort
from qconvert.pipeline.progress import Progress, Tell
from qconvert.report.numerals import count
from qconvert.store import Store, digest

LATENCIES = "latencies.json"
PERCENT = 100

Timed = dict[str, tuple[Latency, ...]]


def timed(engines: Mapping[str, Engine], bench: Bench, store: Store, tell: Tell) -> Timed:
    """Return the latencies of engines that run here, at every batch size that they take."""
    if not engines:
        return {}
    started = time.perf_counter()
    recipe = {
        "name": ", ".join(engines),
        "model": next(iter(hashes(engines).values())),
        "engines": json.dumps(hashes(engines), sort_keys=True),
        "settings": json.dumps(asdict(bench), sort_keys=True),
        "machine": json.dumps(machine(), sort_keys=True),
    }

    def make(folder: Path) -> None:
        found = measured(engines, bench, tell)
        told = {name: [asdict(each) for each in latencies] for name, latencies in found.items()}
        (folder / LATENCIES).write_text(json.dumps(told), encoding="utf-8")

    found = store.get("bench", recipe, make)
    told = json.loads((found.path / LATENCIES).read_text(encoding="utf-8"))
    text = f"{count(len(engines), 'engine')} at batch {', '.join(map(str, bench.batch_sizes))}"
    tell(Progress("bench", text, time.perf_counter() - started, found.stored))
    return {name: tuple(map(_read, latencies)) for name, latencies in told.items()}


def hashes(engines: Mapping[str, Engine]) -> dict[str, str]:
    """Return for each engine what decides how it runs: its files, and how it was made."""
    return {
        name: " ".join(
            [
                *(digest(engine.folder / file)[:16] for file in engine.files),
                json.dumps({**engine.made_with, "run threads": engine.threads}, sort_keys=True),
            ]
        )
        for name, engine in engines.items()
    }


def inputs_of(engine: Engine) -> tuple[TensorSpec, ...]:
    """Return what an engine is fed."""
    return onnx_io.inputs(onnx_io.load(engine.folder / engine.graph))


def measured(engines: Mapping[str, Engine], bench: Bench, tell: Tell) -> Timed:
    """Time engines now, at every batch size that they take."""
    sessions = {name: backends.load(each.backend).open(each) for name, each in engines.items()}
    specs = {name: inputs_of(engine) for name, engine in engines.items()}
    found: Timed = dict.fromkeys(engines, ())
    fixed = {size for size in map(fixed_batch, specs.values()) if size}
    for batch in sorted({*bench.batch_sizes, *fixed}):
        fits = {
            name: session
            for name, session in sessions.items()
            if (fixed_batch(specs[name]) or batch) == batch
            and (batch in bench.batch_sizes or fixed_batch(specs[name]))
        }
        for name, latencies in _at(batch, fits, specs, (bench, tell)).items():
            on_gpu = engines[name].backend != "cpu"
            found[name] += tuple(
                replace(each, notes=stats.notes(each.samples_ms, on_gpu=on_gpu))
                for each in latencies
            )
    return found


def _at(
    batch: int,
    sessions: Mapping[str, Session],
    specs: Mapping[str, tuple[TensorSpec, ...]],
    how: tuple[Bench, Tell],
) -> Timed:
    """Time all engines at one batch size, and where the inputs can lie on the device, there too."""
    bench, tell = how

    def heard(text: str, share: float | None) -> None:
        done, total = (round(share * PERCENT), PERCENT) if share is not None else (0, 0)
        tell(Progress("bench", f"batch {batch}, {text}", done=done, total=total))

    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for name, session in sessions.items():
        feeds = draw(specs[name], batch, seed=0)
        calls[name, "host"] = _run(session, feeds)
        bound = session.bound(feeds)
        if bound is not None:
            calls[name, "device"] = bound
    named = {f"{name} {where}": call for (name, where), call in calls.items()}
    samples = interleave(named, Effort(bench.seconds, bench.rounds), heard=heard)
    found: Timed = dict.fromkeys(sessions, ())
    for name, where in calls:
        taken = samples[f"{name} {where}"]
        spot = "host" if where == "host" else "device"
        found[name] += (Latency(batch, spot, taken),)  # type: ignore[arg-type]
    return found


def _run(session: Session, feeds: Feeds) -> Callable[[], object]:
    return lambda: session.run(feeds)


def _read(told: dict[str, object]) -> Latency:
    for name in ("samples_ms", "notes"):
        told[name] = tuple(told[name])  # type: ignore[arg-type]
    return Latency(**told)  # type: ignore[arg-type]

"""The engines of a run timed in turns, on one machine at one time, or taken from the store."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qconvert import backends
from qconvert.backends.base import Coverage, Engine, Session
from qconvert.core.cache import Cache
from qconvert.core.config import BenchConfig, Config
from qconvert.core.errors import Unavailable
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, ProgressCallback
from qconvert.core.tensors import Tensors, TensorSpec, fixed_batch, random_inputs
from qconvert.measure import stats
from qconvert.measure.latency import EngineLatencies, Latency, TimingEffort, interleave
from qconvert.measure.machine import describe_machine
from qconvert.measure.memory import PeakMemory, measure_peak
from qconvert.report.model import Report
from qconvert.run.built_engines import engine_hashes, engine_inputs
from qconvert.run.report_builder import timestamp
from qconvert.run.report_files import judge_and_store, read_report, with_reason, without_reason
from qconvert.run.targets import Target

LATENCIES_FILE = "latencies.json"
PERCENT = 100


def time_engines(
    engines: Mapping[str, Engine], bench: BenchConfig, store: Cache, tell: ProgressCallback
) -> EngineLatencies:
    """Return the latencies of engines that run here, at every batch size that they take."""
    if not engines:
        return {}
    started = time.perf_counter()
    recipe = {
        "name": ", ".join(engines),
        "model": next(iter(engine_hashes(engines).values())),
        "engines": json.dumps(engine_hashes(engines), sort_keys=True),
        "settings": json.dumps(asdict(bench), sort_keys=True),
        "machine": json.dumps(describe_machine(), sort_keys=True),
    }

    def make(folder: Path) -> None:
        found = measure_latencies(engines, bench, tell)
        told = {name: [asdict(each) for each in latencies] for name, latencies in found.items()}
        (folder / LATENCIES_FILE).write_text(json.dumps(told), encoding="utf-8")

    found = store.get_or_make("bench", recipe, make)
    told = json.loads((found.path / LATENCIES_FILE).read_text(encoding="utf-8"))
    text = f"{count(len(engines), 'engine')} at batch {', '.join(map(str, bench.batch_sizes))}"
    tell(Progress("bench", text, time.perf_counter() - started, found.hit))
    return {name: tuple(map(_read_latency, latencies)) for name, latencies in told.items()}


def measure_latencies(
    engines: Mapping[str, Engine], bench: BenchConfig, tell: ProgressCallback
) -> EngineLatencies:
    """Time engines now, at every batch size that they take."""
    sessions = {name: backends.load(each.backend).open(each) for name, each in engines.items()}
    specs = {name: engine_inputs(engine) for name, engine in engines.items()}
    found: EngineLatencies = dict.fromkeys(engines, ())
    fixed = {size for size in map(fixed_batch, specs.values()) if size}
    for batch in sorted({*bench.batch_sizes, *fixed}):
        fits = {
            name: session
            for name, session in sessions.items()
            if (fixed_batch(specs[name]) or batch) == batch
            and (batch in bench.batch_sizes or fixed_batch(specs[name]))
        }
        for name, latencies in _measure_at_batch(batch, fits, specs, (bench, tell)).items():
            on_gpu = engines[name].backend != "cpu"
            found[name] += tuple(
                replace(each, notes=stats.timing_notes(each.samples_ms, on_gpu=on_gpu))
                for each in latencies
            )
    return found


def _measure_at_batch(
    batch: int,
    sessions: Mapping[str, Session],
    specs: Mapping[str, tuple[TensorSpec, ...]],
    how: tuple[BenchConfig, ProgressCallback],
) -> EngineLatencies:
    """Time all engines at one batch size, and where the inputs can lie on the device, there too."""
    bench, tell = how

    def heard(text: str, share: float | None) -> None:
        done, total = (round(share * PERCENT), PERCENT) if share is not None else (0, 0)
        tell(Progress("bench", f"batch {batch}, {text}", done=done, total=total))

    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for name, session in sessions.items():
        feeds = random_inputs(specs[name], batch, seed=0)
        calls[name, "host"] = _host_call(session, feeds)
        bound = session.bind(feeds)
        if bound is not None:
            calls[name, "device"] = bound
    named = {f"{name} {where}": call for (name, where), call in calls.items()}
    samples = interleave(named, TimingEffort(bench.seconds, bench.rounds), progress=heard)
    found: EngineLatencies = dict.fromkeys(sessions, ())
    for name, where in calls:
        taken = samples[f"{name} {where}"]
        spot = "host" if where == "host" else "device"
        found[name] += (Latency(batch, spot, taken),)  # type: ignore[arg-type]
    return found


def _host_call(session: Session, feeds: Tensors) -> Callable[[], object]:
    return lambda: session.run(feeds)


def _read_latency(told: dict[str, object]) -> Latency:
    for name in ("samples_ms", "notes"):
        told[name] = tuple(told[name])  # type: ignore[arg-type]
    return Latency(**told)  # type: ignore[arg-type]


FOOTPRINT_FILE = "footprint.json"
MEMORY_CPU_ONLY = "measured for engines of the CPU only"


@dataclass(frozen=True)
class Footprint:
    """Where the nodes of an engine run, and the memory of a process that loads and runs it."""

    coverage: Coverage
    peak: PeakMemory


def measure_footprints(
    engines: Mapping[str, Engine], store: Cache, tell: ProgressCallback
) -> dict[str, Footprint]:
    """Return the footprint of each engine that runs here, from the store where it is known."""
    started = time.perf_counter()
    found = {}
    stored = bool(engines)
    for name, engine in engines.items():
        tell(Progress("inspect", name))
        recipe = {
            "name": name,
            "model": engine_hashes({name: engine})[name][:16],
            "engine": engine_hashes({name: engine})[name],
            "machine": json.dumps(describe_machine(), sort_keys=True),
        }

        def make(folder: Path, engine: Engine = engine) -> None:
            told = asdict(_measure_footprint(engine))
            (folder / FOOTPRINT_FILE).write_text(json.dumps(told), encoding="utf-8")

        kept = store.get_or_make("inspect", recipe, make)
        stored = stored and kept.hit
        told = json.loads((kept.path / FOOTPRINT_FILE).read_text(encoding="utf-8"))
        found[name] = Footprint(Coverage(**told["coverage"]), PeakMemory(**told["peak"]))
    if engines:
        text = f"{count(len(engines), 'engine')}: nodes by precision, peak memory"
        tell(Progress("inspect", text, time.perf_counter() - started, stored))
    return found


def _measure_footprint(engine: Engine) -> Footprint:
    coverage = backends.load(engine.backend).open(engine).coverage()
    coverage = Coverage(
        dict(coverage.by_provider),
        dict(coverage.by_precision) if coverage.by_precision is not None else None,
        coverage.unknown,
    )
    if engine.backend != "cpu":
        return Footprint(coverage, PeakMemory(None, reason=MEMORY_CPU_ONLY))
    specs = engine_inputs(engine)
    feeds = random_inputs(specs, fixed_batch(specs) or 1, seed=0)
    return Footprint(coverage, measure_peak(engine.folder / engine.files[0], feeds, engine.threads))


def bench(target: Target, config: Config, tell: ProgressCallback) -> Report:
    """Time the engines that run here, whatever was measured before."""
    available = target.available
    running = {
        name: engine for name, engine in target.engines.items() if available[engine.backend].runs
    }
    if not running:
        first = next(iter(available.values()))
        raise Unavailable(
            f"none of these engines runs here: {first.reason}",
            hint=first.cure or "`qconvert doctor` shows what works here",
        )
    found = measure_latencies(running, config.bench, tell)
    report = read_report(target)
    rows = []
    for row in report.variants:
        if row.name in found:
            without = without_reason(row, "latency")
            rows.append(replace(without, latency=found[row.name]))
        else:
            idle = replace(row, latency=())
            rows.append(with_reason(idle, "latency", available[row.backend].reason))
    report = replace(report, machine=describe_machine(), created=timestamp())
    return judge_and_store(replace(report, variants=tuple(rows)), config, target)

"""The job `bench`: time engines in interleaved rounds, and find where their nodes run."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Literal

import pydantic

from qconvert import backends
from qconvert.backends.base import Engine
from qconvert.core import onnx_io
from qconvert.core.cache import JsonCodec, cached_step
from qconvert.core.config import BenchConfig
from qconvert.core.errors import Unavailable
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, ProgressCallback, share_reporter, start_step
from qconvert.core.tensors import fixed_batch, random_inputs
from qconvert.measure import latency
from qconvert.measure.machine import describe_machine
from qconvert.measure.memory import Footprint, PeakMemory, measure_peak
from qconvert.report.model import Report
from qconvert.run.context import JobContext, cache_key
from qconvert.run.report_files import judge_and_store, read_report, timestamp, with_measurement
from qconvert.run.targets import Target, engine_hashes

LATENCIES_CODEC = JsonCodec("latencies.json", pydantic.TypeAdapter(latency.EngineLatencies))
FOOTPRINT_CODEC = JsonCodec("footprint.json", pydantic.TypeAdapter(Footprint))


def bench(target: Target, context: JobContext) -> Report:
    """Time the engines that run here, even if they were timed before."""
    available = target.available
    engines = {name: engine for name, engine in target.engines.items() if available[name].runs}
    if not engines:
        first = next(iter(available.values()))
        raise Unavailable(
            f"none of these engines runs here: {first.reason}",
            hint=first.cure or "`qconvert doctor` shows what works here",
        )
    latencies = _measure_latencies(engines, context.config.bench, context.progress)
    report = read_report(target)
    rows = tuple(
        with_measurement(row, "latency", latencies.get(row.name, ()), available[row.name].reason)
        for row in report.variants
    )
    report = replace(report, machine=describe_machine(), created=timestamp(), variants=rows)
    return judge_and_store(report, context.config.gate, target)


def time_engines(
    engines: Mapping[str, Engine], settings: BenchConfig, context: JobContext
) -> latency.EngineLatencies:
    """Return the latencies of engines at every batch size that they support; cached."""
    if not engines:
        return {}
    end = start_step(context.progress, "bench")
    hashes, machine = engine_hashes(engines), describe_machine()
    names, model = ", ".join(engines), next(iter(hashes.values()))
    key = cache_key(names, model, engines=hashes, settings=asdict(settings), machine=machine)
    compute = partial(_measure_latencies, engines, settings, context.progress)
    latencies, hit = cached_step(context.cache, "bench", key, compute, LATENCIES_CODEC)
    batches = ", ".join(map(str, settings.batch_sizes))
    end(f"{count(len(engines), 'engine')} at batch {batches}", hit)
    return latencies


def measure_footprints(engines: Mapping[str, Engine], context: JobContext) -> dict[str, Footprint]:
    """Return where the nodes of each engine run, and its peak memory; cached."""
    end = start_step(context.progress, "inspect")
    footprints, all_hit = {}, True
    for name, digest in engine_hashes(engines).items():
        context.progress(Progress("inspect", name))
        key = cache_key(name, digest[:16], engine=digest, machine=describe_machine())
        compute = partial(_measure_footprint, engines[name])
        footprints[name], hit = cached_step(context.cache, "inspect", key, compute, FOOTPRINT_CODEC)
        all_hit = all_hit and hit
    if engines:
        end(f"{count(len(engines), 'engine')}: nodes by precision, peak memory", all_hit)
    return footprints


def _measure_latencies(
    engines: Mapping[str, Engine], settings: BenchConfig, progress: ProgressCallback
) -> latency.EngineLatencies:
    """Time engines at every supported batch size, with inputs on the host and on the device."""
    sessions = {
        name: backends.load(engine.backend).open(engine) for name, engine in engines.items()
    }
    graphs = {name: engine.folder / engine.graph for name, engine in engines.items()}
    specs = {name: onnx_io.inputs(onnx_io.load(path)) for name, path in graphs.items()}
    fixed = {name: fixed_batch(inputs) for name, inputs in specs.items()}
    latencies: latency.EngineLatencies = dict.fromkeys(engines, ())
    for batch in sorted({*settings.batch_sizes, *filter(None, fixed.values())}):
        calls: dict[tuple[str, Literal["host", "device"]], Callable[[], object]] = {}
        for name, session in sessions.items():
            if batch in ([fixed[name]] if fixed[name] else settings.batch_sizes):
                feeds = random_inputs(specs[name], batch, seed=0)
                calls[name, "host"] = partial(session.run, feeds)
                if (device_call := session.bind(feeds)) is not None:
                    calls[name, "device"] = device_call
        samples = latency.interleave(
            {f"{name} {where}": call for (name, where), call in calls.items()},
            latency.TimingEffort(settings.seconds, settings.rounds),
            progress=share_reporter(progress, "bench", f"batch {batch}, "),
        )
        for name, where in calls:
            timed = latency.Latency(batch, where, samples[f"{name} {where}"])
            notes = latency.timing_notes(timed, on_gpu=engines[name].backend != "cpu")
            latencies[name] += (replace(timed, notes=notes),)
    return latencies


def _measure_footprint(engine: Engine) -> Footprint:
    coverage = backends.load(engine.backend).open(engine).coverage()
    peak = PeakMemory(None, reason="measured for engines of the CPU only")
    if engine.backend == "cpu":
        specs = onnx_io.inputs(onnx_io.load(engine.folder / engine.graph))
        feeds = random_inputs(specs, fixed_batch(specs) or 1, seed=0)
        peak = measure_peak(engine.folder / engine.files[0], feeds, engine.threads)
    return Footprint(coverage, peak)

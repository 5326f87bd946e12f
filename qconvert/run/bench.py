"""The job `bench`: time engines in interleaved rounds, and find where their nodes run."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial

from qconvert import backends
from qconvert.backends.base import Engine
from qconvert.backends.ort_profile import OperatorTime, profile_engines
from qconvert.core import onnx_io
from qconvert.core.cache import JsonCodec, cached_step
from qconvert.core.config import BenchConfig
from qconvert.core.errors import Unavailable
from qconvert.core.number_format import count
from qconvert.core.progress import Progress, ProgressCallback, share_reporter, start_step
from qconvert.core.tensors import TensorSpec, fixed_batch, random_inputs
from qconvert.measure import gpu
from qconvert.measure.latency import (
    EngineLatencies,
    Latency,
    TimingEffort,
    Where,
    interleave,
    timing_notes,
)
from qconvert.measure.machine import describe_machine
from qconvert.measure.memory import Footprint, PeakMemory, measure_peak
from qconvert.report.model import Report
from qconvert.run.context import JobContext, cache_key
from qconvert.run.report_files import judge_and_store, read_report, timestamp, with_measurement
from qconvert.run.targets import Target, engine_hashes

LATENCIES_CODEC = JsonCodec("latencies.json", EngineLatencies)
PROFILE_CODEC = JsonCodec("profile.json", dict[str, tuple[OperatorTime, ...]])
FOOTPRINT_CODEC = JsonCodec("footprint.json", Footprint)


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
) -> EngineLatencies:
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


def profile_operators(
    engines: Mapping[str, Engine], settings: BenchConfig, context: JobContext
) -> dict[str, tuple[OperatorTime, ...]]:
    """Return the operators of engines of the CPU with their times, at the first batch size; cached."""
    hashes, machine = engine_hashes(engines), describe_machine()
    batch, seconds = settings.batch_sizes[0], min(1.0, settings.seconds)
    key = cache_key(
        ", ".join(engines),
        next(iter(hashes.values())),
        engines=hashes,
        settings=[batch, seconds],
        machine=machine,
    )

    def compute() -> dict[str, tuple[OperatorTime, ...]]:
        feeds = {}
        for name, engine in engines.items():
            specs = _inputs(engine)
            feeds[name] = random_inputs(specs, fixed_batch(specs) or batch, seed=0)
        report = share_reporter(context.progress, "bench", f"batch {batch}, ")
        return profile_engines(engines, feeds, seconds, report)

    return cached_step(context.cache, "profile", key, compute, PROFILE_CODEC)[0]


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
) -> EngineLatencies:
    """Time engines at every supported batch size.

    Engines of the CPU take turns, so that drift affects all of them alike. Those of GPUs follow one
    by one, each alone in the memory of its GPU: turns of the CPU between them would let its clocks
    fall.
    """
    on_gpu = {"cuda", "tensorrt", "tensorrt-rtx"}
    on_cpu = {name: engine for name, engine in engines.items() if engine.backend not in on_gpu}
    latencies = _time_on_cpu(on_cpu, settings, progress) if on_cpu else {}
    for name, engine in engines.items():
        if name not in on_cpu:
            latencies[name] = _time_on_gpu(name, engine, settings, progress)
    return {name: latencies[name] for name in engines}


def _time_on_cpu(
    engines: Mapping[str, Engine], settings: BenchConfig, progress: ProgressCallback
) -> EngineLatencies:
    sessions = {
        name: backends.load(engine.backend).open(engine) for name, engine in engines.items()
    }
    specs = {name: _inputs(engine) for name, engine in engines.items()}
    fixed = {name: fixed_batch(inputs) for name, inputs in specs.items()}
    latencies: EngineLatencies = dict.fromkeys(engines, ())
    for batch in sorted({*settings.batch_sizes, *filter(None, fixed.values())}):
        calls: dict[str, Callable[[], object]] = {
            name: partial(session.run, random_inputs(specs[name], batch, seed=0))
            for name, session in sessions.items()
            if batch in ([fixed[name]] if fixed[name] else settings.batch_sizes)
        }
        samples = interleave(
            calls,
            TimingEffort(settings.seconds, settings.rounds),
            progress=share_reporter(progress, "bench", f"batch {batch}, "),
        )
        for name in calls:
            latency = Latency(batch, "host", samples[name])
            latencies[name] += (replace(latency, notes=timing_notes(latency)),)
    return latencies


def _time_on_gpu(
    name: str, engine: Engine, settings: BenchConfig, progress: ProgressCallback
) -> tuple[Latency, ...]:
    """Time an engine on its GPU: whole calls, which also warm it up, then compute and throughput.

    An engine whose memory cannot be bound gives whole calls alone.
    """
    backend, specs = backends.load(engine.backend), _inputs(engine)
    device = int(engine.made_with.get("device", 0))
    effort = TimingEffort(settings.seconds, settings.rounds)
    gc.collect()  # sessions hold cycles: that of the engine before may still be in memory
    free, session = gpu.free_memory(device), backend.open(engine)
    latencies: list[Latency] = []
    for batch in [size] if (size := fixed_batch(specs)) else sorted(settings.batch_sizes):
        feeds = random_inputs(specs, batch, seed=0)
        report = share_reporter(progress, "bench", f"{name} at batch {batch}, ")
        run = session.bind(feeds)
        call = partial(session.run, feeds) if run is None else gpu.whole_call(run)
        samples: dict[Where, tuple[float, ...]] = {
            "host": interleave({name: call}, effort, progress=report)[name]
        }
        load = None
        if run is not None:
            used = max(0, (free or 0) - (gpu.free_memory(device) or 0))
            report("compute", None)
            samples["device"] = gpu.time_compute(run, settings.seconds)
            report("throughput", None)
            others = [backend.open(engine) for _ in range(settings.streams - 1)]
            runs = [run, *filter(None, (other.bind(feeds) for other in others))]
            load = gpu.measure_load(runs, batch, settings.seconds, device, used)
            replay, why_not = gpu.record_graph(run)
            if replay is not None:
                report("CUDA graph", None)
                samples["graph"] = gpu.time_compute(replay, settings.seconds)
            load = replace(load, no_graph=why_not)
        for where, times in samples.items():
            latency = Latency(batch, where, times, gpu=load if where == "host" else None)
            latencies.append(replace(latency, notes=timing_notes(latency, on_gpu=True)))
    return tuple(latencies)


def _measure_footprint(engine: Engine) -> Footprint:
    coverage = backends.load(engine.backend).open(engine).coverage()
    if engine.backend != "cpu":
        reason = "measured for engines of the CPU only"
        return Footprint(coverage, PeakMemory(None, reason=reason))
    specs = _inputs(engine)
    feeds = random_inputs(specs, fixed_batch(specs) or 1, seed=0)
    return Footprint(coverage, measure_peak(engine.folder / engine.files[0], feeds, engine.threads))


def _inputs(engine: Engine) -> tuple[TensorSpec, ...]:
    return onnx_io.inputs(onnx_io.load(engine.folder / engine.graph))

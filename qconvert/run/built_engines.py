"""The engines of a run: built, or taken from the cache by what made them, and copied to the run."""

import hashlib
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pydantic

from qconvert import backends
from qconvert.backends.base import BuildSpec, Engine, EngineVariant, Profile
from qconvert.core import onnx_io
from qconvert.core.atomic import copy_into_place
from qconvert.core.cache import CacheResult, file_sha256
from qconvert.core.errors import QConvertError, first_line
from qconvert.core.progress import megabytes, share_reporter, start_step
from qconvert.core.tensors import TensorSpec
from qconvert.quantize.plan_files import weights_path
from qconvert.run.context import JobContext, RunContext
from qconvert.run.run_folder import ENGINE_FILE, GRAPH_RECORD, PLAN_FILE
from qconvert.run.variant_graphs import VariantGraph, engine_settings

_ENGINE_ADAPTER = pydantic.TypeAdapter(Engine)
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class BuiltEngine:
    """An engine, the seconds that its build took, and whether it came from the cache."""

    engine: Engine
    seconds: float
    stored: bool = False


def build_engine(variant: EngineVariant, graph: VariantGraph, context: RunContext) -> BuiltEngine:
    """Return the engine of a variant, in the folder of the run."""
    end = start_step(context.progress, "build", variant.name)
    entry = cached_engine(variant, graph, context)
    folder = context.folder.engine(variant.name)
    if not _has_same_files(entry.path, folder):
        copy_into_place(entry.path, folder)
    built = replace(read_engine(folder), stored=entry.hit)
    end(f"{variant.name}, {megabytes(built.engine.bytes)}", entry.hit)
    return built


def cached_engine(variant: EngineVariant, graph: VariantGraph, context: JobContext) -> CacheResult:
    """Return an engine in the cache; the same graph, options and machine are built only once."""
    backend, spec = backends.load(variant.backend), _build_spec(variant, context)
    key = {"model": file_sha256(graph.path), "name": variant.name, **backend.cache_key(spec)}
    report = share_reporter(context.progress, "build", f"{variant.name}: ")

    def make(folder: Path) -> None:
        started = time.perf_counter()
        engine = backend.build(graph.path, spec, folder, report)
        for name in (PLAN_FILE, weights_path(Path(PLAN_FILE)).name, GRAPH_RECORD):
            if (graph.folder / name).is_file():
                shutil.copyfile(graph.folder / name, folder / name)
        seconds = time.perf_counter() - started
        record = {**asdict(engine), "folder": ".", "build_seconds": seconds}
        text = json.dumps(record, indent=1, sort_keys=True)
        (folder / ENGINE_FILE).write_text(text, encoding="utf-8")

    return context.cache.get_or_make("engine", key, make)


def require_readable_graph(variant: EngineVariant, graph: Path, context: JobContext) -> None:
    """Raise for a float graph that the backend cannot read, whatever the precision; cached."""
    backend = backends.load(variant.backend)
    spec = _build_spec(replace(variant, precision="fp32"), context)
    key = {"graph": onnx_io.fingerprint(onnx_io.load(graph)), **backend.cache_key(spec)}
    context.cache.get_or_make("read", key, lambda _: backend.require_readable(graph, spec))


def read_engine(folder: Path) -> BuiltEngine:
    """Return the engine in a folder; all its files must be in there."""
    try:
        record = json.loads((folder / ENGINE_FILE).read_text(encoding="utf-8"))
        engine = _ENGINE_ADAPTER.validate_python({**record, "folder": folder})
        seconds = float(record["build_seconds"])
        _require_valid(engine)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = first_line(error)
    else:
        return BuiltEngine(engine, seconds)
    raise QConvertError(
        f"`{folder}` holds no engine: {reason}",
        hint="name a folder `RUN/engines/NAME` that `qconvert build` made, or an ONNX file",
    )


def engine_sha256(engine: Engine) -> str:
    """Return one hash over the files that an engine loads."""
    digest = hashlib.sha256()
    for name in engine.files:
        with (engine.folder / name).open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def engine_hashes(engines: Mapping[str, Engine]) -> dict[str, str]:
    """Return what decides how each engine runs: its files, and how it was made."""
    return {
        name: " ".join(
            [
                *(file_sha256(engine.folder / file)[:16] for file in engine.files),
                json.dumps({**engine.made_with, "run threads": engine.threads}, sort_keys=True),
            ]
        )
        for name, engine in engines.items()
    }


def engine_inputs(engine: Engine) -> tuple[TensorSpec, ...]:
    """Return the inputs of an engine."""
    return onnx_io.inputs(onnx_io.load(engine.folder / engine.graph))


def _build_spec(variant: EngineVariant, context: JobContext) -> BuildSpec:
    """Return how an engine is built; builders keep their timings for the next build."""
    settings = engine_settings(context, variant.backend)
    if settings.get("timing-cache") == "":
        settings["timing-cache"] = str(context.cache.root / "timings")
    threads = int(settings.pop("threads", 0))
    default_rest = backends.requirements(variant.backend).default_rest
    return BuildSpec(
        variant.precision,
        Profile(*context.config.build.profile),
        threads,
        settings,
        rest=context.config.quantize.rest or default_rest,
    )


def _require_valid(engine: Engine) -> None:
    """Raise ValueError for what no build writes: the folder of a run is untrusted."""
    if engine.backend not in backends.BACKENDS:
        raise ValueError(f"there is no backend `{engine.backend}`")
    if not engine.files:
        raise ValueError("it names no files")
    for name in (engine.graph, *engine.files):
        if not name or Path(name).name != name or not (engine.folder / name).is_file():
            raise ValueError(f"`{name}` is no file in it")


def _has_same_files(entry: Path, folder: Path) -> bool:
    files = [path for path in entry.iterdir() if path.is_file()]
    return all(
        (folder / path.name).is_file() and file_sha256(folder / path.name) == file_sha256(path)
        for path in files
    )

"""Engines of a run: built, or found in the store by what made them, and copied into the run."""

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
from qconvert.core.config import Config
from qconvert.core.errors import QConvertError, first_line
from qconvert.core.progress import Progress, megabytes
from qconvert.core.tensors import TensorSpec
from qconvert.quantize.plan_files import weights_path
from qconvert.run.run_folder import ENGINE_FILE, GRAPH_RECORD, PLAN_FILE, RunContext
from qconvert.run.variant_graphs import VariantGraph, engine_settings

_ENGINE_ADAPTER = pydantic.TypeAdapter(Engine)
PERCENT = 100
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class BuiltEngine:
    """An engine in the run's folder, and what its build cost."""

    engine: Engine
    seconds: float
    stored: bool = False


def build_engine(variant: EngineVariant, graph: VariantGraph, shop: RunContext) -> BuiltEngine:
    """Return the engine of a variant, in the run's folder."""
    started = time.perf_counter()
    shop.progress(Progress("build", variant.name))
    found = cached_engine(variant, graph, shop)
    place = shop.folder.engine(variant.name)
    if not _is_same_engine(found.path, place):
        copy_into_place(found.path, place)
    built = read_engine(place)
    text = f"{variant.name}, {megabytes(built.engine.bytes)}"
    shop.progress(Progress("build", text, time.perf_counter() - started, found.hit))
    return BuiltEngine(built.engine, built.seconds, found.hit)


def cached_engine(variant: EngineVariant, graph: VariantGraph, shop: RunContext) -> CacheResult:
    """Return an engine in the store; the same graph, options and machine are built only once."""
    backend = backends.load(variant.backend)
    spec = build_spec(variant, shop.config, shop.cache.root / "timings")
    recipe = {
        "model": file_sha256(graph.path),
        "name": variant.name,
        **backend.cache_key(spec),
    }

    def heard(text: str, share: float | None) -> None:
        done, total = (round(share * PERCENT), PERCENT) if share is not None else (0, 0)
        shop.progress(Progress("build", f"{variant.name}: {text}", done=done, total=total))

    def make(folder: Path) -> None:
        began = time.perf_counter()
        engine = backend.build(graph.path, spec, folder, heard)
        for name in (PLAN_FILE, weights_path(Path(PLAN_FILE)).name, GRAPH_RECORD):
            if (graph.folder / name).is_file():
                shutil.copyfile(graph.folder / name, folder / name)
        write_engine(engine, time.perf_counter() - began, folder)

    return shop.cache.get_or_make("engine", recipe, make)


def require_readable_graph(variant: EngineVariant, graph: Path, shop: RunContext) -> None:
    """Refuse a float graph that a backend cannot read; a store tries it once.

    Nothing of it depends on the precision.
    """
    backend = backends.load(variant.backend)
    spec = build_spec(replace(variant, precision="fp32"), shop.config, shop.cache.root / "timings")
    recipe = {"graph": onnx_io.fingerprint(onnx_io.load(graph)), **backend.cache_key(spec)}
    shop.cache.get_or_make("read", recipe, lambda _: backend.require_readable(graph, spec))


def build_spec(variant: EngineVariant, config: Config, timings: Path) -> BuildSpec:
    """Return how an engine is built; what is timed on the way is kept for the next build."""
    table = engine_settings(config, variant.backend)
    if table.get("timing-cache") == "":
        table["timing-cache"] = str(timings)
    threads = int(table.pop("threads", 0))
    return BuildSpec(
        variant.precision,
        Profile(*config.build.profile),
        threads,
        table,
        rest=config.quantize.rest or backends.requirements(variant.backend).default_rest,
    )


def write_engine(engine: Engine, seconds: float, folder: Path) -> None:
    """Write down what an engine is, beside its files."""
    told = {**asdict(engine), "folder": ".", "build_seconds": seconds}
    (folder / ENGINE_FILE).write_text(json.dumps(told, indent=1, sort_keys=True), encoding="utf-8")


def read_engine(folder: Path) -> BuiltEngine:
    """Return the engine that lies in a folder; its files are names in there, and nowhere else."""
    try:
        told = json.loads((folder / ENGINE_FILE).read_text(encoding="utf-8"))
        engine = _ENGINE_ADAPTER.validate_python({**told, "folder": folder})
        seconds = float(told["build_seconds"])
        _require_valid(engine)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise _not_an_engine(
            folder, f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        ) from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _not_an_engine(folder, first_line(error)) from None
    return BuiltEngine(engine, seconds)


def engine_sha256(engine: Engine) -> str:
    """Return one hash over the files that an engine loads."""
    whole = hashlib.sha256()
    for name in engine.files:
        with (engine.folder / name).open("rb") as file:
            while part := file.read(CHUNK_BYTES):
                whole.update(part)
    return whole.hexdigest()


def _not_an_engine(folder: Path, why: str) -> QConvertError:
    return QConvertError(
        f"`{folder}` holds no engine: {why}",
        hint="name a folder `RUN/engines/NAME` that `qconvert build` made, or an ONNX file",
    )


def _require_valid(engine: Engine) -> None:
    """Raise ValueError for what no build wrote: a run folder may come from anywhere."""
    if engine.backend not in backends.BACKENDS:
        raise ValueError(f"there is no backend `{engine.backend}`")
    if not engine.files:
        raise ValueError("it names no files")
    for name in (engine.graph, *engine.files):
        if not name or Path(name).name != name or not (engine.folder / name).is_file():
            raise ValueError(f"`{name}` is no file in it")


def _is_same_engine(stored: Path, place: Path) -> bool:
    """Whether the run has this very engine already."""
    names = sorted(file.name for file in stored.iterdir())
    return place.is_dir() and all(
        (place / name).is_file() and file_sha256(place / name) == file_sha256(stored / name)
        for name in names
        if (stored / name).is_file()
    )


def engine_hashes(engines: Mapping[str, Engine]) -> dict[str, str]:
    """Return for each engine what decides how it runs: its files, and how it was made."""
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
    """Return what an engine is fed."""
    return onnx_io.inputs(onnx_io.load(engine.folder / engine.graph))

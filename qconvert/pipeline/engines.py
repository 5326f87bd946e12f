"""Engines of a run: built, or found in the store by what made them, and copied into the run."""

import hashlib
import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pydantic

from qconvert import backends, onnx_io
from qconvert.backends.base import BuildSpec, Engine, Profile
from qconvert.config import Config
from qconvert.errors import QConvertError, reason
from qconvert.pipeline.graphs import MADE, PLAN, Graph, engine_settings
from qconvert.pipeline.prepared import megabytes
from qconvert.pipeline.progress import Progress
from qconvert.pipeline.run_folder import put_copy
from qconvert.pipeline.variants import Variant
from qconvert.pipeline.workshop import Workshop
from qconvert.quantize.plan_files import beside
from qconvert.store import Found, digest

_ADAPTER = pydantic.TypeAdapter(Engine)
ENGINE = "engine.json"
PERCENT = 100
PART = 2**20


@dataclass(frozen=True)
class Built:
    """An engine in the run's folder, and what its build cost."""

    engine: Engine
    seconds: float
    stored: bool = False


def build(variant: Variant, graph: Graph, shop: Workshop) -> Built:
    """Return the engine of a variant, in the run's folder."""
    started = time.perf_counter()
    shop.tell(Progress("build", variant.name))
    found = stored(variant, graph, shop)
    place = shop.run.engine(variant.name)
    if not _same(found.path, place):
        put_copy(found.path, place)
    built = read(place)
    text = f"{variant.name}, {megabytes(built.engine.bytes)}"
    shop.tell(Progress("build", text, time.perf_counter() - started, found.stored))
    return Built(built.engine, built.seconds, found.stored)


def stored(variant: Variant, graph: Graph, shop: Workshop) -> Found:
    """Return an engine in the store; the same graph, options and machine are built only once."""
    backend = backends.load(variant.backend)
    spec = spec_for(variant, shop.config, shop.store.root / "timings")
    recipe = {
        "model": digest(graph.path),
        "name": variant.name,
        **backend.recipe(spec),
    }

    def heard(text: str, share: float | None) -> None:
        done, total = (round(share * PERCENT), PERCENT) if share is not None else (0, 0)
        shop.tell(Progress("build", f"{variant.name}: {text}", done=done, total=total))

    def make(folder: Path) -> None:
        began = time.perf_counter()
        engine = backend.build(graph.path, spec, folder, heard)
        for name in (PLAN, beside(Path(PLAN)).name, MADE):
            if (graph.folder / name).is_file():
                shutil.copyfile(graph.folder / name, folder / name)
        write(engine, time.perf_counter() - began, folder)

    return shop.store.get("engine", recipe, make)


def require_readable(variant: Variant, graph: Path, shop: Workshop) -> None:
    """Refuse a float graph that a backend cannot read; a store tries it once.

    Nothing of it depends on the precision.
    """
    backend = backends.load(variant.backend)
    spec = spec_for(replace(variant, precision="fp32"), shop.config, shop.store.root / "timings")
    recipe = {"graph": onnx_io.fingerprint(onnx_io.load(graph)), **backend.recipe(spec)}
    shop.store.get("read", recipe, lambda _: backend.require_readable(graph, spec))


def spec_for(variant: Variant, config: Config, timings: Path) -> BuildSpec:
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
        rest=config.quantize.rest or backends.wants(variant.backend).build_rest,
    )


def write(engine: Engine, seconds: float, folder: Path) -> None:
    """Write down what an engine is, beside its files."""
    told = {**asdict(engine), "folder": ".", "build_seconds": seconds}
    (folder / ENGINE).write_text(json.dumps(told, indent=1, sort_keys=True), encoding="utf-8")


def read(folder: Path) -> Built:
    """Return the engine that lies in a folder; its files are names in there, and nowhere else."""
    try:
        told = json.loads((folder / ENGINE).read_text(encoding="utf-8"))
        engine = _ADAPTER.validate_python({**told, "folder": folder})
        seconds = float(told["build_seconds"])
        _require_sound(engine)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise _no_engine(folder, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise _no_engine(folder, reason(error)) from None
    return Built(engine, seconds)


def hash_of(engine: Engine) -> str:
    """Return one hash over the files that an engine loads."""
    whole = hashlib.sha256()
    for name in engine.files:
        with (engine.folder / name).open("rb") as file:
            while part := file.read(PART):
                whole.update(part)
    return whole.hexdigest()


def _no_engine(folder: Path, why: str) -> QConvertError:
    return QConvertError(
        f"`{folder}` holds no engine: {why}",
        hint="name a folder `RUN/engines/NAME` that `qconvert build` made, or an ONNX file",
    )


def _require_sound(engine: Engine) -> None:
    """Raise ValueError for what no build wrote: a run folder may come from anywhere."""
    if engine.backend not in backends.BACKENDS:
        raise ValueError(f"there is no backend `{engine.backend}`")
    if not engine.files:
        raise ValueError("it names no files")
    for name in (engine.graph, *engine.files):
        if not name or Path(name).name != name or not (engine.folder / name).is_file():
            raise ValueError(f"`{name}` is no file in it")


def _same(stored: Path, place: Path) -> bool:
    """Whether the run has this very engine already."""
    names = sorted(file.name for file in stored.iterdir())
    return place.is_dir() and all(
        (place / name).is_file() and digest(place / name) == digest(stored / name)
        for name in names
        if (stored / name).is_file()
    )

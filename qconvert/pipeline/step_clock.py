"""How long INT8 takes on its backend with blocks lifted, beside all of it and none of it."""

from collections.abc import Sequence
from dataclasses import replace

from qconvert import backends
from qconvert.measure.stats import stats
from qconvert.pipeline import engines, timing
from qconvert.pipeline.graphs import Basis, graph_of
from qconvert.pipeline.progress import Progress, Tell, silent
from qconvert.pipeline.variants import Variant
from qconvert.pipeline.workshop import Workshop
from qconvert.quantize.plan_files import Planned
from qconvert.search.explore import Clock
from qconvert.search.front import Set
from qconvert.search.subject import Subject

SECONDS = 1.0
FLOAT, PLAIN = "float", "int8"


def clock_of(subject: Subject, backend: str, base: Basis, shop: Workshop) -> Clock:
    """Return what builds and times engines of lifted sets in turns, at the first batch size."""
    rest = base.config.quantize.rest or backends.wants(backend).build_rest
    quiet = replace(shop, tell=_only_work(shop.tell))
    sizes, seconds = shop.config.bench.batch_sizes[:1], shop.config.bench.seconds
    bench = replace(shop.config.bench, batch_sizes=sizes, seconds=min(SECONDS, seconds))

    def engine(variant: Variant, basis: Basis) -> engines.Built:
        graph = graph_of(variant, basis, shop.store, silent)
        return engines.read(engines.stored(variant, graph, quiet).path)

    def clock(sets: Sequence[Set]) -> dict[tuple[str, ...] | None, float]:
        made = {FLOAT: engine(Variant(backend, rest), base)}
        names: dict[str, tuple[str, ...] | None] = {FLOAT: None}
        for number, each in enumerate(sets, 1):
            variant = Variant(backend, "mixed" if each else "int8")
            plan = {variant.name: Planned(subject.lifted(each), subject.weights)} if each else {}
            name = f"set {number}" if each else PLAIN
            made[name] = engine(variant, replace(base, plans={**base.plans, **plan}))
            names[name] = tuple(block.name for block in each)
        found = timing.timed(
            {name: each.engine for name, each in made.items()}, bench, shop.store, quiet.tell
        )
        return {names[name]: stats(each[0]).median_ms for name, each in found.items()}

    return clock


def _only_work(tell: Tell) -> Tell:
    """Say what is at work, and not what ended: to the user it is all one search."""

    def heard(progress: Progress) -> None:
        if progress.seconds is None:
            tell(replace(progress, step="search"))

    return heard

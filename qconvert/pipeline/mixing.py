"""Mixed precision as one more engine of a run, and as a job of its own."""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from qconvert import drafts, onnx_io
from qconvert.config import Config
from qconvert.errors import QConvertError, UsageError
from qconvert.measure.mix import Mix
from qconvert.pipeline import basis, joining, run_folder, targets, variants
from qconvert.pipeline.exams import exam_of
from qconvert.pipeline.graphs import PLAN, Basis, graph_of
from qconvert.pipeline.preview import layers as quantized_layers
from qconvert.pipeline.progress import Tell
from qconvert.pipeline.requests import Request
from qconvert.pipeline.run_folder import SEARCHED, RunFolder, put_copy, put_text
from qconvert.pipeline.scoring import Exam
from qconvert.pipeline.searching import Task, search
from qconvert.pipeline.variants import Chosen, Variant
from qconvert.pipeline.workshop import Workshop
from qconvert.quantize.plan_files import beside
from qconvert.report.conclude import conclude
from qconvert.search.blocks import MOST
from qconvert.store import Store

MIXED, TRIALS = "mixed.onnx", "trials.jsonl"
PLANS = (PLAN, beside(Path(PLAN)).name)


@dataclass(frozen=True)
class WithMixes:
    """The engines to make and their basis, which has the plans of the mixes that were found."""

    chosen: Chosen
    basis: Basis
    mixes: Mapping[str, Mix] = field(default_factory=dict)


def with_mixes(chosen: Chosen, base: Basis, exam: Exam | None, shop: Workshop) -> WithMixes:
    """Search for every mix asked for; one that there is not is left out, with the reason."""
    kept: list[Variant] = []
    notes = list(chosen.notes)
    mixes: dict[str, Mix] = {}
    gone: list[Variant] = []
    for variant in chosen.variants:
        if variant.precision != "mixed" or _is_known(variant, base, shop):
            kept.append(variant)
            continue
        task = Task(variant.backend, base, exam, chosen.available[variant.backend])
        found = search(task, shop, shop.run.root / "analysis" / f"{variant.backend}-{TRIALS}")
        mixes[variant.backend] = found.mix
        notes += (note for note in found.mix.notes if note not in notes)
        if found.planned is None:
            notes.append(f"no `{variant.name}`: {found.mix.why}")
            gone.append(variant)
        else:
            kept.append(variant)
            base = replace(base, plans={**base.plans, variant.name: found.planned})
    for variant in gone:  # of an earlier search, which did not ask the same
        drafts.remove(shop.run.engine(variant.name))
    if not kept:
        _forget({each.name for each in gone}, mixes, shop)
        raise QConvertError(notes[-1], hint="build others: `--precision fp32,int8`")
    return WithMixes(replace(chosen, variants=tuple(kept), notes=tuple(notes)), base, mixes)


def _forget(gone: Collection[str], mixes: Mapping[str, Mix], shop: Workshop) -> None:
    """Leave engines out of the report of a run that has nothing new to report."""
    before = joining.report_before(shop.run)
    if before is not None:
        rows = tuple(each for each in before.variants if each.name not in gone)
        known = replace(before, variants=rows, mixes={**before.mixes, **mixes})
        targets.put_all(conclude(known, shop.config.gate), shop.run)


def _is_known(variant: Variant, base: Basis, shop: Workshop) -> bool:
    """Whether the run has the mix already, found by a search that asked the same."""
    if variant.name not in base.plans:
        return False
    report, asked = joining.report_before(shop.run), shop.config.search
    mix = report.mixes.get(variant.backend) if report is not None else None
    if mix is None:  # there is nothing that says what was asked
        return True
    same = (mix.budget, mix.max_latency) == (asked.budget, asked.max_latency)
    return same and asked.by in (None, mix.by)


@dataclass(frozen=True)
class Job:
    """Where a search goes; nothing here changes a number."""

    out: Path
    trust: bool = False
    workers: int | None = None


@dataclass(frozen=True)
class Searched:
    """What a search found for a backend, and the bytes of the graphs: FP32, INT8 and the mix."""

    backend: str
    mix: Mix
    sizes: Mapping[str, int]
    notes: tuple[str, ...]


def find_mix(config: Config, job: Job, store: Store, tell: Tell) -> Searched:
    """Search for one backend, and leave the mix, its plan and all trials in a folder."""
    variant, said = _target(config)
    with run_folder.begun(job.out, config, searching=True) as run:
        shop = Workshop(config, run, store, tell, job.trust)
        base = basis.make([variant], shop, building=said.available[variant.backend].builds)
        exam = exam_of(base, shop, job.workers, resumed=False)
        task = Task(variant.backend, base, exam, said.available[variant.backend])
        found = search(task, shop, run.root / TRIALS)
        sizes = {"fp32": _bytes(run.model)}
        sizes["int8"] = _bytes(graph_of(replace(variant, precision="int8"), base, store, tell).path)
        if found.planned is not None:
            with_plan = replace(base, plans={variant.name: found.planned})
            graph = graph_of(variant, with_plan, store, tell)
            put_copy(graph.path, run.root / MIXED)
            for name in PLANS:
                (run.root / name).unlink(missing_ok=True)
                if (graph.folder / name).is_file():
                    put_copy(graph.folder / name, run.root / name)
            sizes["mixed"] = _bytes(run.root / MIXED)
        else:
            _drop(run)
        put_text(run.root / SEARCHED, json.dumps(asdict(found.mix), indent=1) + "\n")
        return Searched(variant.backend, found.mix, sizes, said.notes)


def _target(config: Config) -> tuple[Variant, Chosen]:
    """Return the one backend that is searched for."""
    only = replace(config.build, precisions=("mixed",))
    said = variants.choose(only, plan_only=True)
    if len(said.variants) > 1:
        names = ", ".join(f"`{each.backend}`" for each in said.variants)
        raise UsageError(f"a search is for one backend, not for {names}", hint="name one of them")
    return said.variants[0], said


def _drop(run: RunFolder) -> None:
    """Delete the mix of an earlier search, which did not ask the same."""
    for name in (MIXED, *PLANS):
        (run.root / name).unlink(missing_ok=True)


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in onnx_io.files(path))


def preview(config: Config, store: Store, *, trust: bool) -> list[str]:
    """Return what a search would try, without an image; nothing is kept."""
    variant, said = _target(config)
    request = Request(Path("model.onnx"), variant.backend, "int8", trust=trust)
    layers = quantized_layers(config, request, store)
    weighted = sum(not layer.left and layer.weight is not None for layer in layers.values())
    there = said.available[variant.backend]
    return [
        f"model     {config.model}",
        f"backend   {variant.backend}: {'runs here' if there.runs else there.reason}",
        f"calibrate {config.calibration.images or 'no images'}",
        f"blocks    {min(weighted, MOST)}, of {weighted} operators with weights in INT8",
        f"budget    {config.search.budget:g} points",
        f"confirm   {config.evaluate.images or 'on the images of the search'}",
    ]

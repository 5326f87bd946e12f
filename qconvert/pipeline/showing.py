"""What a report shows of a run's errors: measured, drawn, and put into the run's folder."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from qconvert import drafts, onnx_io
from qconvert.measure.accuracy import Accuracy
from qconvert.pipeline.analysing import Analysis
from qconvert.pipeline.featuring import FEATURES, PICTURES, Shown, feature_maps_of
from qconvert.pipeline.graphs import Basis, Graph
from qconvert.pipeline.range_evidence import tensor_ranges, weight_ranges
from qconvert.pipeline.run_folder import RunFolder, put_copy
from qconvert.pipeline.scoring import Exam
from qconvert.pipeline.thumbnails import CHANGED, thumbnails
from qconvert.pipeline.variants import Variant
from qconvert.pipeline.workshop import Workshop
from qconvert.quantize.equalize import equalized
from qconvert.report.evidence import Evidence, FeatureMap

MOST_SHOWN = 3


def evidence_of(
    graphs: Mapping[Variant, Graph], base: Basis, analysis: Analysis, shop: Workshop
) -> Evidence:
    """Return what explains the layers: ranges, weights and feature maps of the worst of them."""
    known = {v: graph for v, graph in graphs.items() if v.name in analysis.layers}
    if not known:
        return Evidence()
    # INT8 is what goes wrong; the first of its engines stands for all.
    variant = next((each for each in known if each.precision == "int8"), next(iter(known)))
    layers, graph = analysis.layers[variant.name], known[variant]
    even = equalized(base.ready.model, graph.plan.equalized if graph.plan is not None else {})
    found = Evidence(weights=weight_ranges(even, layers))
    if graph.plan is not None and base.found is not None:
        seen = (base.ready.model, base.found.whole.summaries)
        found = replace(found, ranges=tensor_ranges(variant.name, graph.plan, seen, layers))
    if analysis.sample is None:
        return found
    shown = Shown(
        shop.run.model, {v.name: graph.path for v, graph in _different(known).items()}, layers
    )
    return replace(found, feature_maps=_drawn(shown, analysis, shop))


def with_answers(
    found: Evidence, exam: Exam, scores: Mapping[str, Accuracy], run: RunFolder
) -> Evidence:
    """Return the evidence with small copies of images that changed their answer, and class names.

    The copies go into the run, in place of those of other images.
    """
    changed = [each for score in scores.values() for each in score.changed]
    shifts = [each for score in scores.values() for each in score.shifts]
    small = thumbnails(exam.images.root, (each.image for each in changed))
    with drafts.temporary() as draft:
        for each, data in small.items():
            (draft / Path(each.picture).name).write_bytes(data)
        if small:
            put_copy(draft, run.root / CHANGED)
        elif scores.keys() >= set(run.engines()):
            shutil.rmtree(run.root / CHANGED, ignore_errors=True)
    numbers = {number for each in changed for number in (each.before, each.after, each.label)}
    numbers |= {each.label for each in shifts}
    names = exam.images.classes.names
    known = {
        str(number): names[number]
        for number in sorted(each for each in numbers if each is not None)
        if number < len(names) and names[number]
    }
    return replace(found, thumbnails=tuple(small), classes=known)


def _different(known: Mapping[Variant, Graph]) -> dict[Variant, Graph]:
    """Return some variants whose graphs differ: of equal ones the first."""
    graphs: dict[str, tuple[Variant, Graph]] = {}
    for variant, graph in known.items():
        graphs.setdefault(onnx_io.fingerprint(onnx_io.load(graph.path)), (variant, graph))
    # Floats before integers: as the error grows from row to row.
    ordered = sorted(graphs.values(), key=lambda pair: pair[0].precision == "int8")
    return dict(ordered[:MOST_SHOWN])


def _drawn(shown: Shown, analysis: Analysis, shop: Workshop) -> tuple[FeatureMap, ...]:
    """Draw feature maps and put them into the run."""
    assert analysis.sample is not None
    folder, maps = feature_maps_of(shown, analysis.sample, (shop.store, shop.tell))
    if maps:
        put_copy(folder / PICTURES, shop.run.root / FEATURES)
    return maps

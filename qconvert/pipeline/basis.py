"""What the engines of a run are made from: the float model and what calibration saw of it."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from qconvert import backends, onnx_io
from qconvert.backends.base import INTEGER
from qconvert.calibrate import ranges_file
from qconvert.calibrate.calibration import Calibration
from qconvert.config import Config
from qconvert.errors import QConvertError, UsageError
from qconvert.images.image_list import Entry, ImageList
from qconvert.pipeline import engines, pictures, prepared, requests, seen
from qconvert.pipeline.calibrate import Job
from qconvert.pipeline.graphs import GRAPH, PLAN, Basis
from qconvert.pipeline.prepared import Prepared
from qconvert.pipeline.rehearsing import once
from qconvert.pipeline.run_folder import CALIBRATION, RunFolder, absolute, put_text
from qconvert.pipeline.variants import Variant
from qconvert.pipeline.workshop import Workshop
from qconvert.quantize import plan as plans
from qconvert.quantize import plan_files
from qconvert.quantize.found import plan_of

IMAGES = "images.txt"


def make(variants: Sequence[Variant], shop: Workshop, *, building: bool) -> Basis:
    """Read and clean the model, look at the images, and put what came of it into the run.

    What can be refused is, before any picture is run; `building` says that engines will be built.
    """
    config = shop.config
    ready = prepared.load(config, shop.store, shop.tell, trust=shop.trust)
    known = pictures.preprocessing(ready.source, config)
    ready = replace(ready, model=pictures.signed(ready.model, known))
    _require_same(ready, shop.run)
    _require_own_plans(variants, shop.run)
    _require_placed(variants, ready, config)
    for each in variants if building else ():
        engines.require_readable(each, ready.path, shop)
    onnx_io.save(ready.model, shop.run.model)
    if config.calibration.images is not None:
        found = seen.measured(ready, config, Job(shop.run.calibration), shop.store, shop.tell)
        _require_same_images(found.whole, variants, shop.run)
        _keep(found.whole, config, shop.run)
        return Basis(ready, config, found)
    _require_known(variants, known=())
    return Basis(ready, config, None)


def _require_placed(variants: Sequence[Variant], ready: Prepared, config: Config) -> None:
    """Refuse INT8 of a model that has nothing to round."""
    for each in variants:
        if each.precision in INTEGER:
            requests.require_placed(ready.model, config, backends.wants(each.backend))


def _require_same(ready: Prepared, run: RunFolder) -> None:
    """Refuse a run of another model that lay at the same place."""
    if run.model.is_file() and run.has_results():
        before = onnx_io.fingerprint(onnx_io.load(run.model))
        if before != onnx_io.fingerprint(ready.model):
            raise UsageError(
                f"`{run.root}` holds a run of another model",
                hint="choose another folder: `-o RUN`, or delete this one",
            )


def _require_own_plans(variants: Sequence[Variant], run: RunFolder) -> None:
    """Refuse to make anew what has a plan that somebody changed: it would be lost."""
    for each in variants:
        plan = run.engine(each.name) / PLAN
        if _is_changed(plan):
            raise UsageError(
                f"`{plan}` is another plan than its graph was made by, and would be overwritten",
                hint=f"`qconvert build --from {shlex.quote(str(run.root))}` follows it; "
                "delete it, and it is made anew",
            )


def _is_changed(plan: Path) -> bool:
    """Whether a plan is not that of the graph beside it; what cannot be read is made anew."""
    graph = plan.with_name(GRAPH)
    if not plan.is_file() or not graph.is_file():
        return False
    try:
        made_by = plan_of(onnx_io.load(graph))
        return made_by is not None and made_by != plans.load(plan)
    except QConvertError:
        return False


def _require_same_images(found: Calibration, variants: Sequence[Variant], run: RunFolder) -> None:
    """Refuse other images beside INT8 engines that stay, whose ranges come from those of before."""
    others = set(run.engines()) - {each.name for each in variants}
    staying = [name for name in sorted(others) if (run.engine(name) / PLAN).is_file()]
    if not staying or not run.calibration.is_file():
        return
    if ranges_file.load(run.calibration).origin.images != found.origin.images:
        raise UsageError(
            f"`{run.root}` has {', '.join(f'`{name}`' for name in staying)} from other images "
            "than these",
            hint="build those again too, with `--precision`, or choose another folder: `-o RUN`",
        )


def again(variants: Sequence[Variant], shop: Workshop) -> Basis:
    """Return what an earlier run was made from, which needs no image and no source again."""
    config, run = shop.config, shop.run
    once(run.model, run.model)
    ready = prepared.as_it_is(run.model, shop.tell)
    found = None
    if run.calibration.is_file():
        if not seen.are_there(ready, config, run.calibration):
            _require_not_given(config, run)
            config = replace(config, calibration=replace(config.calibration, images=None))
        found = seen.from_file(ready, config, run.calibration)
    folders = (run.root / "engines").glob(f"*/{PLAN}")
    known = {file.parent.name: plan_files.load(file) for file in folders}
    if found is None:
        _require_known(variants, known)
    return Basis(ready, config, found, known)


def _require_not_given(config: Config, run: RunFolder) -> None:
    """Refuse another place for images that does not have those of the run."""
    given = absolute(config).calibration.images
    if given != run.settings().calibration.images:
        raise UsageError(
            f"`{given}` has not the images that `{run.root}` was calibrated on",
            hint="name the place where they lie now, or leave `--images` out",
        )


def _require_known(variants: Sequence[Variant], known: Collection[str]) -> None:
    """Refuse INT8 of which neither a plan nor any picture tells the ranges."""
    if any(each.precision in INTEGER and each.name not in known for each in variants):
        raise UsageError(
            "INT8 needs to know which values the tensors take",
            hint="give pictures to a new run: `--images PATH`, or leave it out: "
            "`--precision fp32,fp16`",
        )


def _keep(found: Calibration, config: Config, run: RunFolder) -> None:
    """Put the calibration into the run, and the list of its images as sha256sum reads it."""
    ranges_file.save(found, run.calibration)
    images = [found.origin.images[int(at)] for at in found.done]
    entries = tuple(Entry(image.name, image.sha256) for image in images)
    assert config.calibration.images is not None
    text = ImageList(config.calibration.images.absolute(), entries).to_text()
    put_text(run.root / CALIBRATION / IMAGES, text)

"""What the engines of a run are made from: the float model and what calibration saw of it."""

import shlex
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from qconvert import backends
from qconvert.backends.base import INTEGER, EngineVariant
from qconvert.calibrate import calibration_file
from qconvert.calibrate.calibration import Calibration
from qconvert.core import config_file, onnx_io
from qconvert.core.atomic import write_text
from qconvert.core.config import Config
from qconvert.core.errors import QConvertError, UsageError
from qconvert.images.batches import ImageManifest, ManifestEntry
from qconvert.quantize import plan_files
from qconvert.quantize.plan_files import read_embedded_plan
from qconvert.run import built_engines, calibration_sets, job_images, load_model, validate
from qconvert.run.calibrate import CalibrationRequest
from qconvert.run.load_model import crash_check_once
from qconvert.run.run_folder import (
    CALIBRATION,
    GRAPH_FILE,
    PLAN_FILE,
    RunContext,
    RunFolder,
)
from qconvert.run.variants import BuildInputs
from qconvert.sources import LoadedModel

IMAGE_LIST = "images.txt"


def prepare_inputs(
    variants: Sequence[EngineVariant], shop: RunContext, *, building: bool
) -> BuildInputs:
    """Read and clean the model, look at the images, and put what came of it into the run.

    What can be refused is, before any picture is run; `building` says that engines will be built.
    """
    config = shop.config
    ready = load_model.load_and_clean(config, shop.cache, shop.progress, trust=shop.trust)
    known = job_images.known_preprocessing(ready.source, config)
    ready = replace(ready, model=job_images.with_preprocessing(ready.model, known))
    _require_same_model(ready, shop.folder)
    _require_unedited_plans(variants, shop.folder)
    _require_quantizable(variants, ready, config)
    for each in variants if building else ():
        built_engines.require_readable_graph(each, ready.path, shop)
    onnx_io.save(ready.model, shop.folder.model)
    if config.calibration.images is not None:
        found = calibration_sets.measure(
            ready, config, CalibrationRequest(shop.folder.calibration), shop.cache, shop.progress
        )
        _require_same_images(found.full, variants, shop.folder)
        _write_calibration(found.full, config, shop.folder)
        return BuildInputs(ready, config, found)
    _require_ranges(variants, known=())
    return BuildInputs(ready, config, None)


def _require_quantizable(
    variants: Sequence[EngineVariant], ready: LoadedModel, config: Config
) -> None:
    """Refuse INT8 of a model that has nothing to round."""
    for each in variants:
        if each.precision in INTEGER:
            validate.require_quantizable_nodes(
                ready.model, config, backends.requirements(each.backend)
            )


def _require_same_model(ready: LoadedModel, run: RunFolder) -> None:
    """Refuse a run of another model that lay at the same place."""
    if run.model.is_file() and run.has_results():
        before = onnx_io.fingerprint(onnx_io.load(run.model))
        if before != onnx_io.fingerprint(ready.model):
            raise UsageError(
                f"`{run.root}` holds a run of another model",
                hint="choose another folder: `-o RUN`, or delete this one",
            )


def _require_unedited_plans(variants: Sequence[EngineVariant], run: RunFolder) -> None:
    """Refuse to make anew what has a plan that somebody changed: it would be lost."""
    for each in variants:
        plan = run.engine(each.name) / PLAN_FILE
        if _is_edited(plan):
            raise UsageError(
                f"`{plan}` is another plan than its graph was made by, and would be overwritten",
                hint=f"`qconvert build --from {shlex.quote(str(run.root))}` follows it; "
                "delete it, and it is made anew",
            )


def _is_edited(plan: Path) -> bool:
    """Whether a plan is not that of the graph beside it; what cannot be read is made anew."""
    graph = plan.with_name(GRAPH_FILE)
    if not plan.is_file() or not graph.is_file():
        return False
    try:
        made_by = read_embedded_plan(onnx_io.load(graph))
        return made_by is not None and made_by != plan_files.read_plan(plan)
    except QConvertError:
        return False


def _require_same_images(
    found: Calibration, variants: Sequence[EngineVariant], run: RunFolder
) -> None:
    """Refuse other images beside INT8 engines that stay, whose ranges come from those of before."""
    others = set(run.engines()) - {each.name for each in variants}
    staying = [name for name in sorted(others) if (run.engine(name) / PLAN_FILE).is_file()]
    if not staying or not run.calibration.is_file():
        return
    if calibration_file.load(run.calibration).origin.images != found.origin.images:
        raise UsageError(
            f"`{run.root}` has {', '.join(f'`{name}`' for name in staying)} from other images "
            "than these",
            hint="build those again too, with `--precision`, or choose another folder: `-o RUN`",
        )


def reload_inputs(variants: Sequence[EngineVariant], shop: RunContext) -> BuildInputs:
    """Return what an earlier run was made from, which needs no image and no source again."""
    config, run = shop.config, shop.folder
    crash_check_once(run.model, run.model)
    ready = load_model.load_clean(run.model, shop.progress)
    found = None
    if run.calibration.is_file():
        if not calibration_sets.has_images(ready, config, run.calibration):
            _require_no_other_images(config, run)
            config = replace(config, calibration=replace(config.calibration, images=None))
        found = calibration_sets.load(ready, config, run.calibration)
    folders = (run.root / "engines").glob(f"*/{PLAN_FILE}")
    known = {file.parent.name: plan_files.load_plan(file) for file in folders}
    if found is None:
        _require_ranges(variants, known)
    return BuildInputs(ready, config, found, known)


def _require_no_other_images(config: Config, run: RunFolder) -> None:
    """Refuse another place for images that does not have those of the run."""
    given = config_file.absolute_paths(config).calibration.images
    if given != run.settings().calibration.images:
        raise UsageError(
            f"`{given}` has not the images that `{run.root}` was calibrated on",
            hint="name the place where they lie now, or leave `--images` out",
        )


def _require_ranges(variants: Sequence[EngineVariant], known: Collection[str]) -> None:
    """Refuse INT8 of which neither a plan nor any picture tells the ranges."""
    if any(each.precision in INTEGER and each.name not in known for each in variants):
        raise UsageError(
            "INT8 needs to know which values the tensors take",
            hint="give pictures to a new run: `--images PATH`, or leave it out: "
            "`--precision fp32,fp16`",
        )


def _write_calibration(found: Calibration, config: Config, run: RunFolder) -> None:
    """Put the calibration into the run, and the list of its images as sha256sum reads it."""
    calibration_file.save(found, run.calibration)
    images = [found.origin.images[int(at)] for at in found.image_indices]
    entries = tuple(ManifestEntry(image.name, image.sha256) for image in images)
    assert config.calibration.images is not None
    text = ImageManifest(config.calibration.images.absolute(), entries).to_text()
    write_text(run.root / CALIBRATION / IMAGE_LIST, text)

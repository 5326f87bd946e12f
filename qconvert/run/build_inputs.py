"""The inputs of a build: the clean float model and its calibration, made now or by an earlier run.

Everything invalid is rejected before any image is run.
"""

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
from qconvert.core.errors import QConvertError, UsageError
from qconvert.images.batches import ImageManifest
from qconvert.images.listing import ImageEntry
from qconvert.quantize import plan_files
from qconvert.quantize.placement import require_quantizable
from qconvert.quantize.plan_files import read_embedded_plan
from qconvert.run.calibrate import (
    has_calibration_images,
    load_calibration_set,
    measure_calibration_set,
)
from qconvert.run.context import RunContext, known_preprocessing, with_preprocessing
from qconvert.run.load_model import crash_check_once, load_and_clean, load_clean
from qconvert.run.quantize_model import place_layers
from qconvert.run.run_folder import (
    CALIBRATION,
    ENGINES,
    GRAPH_FILE,
    OTHER_FOLDER,
    PLAN_FILE,
    RunFolder,
)
from qconvert.run.variants import BuildInputs, require_readable_graph


def prepare_inputs(
    variants: Sequence[EngineVariant], context: RunContext, *, building: bool
) -> BuildInputs:
    """Read and clean the model, calibrate it, and write both into the run.

    If `building`, the graph must be readable by the backends.
    """
    config, folder = context.config, context.folder
    loaded = load_and_clean(context)
    preprocess = known_preprocessing(loaded.source, config.preprocess)
    loaded = replace(loaded, model=with_preprocessing(loaded.model, preprocess))
    if folder.model.is_file() and folder.has_results():
        before = onnx_io.fingerprint(onnx_io.load(folder.model))
        if before != onnx_io.fingerprint(loaded.model):
            raise UsageError(f"`{folder.root}` holds a run of another model", hint=OTHER_FOLDER)
    for variant in variants:
        _require_unedited_plan(folder.engine(variant.name) / PLAN_FILE, folder)
        if variant.precision in INTEGER:
            requirements = backends.requirements(variant.backend)
            require_quantizable(place_layers(loaded.model, config.quantize, requirements))
    for variant in variants if building else ():
        require_readable_graph(variant, loaded.path, context)
    onnx_io.save(loaded.model, folder.model)
    if config.calibration.images is None:
        _require_ranges(variants, plans=())
        return BuildInputs(loaded, None)
    calibration = measure_calibration_set(loaded, context)
    full = calibration.full
    _require_same_images(full, variants, folder)
    calibration_file.save(full, folder.calibration)
    # The names and hashes of the images, in the format of sha256sum.
    images = [full.origin.images[int(index)] for index in full.image_indices]
    entries = tuple(ImageEntry(image.name, image.sha256) for image in images)
    manifest = ImageManifest(config.calibration.images.absolute(), entries)
    write_text(folder.root / CALIBRATION / "images.txt", manifest.to_text())
    return BuildInputs(loaded, calibration)


def reload_inputs(variants: Sequence[EngineVariant], context: RunContext) -> BuildInputs:
    """Read the inputs of an earlier run; this needs neither its images nor its source."""
    config, folder = context.config, context.folder
    crash_check_once(folder.model, folder.model)
    loaded = load_clean(folder.model, context.progress)
    plans = {
        file.parent.name: plan_files.load_plan(file)
        for file in folder.root.glob(f"{ENGINES}/*/{PLAN_FILE}")
    }
    if not folder.calibration.is_file():
        _require_ranges(variants, plans)
        return BuildInputs(loaded, None, plans)
    if not has_calibration_images(loaded, context, folder.calibration):
        images = config_file.absolute_paths(config).calibration.images
        if images != folder.settings().calibration.images:
            raise UsageError(
                f"`{images}` does not have the images that `{folder.root}` was calibrated on",
                hint="name the place where they are now, or leave `--images` out",
            )
        without_images = replace(config.calibration, images=None)
        context = replace(context, config=replace(config, calibration=without_images))
    return BuildInputs(loaded, load_calibration_set(loaded, context, folder.calibration), plans)


def _require_unedited_plan(plan: Path, folder: RunFolder) -> None:
    """Raise for a plan that the user has edited: building it anew would overwrite it."""
    graph = plan.with_name(GRAPH_FILE)
    if not plan.is_file() or not graph.is_file():
        return
    try:
        embedded = read_embedded_plan(onnx_io.load(graph))
        is_edited = embedded is not None and embedded != plan_files.read_plan(plan)
    except QConvertError:  # an unreadable plan or graph is replaced
        return
    if is_edited:
        raise UsageError(
            f"`{plan}` differs from the plan that its graph was made by, and would be overwritten",
            hint=f"`qconvert build --from {shlex.quote(str(folder.root))}` follows it; "
            "delete it to make a new one",
        )


def _require_same_images(
    calibration: Calibration, variants: Sequence[EngineVariant], folder: RunFolder
) -> None:
    """Raise if INT8 engines that stay in the run were calibrated on other images."""
    others = set(folder.engines()) - {variant.name for variant in variants}
    names = [name for name in sorted(others) if (folder.engine(name) / PLAN_FILE).is_file()]
    if not names or not folder.calibration.is_file():
        return
    if calibration_file.load(folder.calibration).origin.images != calibration.origin.images:
        raise UsageError(
            f"`{folder.root}` has engines that were calibrated on other images: "
            f"{', '.join(f'`{name}`' for name in names)}",
            hint="build those again too, with `--precision`, or choose another folder: `-o RUN`",
        )


def _require_ranges(variants: Sequence[EngineVariant], plans: Collection[str]) -> None:
    """Reject INT8 without a plan or calibration images."""
    if any(variant.precision in INTEGER and variant.name not in plans for variant in variants):
        raise UsageError(
            "INT8 needs the value range of every tensor",
            hint="give images to a new run: `--images PATH`, or leave INT8 out: "
            "`--precision fp32,fp16`",
        )

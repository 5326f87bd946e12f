"""A folder that runs with ONNX Runtime alone: the engine, its preprocessing, and a script."""

import re
import shutil
from pathlib import Path

from qconvert import backends
from qconvert.core.errors import UsageError
from qconvert.images.listing import CLASSES_FILE
from qconvert.package import bundle as bundles
from qconvert.package.bundle import Bundle
from qconvert.package.run_script import run_script
from qconvert.report.markdown import escape_text
from qconvert.tasks.decoders import MASK_LAYOUTS


def write(bundle: Bundle, folder: Path) -> tuple[str, ...]:
    """Write the folder."""
    engine = bundle.engine
    spec = backends.load(engine.backend).load_spec(engine)
    if spec.cuda_graph:
        raise UsageError(
            "an engine with a CUDA graph needs bound memory and runs only in qconvert",
            hint="build it again without `cuda-graph`",
        )
    for name in engine.files:
        shutil.copyfile(engine.folder / name, folder / name)
    (folder / "run.py").write_text(run_script(bundle, spec), encoding="utf-8")
    for package in spec.packages:
        # A name, extras and releases, and nothing that a shell would run.
        if not re.fullmatch(r"[\w.-]+(\[[\w,-]+\])?([<>=!~]{1,2}[\w.,<>=!~+*-]+)?", package):
            raise UsageError(
                f"the engine was built with `{package}`, not a package name with a version",
                hint="build the engine again: its `engine.json` was changed",
            )
    has_images, runtime = bundle.preparation is not None, engine.made_with.get("runtime", "")
    packages = [*(f'"{package}"' for package in spec.packages), "numpy", *["pillow"] * has_images]
    bundles.write_documents(
        bundle,
        folder,
        "onnxruntime.md.tmpl",
        CLASSES_FILE,
        packages=" ".join(packages),
        example="IMAGE.jpg" if has_images else "ARRAYS.npz",
        prints=printed(bundle),
        origin=escape_text(f"; it was built with {runtime}") if runtime else "",
    )
    return ()


def printed(bundle: Bundle) -> str:
    """Return what the script prints for each file."""
    if bundle.head is None:
        return "the range of each output" if bundle.scores is None else "the five likeliest classes"
    if bundle.head.layout in MASK_LAYOUTS:
        return (
            "the share of pixels of each class; `--masks FOLDER` writes the class of each pixel "
            "of the upright image as a PNG file, 255 where the model did not see it"
        )
    return (
        "the class, score, left, top, right and bottom of each object with a score above "
        "`--threshold`, in pixels of the upright image"
    )

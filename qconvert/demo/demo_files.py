"""A folder with all that the demo needs: the network, calibration and evaluation images."""

import hashlib
import json
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from qconvert.core.atomic import copy_into_place, write_text
from qconvert.core.cache import Cache, file_sha256
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import Progress, ProgressCallback
from qconvert.demo import generator

NETWORK = Path(__file__).with_name("network.onnx")
MARKER_FILE = "demo.json"


@dataclass(frozen=True)
class DemoImages:
    """The first `count` images of a seed."""

    name: str
    seed: int
    count: int

    def recipe(self) -> dict[str, str]:
        """Return what decides their bytes, the code that draws them included."""
        code = hashlib.sha256()
        for file in sorted(Path(__file__).parent.glob("*.py")):
            code.update(file.read_bytes())
        return {
            "name": self.name,
            "seed": str(self.seed),
            "count": str(self.count),
            "code": code.hexdigest(),
            **{package: version(package) for package in ("numpy", "pillow")},
        }


CALIBRATION_IMAGES = DemoImages(
    "calibration", generator.CALIBRATION_SEED, generator.CALIBRATION_COUNT
)
EVALUATION_IMAGES = DemoImages("evaluation", generator.EVALUATION_SEED, generator.EVALUATION_COUNT)


@dataclass(frozen=True)
class DemoFolder:
    """The paths of a demo."""

    network: Path
    calibration_images: Path
    evaluation_images: Path
    run_folder: Path


def prepare_demo(root: Path, cache: Cache, progress: ProgressCallback) -> DemoFolder:
    """Write the files that are missing; refuse a folder that holds anything else."""
    image_sets = (CALIBRATION_IMAGES, EVALUATION_IMAGES)
    calibration, evaluation = (root / images.name for images in image_sets)
    folder = DemoFolder(root / NETWORK.name, calibration, evaluation, root / "run")
    _claim_folder(root, image_sets)
    if not folder.network.exists():
        copy_into_place(NETWORK, folder.network)
    for images in image_sets:
        _draw_images(images, root / images.name, cache, progress)
    return folder


def _claim_folder(root: Path, image_sets: tuple[DemoImages, ...]) -> None:
    """Mark a new folder as that of this demo; refuse one that is not."""
    recipes = [images.recipe() for images in image_sets]
    content = {"network": file_sha256(NETWORK), "pictures": recipes}
    text = json.dumps(content, indent=1) + "\n"
    marker = root / MARKER_FILE
    if marker.is_file() and marker.read_text(encoding="utf-8") == text:
        return
    if root.is_dir() and any(root.iterdir()):
        content_of = "the demo of another version" if marker.is_file() else "other files"
        raise UsageError(
            f"`{root}` holds {content_of}",
            hint="choose another folder: `-o FOLDER`, or delete this one",
        )
    try:
        write_text(marker, text)
    except OSError as error:
        raise QConvertError(
            f"`{root}` cannot be written: {error.strerror}", hint="choose another place with `-o`"
        ) from None


def _draw_images(
    images: DemoImages, folder: Path, cache: Cache, progress: ProgressCallback
) -> None:
    started = time.perf_counter()
    running = partial(Progress, "draw", f"images for {images.name}", total=images.count)

    def draw(draft: Path) -> None:
        generator.write_images(
            draft, images.seed, images.count, lambda done: progress(running(done=done))
        )

    hit = folder.exists()
    if not hit:
        cached = cache.get_or_make("draw", images.recipe(), draw)
        copy_into_place(cached.path, folder)
        hit = cached.hit
    text = f"{images.count} images for {images.name}"
    progress(Progress("draw", text, time.perf_counter() - started, hit))

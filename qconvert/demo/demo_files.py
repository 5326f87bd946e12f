"""The demo's folder: the network of a task, calibration images and evaluation images."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from qconvert.core.atomic import copy_into_place, write_text
from qconvert.core.cache import Cache, file_sha256
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import Progress, ProgressCallback, start_step
from qconvert.demo import generator, scenes

Task = Literal["classify", "detect", "segment"]

NETWORKS: dict[Task, Path] = {
    "classify": Path(__file__).with_name("network.onnx"),
    "detect": Path(__file__).with_name("detector.onnx"),
    "segment": Path(__file__).with_name("segmenter.onnx"),
}
NETWORK = NETWORKS["classify"]


@dataclass(frozen=True)
class DemoImages:
    """The first `count` images of a seed, with the truth of a task."""

    name: str
    seed: int
    count: int
    task: Task = "classify"

    def recipe(self) -> dict[str, str]:
        """Return everything that decides their bytes, including the code that draws them."""
        numbers = {"seed": str(self.seed), "count": str(self.count)}
        images = {"name": self.name, "task": self.task, **numbers}
        code = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
        packages = {package: version(package) for package in ("numpy", "pillow")}
        return {**images, "code": hashlib.sha256(code).hexdigest(), **packages}

    def draw(self, folder: Path, progress: ProgressCallback) -> None:
        """Draw the images into a folder."""
        step = partial(Progress, "draw", f"images for {self.name}", total=self.count)

        def report(done: int) -> None:
            progress(step(done=done))

        if self.task == "classify":
            generator.write_images(folder, self.seed, self.count, report)
        else:
            scenes.write_images(folder, self.seed, self.count, self.task, report)


def picture_folder(folder: Path, task: Task) -> Path:
    """Return where the pictures of a drawn folder are; boxes and masks lie beside them."""
    return folder if task == "classify" else folder / "images"


CALIBRATION_IMAGES = DemoImages(
    "calibration", generator.CALIBRATION_SEED, generator.CALIBRATION_COUNT
)
EVALUATION_IMAGES = DemoImages("evaluation", generator.EVALUATION_SEED, generator.EVALUATION_COUNT)

PROOF_IMAGES = replace(EVALUATION_IMAGES, count=250)


def prepare_demo(
    root: Path,
    cache: Cache,
    progress: ProgressCallback,
    evaluation: DemoImages | None = None,
    task: Task = "classify",
) -> None:
    """Write the network and the images that are missing; refuse a folder of anything else."""
    image_sets = [
        replace(images, task=task)
        for images in (CALIBRATION_IMAGES, evaluation or EVALUATION_IMAGES)
    ]
    recipes = [images.recipe() for images in image_sets]
    source = NETWORKS[task]
    text = json.dumps({"network": file_sha256(source), "pictures": recipes}, indent=1) + "\n"
    marker = root / "demo.json"
    if not marker.is_file() or marker.read_text(encoding="utf-8") != text:
        if root.is_dir() and any(root.iterdir()):
            content = "the demo of another version" if marker.is_file() else "other files"
            raise UsageError(
                f"`{root}` holds {content}",
                hint="choose another folder: `-o FOLDER`, or delete this one",
            )
        try:
            write_text(marker, text)
        except OSError as error:
            raise QConvertError(
                f"`{root}` cannot be written: {error.strerror}",
                hint="choose another location with `-o`",
            ) from None
    network = root / source.name
    if not network.exists():
        copy_into_place(source, network)
    for images in image_sets:
        end = start_step(progress, "draw")
        hit = (root / images.name).exists()
        if not hit:
            draw = partial(images.draw, progress=progress)
            cached, hit = cache.get_or_make("draw", images.recipe(), draw)
            copy_into_place(cached, root / images.name)
        end(f"{images.count} images for {images.name}", hit)

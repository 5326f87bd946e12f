"""The demo's folder: the network, calibration images and evaluation images."""

import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from qconvert.core.atomic import copy_into_place, write_text
from qconvert.core.cache import Cache, file_sha256
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import Progress, ProgressCallback, start_step
from qconvert.demo import generator

NETWORK = Path(__file__).with_name("network.onnx")


@dataclass(frozen=True)
class DemoImages:
    """The first `count` images of a seed."""

    name: str
    seed: int
    count: int

    def recipe(self) -> dict[str, str]:
        """Return everything that decides their bytes, including the code that draws them."""
        images = {"name": self.name, "seed": str(self.seed), "count": str(self.count)}
        code = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
        packages = {package: version(package) for package in ("numpy", "pillow")}
        return {**images, "code": hashlib.sha256(code).hexdigest(), **packages}

    def draw(self, folder: Path, progress: ProgressCallback) -> None:
        """Draw the images into a folder."""
        step = partial(Progress, "draw", f"images for {self.name}", total=self.count)
        generator.write_images(folder, self.seed, self.count, lambda n: progress(step(done=n)))


CALIBRATION_IMAGES = DemoImages(
    "calibration", generator.CALIBRATION_SEED, generator.CALIBRATION_COUNT
)
EVALUATION_IMAGES = DemoImages("evaluation", generator.EVALUATION_SEED, generator.EVALUATION_COUNT)

PROOF_IMAGES = replace(EVALUATION_IMAGES, count=250)


def prepare_demo(
    root: Path, cache: Cache, progress: ProgressCallback, evaluation: DemoImages | None = None
) -> None:
    """Write the network and the images that are missing; refuse a folder of anything else."""
    image_sets = (CALIBRATION_IMAGES, evaluation or EVALUATION_IMAGES)
    recipes = [images.recipe() for images in image_sets]
    text = json.dumps({"network": file_sha256(NETWORK), "pictures": recipes}, indent=1) + "\n"
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
    network = root / NETWORK.name
    if not network.exists():
        copy_into_place(NETWORK, network)
    for images in image_sets:
        end = start_step(progress, "draw")
        hit = (root / images.name).exists()
        if not hit:
            draw = partial(images.draw, progress=progress)
            cached, hit = cache.get_or_make("draw", images.recipe(), draw)
            copy_into_place(cached, root / images.name)
        end(f"{images.count} images for {images.name}", hit)

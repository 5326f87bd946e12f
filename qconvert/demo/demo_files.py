"""A folder with all that the demo needs: the network, and pictures to calibrate and to score on."""

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
    """The first `count` pictures of a seed, and the folder they go into."""

    name: str
    seed: int
    count: int

    def recipe(self) -> dict[str, str]:
        """Return what decides their bytes: also the code that draws, which changes unreleased."""
        code = hashlib.sha256()
        for file in sorted(Path(__file__).parent.glob("*.py")):
            code.update(file.read_bytes())
        return {
            "name": self.name,
            "seed": str(self.seed),
            "count": str(self.count),
            "code": code.hexdigest(),
            **{each: version(each) for each in ("numpy", "pillow")},
        }


CALIBRATION_IMAGES = DemoImages(
    "calibration", generator.CALIBRATION_SEED, generator.CALIBRATION_COUNT
)
EVALUATION_IMAGES = DemoImages("evaluation", generator.EVALUATION_SEED, generator.EVALUATION_COUNT)


@dataclass(frozen=True)
class DemoFolder:
    """Where it lies."""

    root: Path

    @property
    def network(self) -> Path:
        """The trained network."""
        return self.root / NETWORK.name

    @property
    def run_folder(self) -> Path:
        """The folder of the run."""
        return self.root / "run"

    def images(self, of: DemoImages) -> Path:
        """Return the folder of some pictures."""
        return self.root / of.name


def prepare_demo(root: Path, cache: Cache, progress: ProgressCallback) -> DemoFolder:
    """Put in place what is not there yet; a folder that holds anything else is left alone."""
    scene = DemoFolder(root)
    _claim_folder(root)
    if not scene.network.exists():
        copy_into_place(NETWORK, scene.network)
    for each in (CALIBRATION_IMAGES, EVALUATION_IMAGES):
        _draw_images(each, scene.images(each), cache, progress)
    return scene


def _claim_folder(root: Path) -> None:
    """Mark the folder as that of this demo, or refuse it."""
    recipes = [each.recipe() for each in (CALIBRATION_IMAGES, EVALUATION_IMAGES)]
    text = json.dumps({"network": file_sha256(NETWORK), "pictures": recipes}, indent=1) + "\n"
    mark = root / MARKER_FILE
    if mark.is_file() and mark.read_text(encoding="utf-8") == text:
        return
    if root.is_dir() and any(root.iterdir()):
        what = "the demo of another version" if mark.is_file() else "other files"
        raise UsageError(
            f"`{root}` holds {what}", hint="choose another folder: `-o FOLDER`, or delete this one"
        )
    try:
        write_text(mark, text)
    except OSError as error:
        raise QConvertError(
            f"`{root}` cannot be written: {error.strerror}", hint="choose another place with `-o`"
        ) from None


def _draw_images(pictures: DemoImages, place: Path, store: Cache, tell: ProgressCallback) -> None:
    started = time.perf_counter()
    text = f"{pictures.count} pictures for {pictures.name}"

    def make(draft: Path) -> None:
        report = partial(Progress, "draw", f"pictures for {pictures.name}", total=pictures.count)
        generator.write_images(
            draft, pictures.seed, pictures.count, lambda count: tell(report(done=count))
        )

    stored = place.exists()
    if not stored:
        found = store.get_or_make("draw", pictures.recipe(), make)
        copy_into_place(found.path, place)
        stored = found.hit
    tell(Progress("draw", text, time.perf_counter() - started, stored))

"""A folder with all that the demo needs: the network, and pictures to calibrate and to score on."""

import hashlib
import json
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

from qconvert.demo import folder, seeds
from qconvert.errors import QConvertError, UsageError
from qconvert.pipeline.progress import Progress, Tell
from qconvert.pipeline.run_folder import put_copy, put_text
from qconvert.store import Store, digest

NETWORK = Path(__file__).with_name("network.onnx")
MARK = "demo.json"


@dataclass(frozen=True)
class Pictures:
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


CALIBRATION = Pictures("calibration", seeds.CALIBRATION, seeds.CALIBRATIONS)
EVALUATION = Pictures("evaluation", seeds.EVALUATION, seeds.EVALUATIONS)


@dataclass(frozen=True)
class Scene:
    """Where it lies."""

    root: Path

    @property
    def network(self) -> Path:
        """The trained network."""
        return self.root / NETWORK.name

    @property
    def run(self) -> Path:
        """The folder of the run."""
        return self.root / "run"

    def pictures(self, of: Pictures) -> Path:
        """Return the folder of some pictures."""
        return self.root / of.name


def lay(root: Path, store: Store, tell: Tell) -> Scene:
    """Put in place what is not there yet; a folder that holds anything else is left alone."""
    scene = Scene(root)
    _claim(root)
    if not scene.network.exists():
        put_copy(NETWORK, scene.network)
    for each in (CALIBRATION, EVALUATION):
        _draw(each, scene.pictures(each), store, tell)
    return scene


def _claim(root: Path) -> None:
    """Mark the folder as that of this demo, or refuse it."""
    recipes = [each.recipe() for each in (CALIBRATION, EVALUATION)]
    text = json.dumps({"network": digest(NETWORK), "pictures": recipes}, indent=1) + "\n"
    mark = root / MARK
    if mark.is_file() and mark.read_text(encoding="utf-8") == text:
        return
    if root.is_dir() and any(root.iterdir()):
        what = "the demo of another version" if mark.is_file() else "other files"
        raise UsageError(
            f"`{root}` holds {what}", hint="choose another folder: `-o FOLDER`, or delete this one"
        )
    try:
        put_text(mark, text)
    except OSError as error:
        raise QConvertError(
            f"`{root}` cannot be written: {error.strerror}", hint="choose another place with `-o`"
        ) from None


def _draw(pictures: Pictures, place: Path, store: Store, tell: Tell) -> None:
    started = time.perf_counter()
    text = f"{pictures.count} pictures for {pictures.name}"

    def make(draft: Path) -> None:
        report = partial(Progress, "draw", f"pictures for {pictures.name}", total=pictures.count)
        folder.write(draft, pictures.seed, pictures.count, lambda count: tell(report(done=count)))

    stored = place.exists()
    if not stored:
        found = store.get("draw", pictures.recipe(), make)
        put_copy(found.path, place)
        stored = found.stored
    tell(Progress("draw", text, time.perf_counter() - started, stored))

"""The folder of a run: complete by itself, continued by the same command, never mixed up.

RUN/run.toml               every setting, defaults filled in
RUN/model.onnx             the clean float model
RUN/classes.txt            what the classes are called, where the evaluation images say it
RUN/calibration/           calibration.npz, images.txt
RUN/engines/NAME/          what the engine loads, its graph, engine.json, plan.json
RUN/analysis/              layers.csv, features/, changed/
RUN/report.json .md .html  card.md
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert import config_file, drafts
from qconvert.config import ADAPTER, Bench, Build, Config, Evaluate, Gate, Search
from qconvert.errors import QConvertError, UsageError, located
from qconvert.images.classes import CLASSES, Classes

SETTINGS, MODEL, ENGINES, CALIBRATION = "run.toml", "model.onnx", "engines", "calibration"
REPORT, MARKDOWN, HTML, CARD = "report.json", "report.md", "report.html", "card.md"
ANALYSIS, SEARCHED = "analysis", "search.json"
LAYERS = f"{ANALYSIS}/layers.csv"


@dataclass(frozen=True)
class RunFolder:
    """Where the results of a run lie."""

    root: Path

    @property
    def model(self) -> Path:
        """The clean float model."""
        return self.root / MODEL

    @property
    def calibration(self) -> Path:
        """What calibration saw of it."""
        return self.root / CALIBRATION / "calibration.npz"

    @property
    def classes(self) -> Path:
        """What the classes are called, one a line, if it was known."""
        return self.root / CLASSES

    def engine(self, name: str) -> Path:
        """Return the folder of an engine."""
        return self.root / ENGINES / name

    def engines(self) -> list[str]:
        """Return the names of the engines that are there."""
        found = (self.root / ENGINES).glob("*/engine.json")
        return sorted(file.parent.name for file in found)

    def has_results(self) -> bool:
        """Whether anything was made that other settings would spoil."""
        return any((self.root / name).exists() for name in (ENGINES, REPORT, SEARCHED))

    def settings(self) -> Config:
        """Return the settings that the run was made with."""
        file = self.root / SETTINGS
        if not file.is_file():
            raise UsageError(
                f"`{self.root}` is not the folder of a run: it has no {SETTINGS}",
                hint="name the folder that `qconvert build -o RUN` wrote",
            )
        require_own(self.root)
        return config_file.load(file)


def require_own(root: Path) -> None:
    """Refuse a run whose folders are links to elsewhere: what is written there is not the run's."""
    for folder in (ENGINES, CALIBRATION, ANALYSIS):
        for place in (root / folder, *(root / folder).glob("*/")):
            if not place.resolve().is_relative_to(root.resolve()):
                raise UsageError(
                    f"`{place}` is a link that leads out of the run",
                    hint="put the folder itself there",
                )


@contextmanager
def begun(root: Path, config: Config, *, searching: bool = False) -> Iterator[RunFolder]:
    """Work in a run that is new, or goes on; a new one in which nothing was finished goes again."""
    new = drafts.missing(root)
    with _restoring(root / SETTINGS):
        run = start(root, config, searching=searching)
        try:
            with alone(root):
                yield run
        except BaseException:
            if root in new and [each.name for each in root.iterdir()] == [SETTINGS]:
                (root / SETTINGS).unlink()
                drafts.unmake(new)
            raise


@contextmanager
def resumed(root: Path, config: Config) -> Iterator[RunFolder]:
    """Work in a run that goes on."""
    run = RunFolder(root)
    require_same(run, config)
    with alone(root), _restoring(root / SETTINGS):
        yield run


def settle(run: RunFolder, config: Config) -> None:
    """Give a run that goes on the limits and measurements of now; what it builds stays."""
    before, now = run.settings().build, absolute(config)
    build = replace(now.build, backends=before.backends, precisions=before.precisions)
    put_text(run.root / SETTINGS, config_file.dumps(replace(now, build=build)))


@contextmanager
def _restoring(file: Path) -> Iterator[None]:
    """Leave the settings of a run as they were where what was asked could not be done."""
    before = file.read_bytes() if file.is_file() else None
    try:
        yield
    except QConvertError:
        if before is not None:
            put_text(file, before.decode())
        raise


def require_folder(root: Path) -> None:
    """Refuse a file where a run goes."""
    if root.exists() and not root.is_dir():
        raise UsageError(
            f"`{root}` is a file, and a run is a folder", hint="choose another place: `-o RUN`"
        )


def start(root: Path, config: Config, *, searching: bool = False) -> RunFolder:
    """Return a folder that is new, empty, or of a run with the same model and settings.

    What is set for `searching` alone changes nothing of a run that was built.
    """
    require_folder(root)
    folder, config = RunFolder(root), absolute(config)
    if root.is_dir() and any(not each.name.startswith(drafts.DRAFT) for each in root.iterdir()):
        before = folder.settings() if (root / SETTINGS).is_file() else None
        fits = before is not None and _decisive(before) == _decisive(config)
        if not fits and (before is None or folder.has_results()):
            what = "another run" if before is not None else "other files"
            raise UsageError(
                f"`{root}` holds {what}",
                details=_differences(before, config) if before is not None else (),
                hint="choose another folder: `-o RUN`, or delete this one",
            )
        if searching and before is not None and folder.engines():
            config = replace(before, search=config.search)
    try:
        root.mkdir(parents=True, exist_ok=True)
        put_text(root / SETTINGS, config_file.dumps(config))
    except OSError as error:
        raise QConvertError(
            f"`{root}` cannot be written: {error.strerror}", hint="choose another place with `-o`"
        ) from None
    return folder


def require_same(run: RunFolder, config: Config) -> None:
    """Refuse to go on in a run with settings that would have made another one of it.

    Its images may lie elsewhere by now; whether they are the same is seen where they are read.
    """
    before, now = run.settings(), absolute(config)
    images = now.calibration.images
    if images is not None:
        before = replace(before, calibration=replace(before.calibration, images=images))
    if _decisive(before) != _decisive(now):
        raise UsageError(
            f"`{run.root}` was made with another model or other settings",
            details=_differences(before, now),
            hint="a run goes on as it was begun; give a new model or settings to a new run",
        )


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Work in a run that no other process works in; what killed ones left hidden there goes."""
    with drafts.held(root) as ours:
        if ours is False:
            raise UsageError(
                f"another qconvert works in `{root}`",
                hint="wait until it has ended, or choose another folder: `-o RUN`",
            )
        for folder in {draft.parent for draft in root.rglob(f"{drafts.DRAFT}*")}:
            drafts.sweep(folder)
        yield


def keep_classes(run: RunFolder, classes: Classes) -> None:
    """Put the names of the classes into a run, so that who gets it knows what its answers mean."""
    if classes.names:
        put_text(run.classes, "".join(f"{name}\n" for name in classes.names))


def put_text(path: Path, text: str) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with located(path), drafts.draft(path.parent) as folder:
        draft = folder / path.name
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)


def put_copy(source: Path, place: Path) -> None:
    """Copy a file or folder to a place where it appears whole, in place of what was there."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with located(place), drafts.draft(place.parent) as folder:
        draft = folder / "new"
        if source.is_dir():
            # Not `copytree`: it would copy the rights of the store, and its errors have no number.
            for path in (source, *sorted(source.rglob("*"))):
                target = draft / path.relative_to(source)
                if path.is_dir():
                    target.mkdir()
                else:
                    shutil.copyfile(path, target)
        else:
            shutil.copyfile(source, draft)
        if place.is_dir():
            place.rename(folder / "old")
        draft.replace(place)


def absolute(config: Config) -> Config:
    """Return the settings with every path absolute, so that they hold from any folder."""
    tree = config_file.plain(config)
    model, weights = config.model, config.export.weights
    if model is not None and model.endswith(config_file.MODEL_FILES):
        tree["model"] = str(Path(model).absolute())
    if weights is not None and weights != "random":
        tree["export"]["weights"] = str(Path(weights).absolute())
    for table, key in (
        ("calibration", "images"),
        ("evaluate", "images"),
        ("evaluate", "labels"),
    ):
        if key in tree[table]:
            tree[table][key] = str(Path(tree[table][key]).absolute())
    return ADAPTER.validate_python(tree)


def _differences(before: Config, now: Config) -> list[str]:
    """Return the settings that make another run of it, as they were and as they are."""
    old, new = (dict(_settings(config_file.plain(_decisive(each)))) for each in (before, now))
    return [
        f"`{key}` was {_told(old.get(key))}, now {_told(new.get(key))}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def _settings(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _told(value: object) -> str:
    return "not set" if value is None else f"`{value}`"


def _decisive(config: Config) -> Config:
    """Return what makes two runs the same: engines, measurements and gates can be added to one."""
    return replace(
        config, build=Build(), search=Search(), bench=Bench(), evaluate=Evaluate(), gate=Gate()
    )

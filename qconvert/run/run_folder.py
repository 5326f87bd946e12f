"""The folder of a run: complete by itself, continued by the same command, never mixed up.

RUN/run.toml               every setting, defaults filled in
RUN/model.onnx             the clean float model
RUN/classes.txt            what the classes are called, where the evaluation images say it
RUN/calibration/           calibration.npz, images.txt
RUN/engines/NAME/          what the engine loads, its graph, engine.json, plan.json
RUN/analysis/              layers.csv, features/, changed/
RUN/report.json .md .html  card.md
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert.core import atomic, config_file
from qconvert.core.atomic import write_text
from qconvert.core.cache import Cache
from qconvert.core.config import (
    BenchConfig,
    BuildConfig,
    Config,
    EvaluateConfig,
    GateConfig,
    SearchConfig,
)
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import ProgressCallback
from qconvert.images.listing import CLASSES_FILE, Classes

ENGINE_FILE = "engine.json"

GRAPH_FILE = "model.onnx"

PLAN_FILE = "plan.json"

GRAPH_RECORD = "made.json"

SETTINGS, MODEL, ENGINES, CALIBRATION = "run.toml", "model.onnx", "engines", "calibration"
REPORT, MARKDOWN, HTML, CARD = "report.json", "report.md", "report.html", "card.md"
ANALYSIS, SEARCH_RESULT = "analysis", "search.json"
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
        return self.root / CLASSES_FILE

    def engine(self, name: str) -> Path:
        """Return the folder of an engine."""
        return self.root / ENGINES / name

    def engines(self) -> list[str]:
        """Return the names of the engines that are there."""
        found = (self.root / ENGINES).glob("*/engine.json")
        return sorted(file.parent.name for file in found)

    def has_results(self) -> bool:
        """Whether anything was made that other settings would spoil."""
        return any((self.root / name).exists() for name in (ENGINES, REPORT, SEARCH_RESULT))

    def settings(self) -> Config:
        """Return the settings that the run was made with."""
        file = self.root / SETTINGS
        if not file.is_file():
            raise UsageError(
                f"`{self.root}` is not the folder of a run: it has no {SETTINGS}",
                hint="name the folder that `qconvert build -o RUN` wrote",
            )
        require_no_outside_links(self.root)
        return config_file.load(file)


def require_no_outside_links(root: Path) -> None:
    """Refuse a run whose folders are links to elsewhere: what is written there is not the run's."""
    for folder in (ENGINES, CALIBRATION, ANALYSIS):
        for place in (root / folder, *(root / folder).glob("*/")):
            if not place.resolve().is_relative_to(root.resolve()):
                raise UsageError(
                    f"`{place}` is a link that leads out of the run",
                    hint="put the folder itself there",
                )


@contextmanager
def begin_run(root: Path, config: Config, *, searching: bool = False) -> Iterator[RunFolder]:
    """Work in a run that is new, or goes on; a new one in which nothing was finished goes again."""
    new = atomic.missing_folders(root)
    with _restore_settings_on_error(root / SETTINGS):
        run = claim_folder(root, config, searching=searching)
        try:
            with lock_run(root):
                yield run
        except BaseException:
            if root in new and [each.name for each in root.iterdir()] == [SETTINGS]:
                (root / SETTINGS).unlink()
                atomic.remove_empty_folders(new)
            raise


@contextmanager
def resume_run(root: Path, config: Config) -> Iterator[RunFolder]:
    """Work in a run that goes on."""
    run = RunFolder(root)
    require_same_settings(run, config)
    with lock_run(root), _restore_settings_on_error(root / SETTINGS):
        yield run


def update_settings(run: RunFolder, config: Config) -> None:
    """Give a run that goes on the limits and measurements of now; what it builds stays."""
    before, now = run.settings().build, config_file.absolute_paths(config)
    build = replace(now.build, backends=before.backends, precisions=before.precisions)
    write_text(run.root / SETTINGS, config_file.dumps(replace(now, build=build)))


@contextmanager
def _restore_settings_on_error(file: Path) -> Iterator[None]:
    """Leave the settings of a run as they were where what was asked could not be done."""
    before = file.read_bytes() if file.is_file() else None
    try:
        yield
    except QConvertError:
        if before is not None:
            write_text(file, before.decode())
        raise


def require_not_a_file(root: Path) -> None:
    """Refuse a file where a run goes."""
    if root.exists() and not root.is_dir():
        raise UsageError(
            f"`{root}` is a file, and a run is a folder", hint="choose another place: `-o RUN`"
        )


def claim_folder(root: Path, config: Config, *, searching: bool = False) -> RunFolder:
    """Return a folder that is new, empty, or of a run with the same model and settings.

    What is set for `searching` alone changes nothing of a run that was built.
    """
    require_not_a_file(root)
    folder, config = RunFolder(root), config_file.absolute_paths(config)
    if root.is_dir() and any(
        not each.name.startswith(atomic.TEMPORARY_PREFIX) for each in root.iterdir()
    ):
        before = folder.settings() if (root / SETTINGS).is_file() else None
        fits = before is not None and _identity(before) == _identity(config)
        if not fits and (before is None or folder.has_results()):
            what = "another run" if before is not None else "other files"
            raise UsageError(
                f"`{root}` holds {what}",
                details=_list_differences(before, config) if before is not None else (),
                hint="choose another folder: `-o RUN`, or delete this one",
            )
        if searching and before is not None and folder.engines():
            config = replace(before, search=config.search)
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_text(root / SETTINGS, config_file.dumps(config))
    except OSError as error:
        raise QConvertError(
            f"`{root}` cannot be written: {error.strerror}", hint="choose another place with `-o`"
        ) from None
    return folder


def require_same_settings(run: RunFolder, config: Config) -> None:
    """Refuse to go on in a run with settings that would have made another one of it.

    Its images may lie elsewhere by now; whether they are the same is seen where they are read.
    """
    before, now = run.settings(), config_file.absolute_paths(config)
    images = now.calibration.images
    if images is not None:
        before = replace(before, calibration=replace(before.calibration, images=images))
    if _identity(before) != _identity(now):
        raise UsageError(
            f"`{run.root}` was made with another model or other settings",
            details=_list_differences(before, now),
            hint="a run goes on as it was begun; give a new model or settings to a new run",
        )


@contextmanager
def lock_run(root: Path) -> Iterator[None]:
    """Work in a run that no other process works in; what killed ones left hidden there goes."""
    with atomic.lock_folder(root) as ours:
        if ours is False:
            raise UsageError(
                f"another qconvert works in `{root}`",
                hint="wait until it has ended, or choose another folder: `-o RUN`",
            )
        for folder in {draft.parent for draft in root.rglob(f"{atomic.TEMPORARY_PREFIX}*")}:
            atomic.remove_abandoned(folder)
        yield


def write_classes(run: RunFolder, classes: Classes) -> None:
    """Put the names of the classes into a run, so that who gets it knows what its answers mean."""
    if classes.names:
        write_text(run.classes, "".join(f"{name}\n" for name in classes.names))


def _list_differences(before: Config, now: Config) -> list[str]:
    """Return the settings that make another run of it, as they were and as they are."""
    old, new = (dict(_flatten(config_file.as_dict(_identity(each)))) for each in (before, now))
    return [
        f"`{key}` was {_show_value(old.get(key))}, now {_show_value(new.get(key))}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]


def _flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _show_value(value: object) -> str:
    return "not set" if value is None else f"`{value}`"


def _identity(config: Config) -> Config:
    """Return what makes two runs the same: engines, measurements and gates can be added to one."""
    return replace(
        config,
        build=BuildConfig(),
        search=SearchConfig(),
        bench=BenchConfig(),
        evaluate=EvaluateConfig(),
        gate=GateConfig(),
    )


def require_output_file(out: Path, *others: Path) -> None:
    """Refuse a place that cannot be written, and what the command reads or writes besides."""
    if out.is_dir():
        raise UsageError(f"`{out}` is a folder", hint=f"name the file: `-o {out / 'NAME'}`")
    if out.exists() and not out.is_file():
        # What is written takes the place of what was there, be it the `/dev/null` of everybody.
        raise UsageError(f"`{out}` is a device or a pipe", hint="name a file")
    if out.resolve() in [each.resolve() for each in others]:
        raise UsageError(f"`{out}` is named twice in this command", hint="choose another name")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise QConvertError(
            f"`{there}` cannot be written: {error.strerror}",
            hint="choose another place with `-o`",
        ) from None


def require_usable_folder(root: Path, config: Config) -> None:
    """Refuse a folder where no run with these settings can begin or go on; nothing is written."""
    require_not_a_file(root)
    run = RunFolder(root)
    if (root / SETTINGS).is_file():
        if run.has_results():
            require_same_settings(run, config)
        return
    if root.is_dir() and any(
        not each.name.startswith(atomic.TEMPORARY_PREFIX) for each in root.iterdir()
    ):
        raise UsageError(
            f"`{root}` holds other files",
            hint="choose another folder: `-o RUN`, or delete this one",
        )


def require_inputs_exist(config: Config) -> None:
    """Refuse images and labels that are not there, before any work."""
    for option, path in (
        ("--images", config.calibration.images),
        ("--eval", config.evaluate.images),
        ("--labels", config.evaluate.labels),
    ):
        if path is not None and not path.exists():
            raise UsageError(f"`{path}` does not exist", hint=f"check the path given to `{option}`")


@dataclass(frozen=True)
class RunContext:
    """What every step of a run needs; `trust` lets a checkpoint run the code it brings."""

    config: Config
    folder: RunFolder
    cache: Cache
    progress: ProgressCallback
    trust: bool = False

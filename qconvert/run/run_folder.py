"""The run folder: self-contained, resumed by the same command, never a mix of two runs.

RUN/run.toml               every setting, defaults included
RUN/model.onnx             the clean float model
RUN/classes.txt            the names of the classes, if the evaluation images have them
RUN/head.json              how boxes or masks are read from the outputs, if it was scored
RUN/calibration/           calibration.npz, images.txt
RUN/engines/NAME/          the engine's files, its graph, engine.json, plan.json
RUN/analysis/              layers.csv, features/, changed/
RUN/report.json .md .html  card.md
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pydantic

from qconvert.core import atomic, config_file
from qconvert.core.config import Config, option_table
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.run_files import CALIBRATION, ENGINES, HEAD_FILE, MODEL, SETTINGS
from qconvert.images.listing import CLASSES_FILE, Classes
from qconvert.tasks.heads import Head

REPORT, MARKDOWN, HTML, CARD = "report.json", "report.md", "report.html", "card.md"
ANALYSIS, SEARCH_RESULT = "analysis", "search.json"
LAYERS = f"{ANALYSIS}/layers.csv"
GRAPH_RECORD, ENGINE_FILE = "made.json", "engine.json"
_HEAD_ADAPTER = pydantic.TypeAdapter(Head)
OTHER_FOLDER = "choose another folder: `-o RUN`, or delete this one"


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    root: Path

    @property
    def model(self) -> Path:
        """The clean float model."""
        return self.root / MODEL

    @property
    def calibration(self) -> Path:
        """The calibration of the float model."""
        return self.root / CALIBRATION / "calibration.npz"

    @property
    def classes(self) -> Path:
        """The names of the classes, one a line, if they are known."""
        return self.root / CLASSES_FILE

    @property
    def head(self) -> Path:
        """How the outputs of a detector or segmenter are read, if it was scored."""
        return self.root / HEAD_FILE

    def engine(self, name: str) -> Path:
        """Return the folder of an engine."""
        return self.root / ENGINES / name

    def engines(self) -> list[str]:
        """Return the names of the finished engines."""
        return sorted(file.parent.name for file in self.root.glob(f"{ENGINES}/*/{ENGINE_FILE}"))

    def has_results(self) -> bool:
        """Whether the run holds results that other settings would contradict."""
        return any((self.root / name).exists() for name in (ENGINES, REPORT, SEARCH_RESULT))

    def settings(self) -> Config:
        """Return the settings of the run."""
        file = self.root / SETTINGS
        if not file.is_file():
            raise UsageError(
                f"`{self.root}` is not the folder of a run: it has no {SETTINGS}",
                hint="name the folder that `qconvert build -o RUN` wrote",
            )
        require_no_outside_links(self.root)
        return config_file.load(file)

    def write_classes(self, classes: Classes) -> None:
        """Write the names of the classes, so that the outputs can be read without the images."""
        if classes.names:
            atomic.write_text(self.classes, "".join(f"{name}\n" for name in classes.names))

    def write_head(self, head: Head | None) -> None:
        """Write how the outputs were read in the last evaluation, so that others can read them."""
        if head is None:
            self.head.unlink(missing_ok=True)
        else:
            atomic.write_text(self.head, head_text(head))

    def read_head(self) -> Head | None:
        """Return how the outputs were read in the last evaluation, if they were decoded."""
        if not self.head.is_file():
            return None
        try:
            values = json.loads(self.head.read_text(encoding="utf-8"))
            return _HEAD_ADAPTER.validate_python(values)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            message = first["msg"].removeprefix("Value error, ")
            reason = ": ".join([*map(str, first["loc"][:1]), message])
        except (OSError, ValueError, RecursionError) as error:
            reason = first_line(error)
        raise QConvertError(
            f"`{self.head}` does not say how outputs are read: {reason}",
            hint="delete it, or score the engines again: `qconvert evaluate RUN --eval PATH`",
        )


def head_text(head: Head) -> str:
    """Return how outputs are read, as JSON."""
    return json.dumps(head.to_dict(), indent=1) + "\n"


@contextmanager
def begin_run(root: Path, config: Config, *, searching: bool = False) -> Iterator[RunFolder]:
    """Work in a new run, or continue one; a new one that fails before any result is removed."""
    run, is_new = RunFolder(root), not root.exists()
    before, config = require_usable_folder(root, config), config_file.absolute_paths(config)
    # A run that was built keeps its other settings.
    if searching and before is not None and run.engines():
        config = replace(before, search=config.search)
    with _restore_settings_on_error(root / SETTINGS), ExitStack() as stack:
        try:
            stack.enter_context(atomic.created_folder(root))
            atomic.write_text(root / SETTINGS, config_file.dumps(config))
        except OSError as error:
            raise _not_writable(root, error) from None
        try:
            with _lock_run(root):
                yield run
        except BaseException:
            if is_new and [path.name for path in root.iterdir()] == [SETTINGS]:
                (root / SETTINGS).unlink()
            raise


@contextmanager
def resume_run(root: Path, config: Config) -> Iterator[RunFolder]:
    """Work in a run that exists, with settings that fit it."""
    require_same_settings(RunFolder(root), config)
    with _lock_run(root), _restore_settings_on_error(root / SETTINGS):
        yield RunFolder(root)


def update_settings(run: RunFolder, config: Config) -> None:
    """Give a resumed run the current limits and measurements; the engines it builds stay."""
    before, now = run.settings().build, config_file.absolute_paths(config)
    build = replace(now.build, backends=before.backends, precisions=before.precisions)
    atomic.write_text(run.root / SETTINGS, config_file.dumps(replace(now, build=build)))


def require_usable_folder(root: Path, config: Config) -> Config | None:
    """Raise unless a run can start or resume here; return the settings of the existing run."""
    if root.exists() and not root.is_dir():
        raise UsageError(
            f"`{root}` is a file, and a run is a folder", hint="choose another location: `-o RUN`"
        )
    names = [path.name for path in root.iterdir()] if root.is_dir() else []
    if all(name.startswith(atomic.TEMPORARY_PREFIX) for name in names):
        return None
    run, config = RunFolder(root), config_file.absolute_paths(config)
    if SETTINGS not in names:
        raise UsageError(f"`{root}` holds other files", hint=OTHER_FOLDER)
    before = run.settings()
    if _identity(before) != _identity(config) and run.has_results():
        raise UsageError(
            f"`{root}` holds another run",
            details=_list_differences(before, config),
            hint=OTHER_FOLDER,
        )
    return before


def require_same_settings(run: RunFolder, config: Config) -> None:
    """Raise if a run was made with other settings that decide results; images may have moved."""
    before, now = run.settings(), config_file.absolute_paths(config)
    images = now.calibration.images
    if images is not None:
        before = replace(before, calibration=replace(before.calibration, images=images))
    if _identity(before) != _identity(now):
        raise UsageError(
            f"`{run.root}` was made with another model or other settings",
            details=_list_differences(before, now),
            hint="a run can be resumed only with its original model and settings; "
            "use a new run folder for a new model or settings",
        )


def require_no_outside_links(root: Path) -> None:
    """Raise if a folder of the run links elsewhere: writing there would change other files."""
    for name in (ENGINES, CALIBRATION, ANALYSIS):
        for path in (root / name, *(root / name).glob("*/")):
            if not path.resolve().is_relative_to(root.resolve()):
                raise UsageError(
                    f"`{path}` is a link to a place outside the run",
                    hint="replace the link with the folder itself",
                )


def require_output_file(out: Path, *others: Path) -> None:
    """Raise unless `out` can be written and differs from the other files of the command."""
    if out.is_dir():
        raise UsageError(f"`{out}` is a folder", hint=f"name the file: `-o {out / 'NAME'}`")
    if out.exists() and not out.is_file():
        # Writing replaces what is there by a rename, even the system's `/dev/null`.
        raise UsageError(f"`{out}` is a device or a pipe", hint="name a file")
    if out.resolve() in [path.resolve() for path in others]:
        raise UsageError(f"`{out}` is named twice in this command", hint="choose another name")
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _not_writable(folder, error) from None


def require_inputs_exist(config: Config) -> None:
    """Raise for images and labels that do not exist, before any work."""
    for option, path in (
        ("--images", config.calibration.images),
        ("--eval", config.evaluate.images),
        ("--labels", config.evaluate.labels),
    ):
        if path is not None and not path.exists():
            raise UsageError(f"`{path}` does not exist", hint=f"check the path given to `{option}`")


@contextmanager
def _restore_settings_on_error(file: Path) -> Iterator[None]:
    before = file.read_bytes() if file.is_file() else None
    try:
        yield
    except QConvertError:
        if before is not None:
            atomic.write_text(file, before.decode())
        raise


@contextmanager
def _lock_run(root: Path) -> Iterator[None]:
    """Work in a run that no other process works in; remove what killed processes left there."""
    with atomic.lock_folder(root) as locked:
        if locked is False:
            raise UsageError(
                f"another qconvert works in `{root}`",
                hint="wait until it ends, or choose another folder: `-o RUN`",
            )
        for folder in {path.parent for path in root.rglob(f"{atomic.TEMPORARY_PREFIX}*")}:
            atomic.remove_abandoned(folder)
        yield


def _not_writable(path: Path, error: OSError) -> QConvertError:
    return QConvertError(
        f"`{path}` cannot be written: {error.strerror}", hint="choose another location with `-o`"
    )


def _identity(config: Config) -> Config:
    """Return the settings that decide the results of a run; all others may change."""
    default = Config()
    config = replace(config, build=default.build, search=default.search, gate=default.gate)
    return replace(config, bench=default.bench, evaluate=default.evaluate)


def _list_differences(before: Config, now: Config) -> list[str]:
    """Return a line for every setting that decides results and differs."""
    trees = [config_file.as_dict(_identity(config)) for config in (before, now)]
    lines = []
    for name, option in option_table().items():
        tables = (tree.get(option.table, {}) if option.table else tree for tree in trees)
        old, new = (
            f"`{table[option.key]}`" if option.key in table else "not set" for table in tables
        )
        lines += [f"`{name}` was {old}, now {new}"] if old != new else []
    return lines

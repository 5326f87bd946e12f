"""Write a package of a run in one of the formats."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qconvert.core import atomic
from qconvert.core.errors import UsageError, attach_path
from qconvert.package import Format, onnxruntime_folder, triton
from qconvert.package.bundle import Bundle, make_bundle
from qconvert.run.targets import Run

WRITERS: dict[Format, Callable[[Bundle, Path], tuple[str, ...]]] = {
    "onnxruntime": onnxruntime_folder.write,
    "triton": triton.write,
}


@dataclass(frozen=True)
class Packed:
    """A package: its folder, the name of its engine, its files, and notes for its user."""

    folder: Path
    engine: str
    files: tuple[str, ...]
    notes: tuple[str, ...]


def write_package(
    run: Run,
    form: Format,
    output: Path,
    engine: str = "",
    name: str = "",
    classes: Path | None = None,
) -> Packed:
    """Write a package atomically; it never replaces anything.

    `output` is its folder, or for Triton the model repository in which the model gets a folder. By
    default, `engine` is that of the verdict, `name` that of the model, and `classes`, a file with a
    name a line, those of the run.
    """
    bundle = make_bundle(run, engine, name, classes)
    folder = output / bundle.name if form == "triton" else output
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"`{folder}` exists", hint="delete it, or choose another folder: `-o`")
    with (
        attach_path(folder),
        atomic.created_folder(folder.parent),
        atomic.temporary_folder(folder.parent) as temporary,
    ):
        draft = temporary / "package"
        draft.mkdir()
        notes = (*bundle.notes, *WRITERS[form](bundle, draft))
        draft.replace(folder)
    files = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return Packed(folder, bundle.variant, tuple(file.as_posix() for file in files), notes)

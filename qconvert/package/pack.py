"""A package of a run, in the format that is asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qconvert.core import atomic
from qconvert.core.errors import UsageError, attach_path
from qconvert.package import onnxruntime_folder, triton
from qconvert.package.bundle import Bundle, make_bundle
from qconvert.run.finished_run import Run

Format = Literal["onnxruntime", "triton"]
WRITERS: dict[Format, Callable[[Bundle, Path], tuple[str, ...]]] = {
    "onnxruntime": onnxruntime_folder.write,
    "triton": triton.write,
}


@dataclass(frozen=True)
class PackageOptions:
    """What to pack, and where.

    `output` is the folder of the package, or for Triton the model repository in which the model
    gets a folder. Left out, `engine` is that of the verdict, `name` that of the model, and
    `classes`, a file with a name a line, those that the run knows.
    """

    form: Format
    output: Path
    engine: str = ""
    name: str = ""
    classes: Path | None = None


@dataclass(frozen=True)
class Packed:
    """A package: its folder, the name of its engine, its files, and what must be known."""

    folder: Path
    engine: str
    files: tuple[str, ...]
    notes: tuple[str, ...]


def write_package(run: Run, options: PackageOptions) -> Packed:
    """Write a package; it appears whole, and never over anything that is there."""
    shipment = make_bundle(run, options.engine, options.name, options.classes)
    place = options.output / shipment.name if options.form == "triton" else options.output
    if place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise UsageError(f"`{place}` is there already", hint="delete it, or choose another `-o`")
    with (
        attach_path(place),
        atomic.created_folder(place.parent),
        atomic.temporary_folder(place.parent) as draft,
    ):
        folder = draft / "package"
        folder.mkdir()
        notes = WRITERS[options.form](shipment, folder)
        folder.replace(place)
    files = sorted(file.relative_to(place) for file in place.rglob("*") if file.is_file())
    name = f"{shipment.engine.backend}-{shipment.engine.precision}"
    return Packed(place, name, tuple(file.as_posix() for file in files), notes)

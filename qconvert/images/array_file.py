"""Arrays in an .npz or .npy file, mapped and not loaded where they are not compressed."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from qconvert.errors import UsageError, reason

SUFFIXES = (".npz", ".npy")
_LOCAL_HEADER, _NAME_LENGTH, _EXTRA_LENGTH = 30, 26, 28


def read_arrays(path: Path, only_input: str | None) -> dict[str, NDArray[Any]]:
    """Return the arrays by name; an .npy has no names and stands for the model's only input."""
    if not path.is_file():
        raise UsageError(f"`{path}` does not exist", hint="check the path")
    if path.suffix.lower() == ".npy" and only_input is None:
        raise UsageError(
            f"`{path}` holds one array; the model has several inputs",
            hint="give an .npz with one array an input",
        )
    try:
        if only_input is not None and path.suffix.lower() == ".npy":
            return {only_input: npy.open_memmap(path, mode="r")}
        return _read_npz(path)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"`{path}` cannot be read as arrays: {reason(error)}",
            hint="write it with `numpy.savez` or `numpy.save`, and no Python objects in it",
        ) from None


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    with zipfile.ZipFile(path) as archive, np.load(path, allow_pickle=False) as loaded:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            stored = member.compress_type == zipfile.ZIP_STORED
            found[name] = _map(path, member) if stored else loaded[name]
    return found


def _map(path: Path, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Return an array that is read from the file only where it is looked at."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        header = file.read(_LOCAL_HEADER)
        lengths = (header[at : at + 2] for at in (_NAME_LENGTH, _EXTRA_LENGTH))
        file.seek(sum(int.from_bytes(length, "little") for length in lengths), 1)
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        at = file.tell()
    mapped: NDArray[Any] = np.memmap(
        path, dtype, mode="r", offset=at, shape=shape, order="F" if fortran else "C"
    )
    return mapped

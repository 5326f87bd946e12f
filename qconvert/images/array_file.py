"""Arrays in an .npz or .npy file, mapped and not loaded where they are not compressed."""

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qconvert import npz
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
            with path.open("rb") as file:
                said = npz.header(file)
            return {only_input: _mapped(path, said, said.length)}
        return _read_npz(path)
    except npz.DAMAGED as error:
        raise UsageError(
            f"`{path}` cannot be read as arrays: {reason(error)}",
            hint="write it with `numpy.savez` or `numpy.save`, and no Python objects in it",
        ) from None


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        npz.require_small([each for each in members if not _is_stored(each)])
        return {
            each.filename.removesuffix(".npy"): _map(path, each)
            if _is_stored(each)
            else npz.read(archive, each)
            for each in members
        }


def _is_stored(member: zipfile.ZipInfo) -> bool:
    """Whether a member is not compressed."""
    return member.compress_type == zipfile.ZIP_STORED


def _map(path: Path, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Return an array that is read from the file only where it is looked at."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        start = file.read(_LOCAL_HEADER)
        lengths = (start[at : at + 2] for at in (_NAME_LENGTH, _EXTRA_LENGTH))
        file.seek(sum(int.from_bytes(length, "little") for length in lengths), 1)
        said = npz.header(file)
        at = file.tell()
    return _mapped(path, said, at)


def _mapped(path: Path, said: npz.Header, at: int) -> NDArray[Any]:
    if at + said.nbytes > path.stat().st_size:
        raise ValueError("it is shorter than it says")
    if not said.nbytes:  # nothing cannot be mapped
        return np.zeros(said.shape, said.dtype)
    order: Literal["F", "C"] = "F" if said.by_column else "C"
    mapped: NDArray[Any] = np.memmap(
        path, said.dtype, mode="r", offset=at, shape=said.shape, order=order
    )
    return mapped

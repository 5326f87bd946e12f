"""Archives of arrays, written in one way, and read although they are untrusted.

Nothing is unpickled, and claimed sizes are checked first.
"""

import io
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from tokenize import TokenError
from typing import IO, Any, Literal, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MAX_BYTES = 1 << 30
# `zipfile` and numpy raise all of these for corrupt archives, documented or not.
CORRUPT_ERRORS = (
    zipfile.BadZipFile, zlib.error, ArithmeticError, EOFError, LookupError, NotImplementedError,
    OSError, RuntimeError, SyntaxError, TokenError, TypeError, ValueError,
)  # fmt: skip


class ArrayHeader(NamedTuple):
    """The header of an .npy file."""

    shape: tuple[int, ...]
    order: Literal["F", "C"]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """The claimed size of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> ArrayHeader:
    """Read the header of an .npy; ValueError if it is invalid or the array holds objects."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if any(size < 0 for size in shape):
        raise ValueError("it has a negative size")
    return ArrayHeader(shape, "F" if is_fortran else "C", dtype)


def require_within_limit(members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise ValueError for members that unpack to too much; `zipfile` reads no more."""
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise ValueError(f"it unpacks to {total / 1e9:.1f} GB, over the limit of 1 GiB in memory")


def read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Unpack one array, which must be exactly as large as it claims."""
    with archive.open(member) as file:
        header = read_header(file)
        if header.nbytes != member.file_size - file.tell():
            raise ValueError(f"the size of `{member.filename}` contradicts its header")
        return np.ndarray(header.shape, header.dtype, file.read(), order=header.order)


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an archive; equal arrays give equal bytes."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in sorted(arrays.items()):
            data = io.BytesIO()
            npy.write_array(data, array, allow_pickle=False)
            # Without a fixed time and system the same content would have other bytes.
            member = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
            member.create_system = 3
            archive.writestr(member, data.getvalue(), zipfile.ZIP_DEFLATED, compresslevel=3)
    return content.getvalue()

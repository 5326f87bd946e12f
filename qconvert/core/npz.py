"""Archives of arrays that anybody may have written.

Nothing in them is unpickled, and no size that they claim is allocated before it is compared with
what is really there. What is unpacked lies in memory, so a limit stands against archives whose
few bytes unpack to many.
"""

import math
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MAX_BYTES = 1 << 30
# Of a damaged archive `zipfile` and numpy raise all of these, whatever their documentation says.
CORRUPT_ERRORS = (
    zipfile.BadZipFile, zlib.error, ArithmeticError, EOFError, LookupError, NotImplementedError,
    OSError, RuntimeError, SyntaxError, TokenError, TypeError, ValueError,
)  # fmt: skip


@dataclass(frozen=True)
class ArrayHeader:
    """What an array says of itself, and how many bytes it took to say so."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    header_bytes: int

    @property
    def nbytes(self) -> int:
        """The bytes of the numbers, if it tells the truth."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(file: IO[bytes]) -> ArrayHeader:
    """Read the start of an .npy; ValueError where it holds Python objects, or is none."""
    start = file.tell()
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_column, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if any(size < 0 for size in shape):
        raise ValueError("it has a negative size")
    return ArrayHeader(shape, by_column, dtype, file.tell() - start)


def require_within_limit(members: Sequence[zipfile.ZipInfo]) -> None:
    """Raise ValueError for members that would take too much memory; `zipfile` reads no more."""
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise ValueError(f"it unpacks to {total / 1e9:.1f} GB, over the limit of 1 GiB in memory")


def read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    """Unpack one array, which must be just as large as it claims."""
    with archive.open(member) as file:
        said = read_header(file)
        if said.nbytes != member.file_size - said.header_bytes:
            raise ValueError(f"`{member.filename}` has another size than it says")
        content = file.read()
    if not said.nbytes:
        return np.zeros(said.shape, said.dtype)
    order: Literal["F", "C"] = "F" if said.fortran_order else "C"
    return np.frombuffer(content, said.dtype).reshape(said.shape, order=order)

"""Archives of arrays that anybody may have written: read as far as they tell the truth."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from qconvert.core import npz


def packed(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def array(value: Any) -> bytes:
    content = io.BytesIO()
    npy.write_array(content, np.asarray(value), allow_pickle=True)
    return content.getvalue()


def claims(shape: tuple[int, ...], kind: str) -> bytes:
    content = io.BytesIO()
    npy.write_array_header_1_0(content, {"descr": kind, "fortran_order": False, "shape": shape})
    return content.getvalue() + bytes(64)


def read(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        npz.require_within_limit(archive.infolist())
        return npz.read_array(archive, archive.infolist()[0])


@pytest.mark.parametrize(
    "value",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12).reshape(3, 4)),
        np.array(3.0),
        np.zeros((0, 3), np.int8),
    ],
)
def test_what_was_written_is_read(value: Any, tmp_path: Path) -> None:
    got = read(packed(tmp_path / "a.npz", x=array(value)))
    assert got.dtype == value.dtype
    np.testing.assert_array_equal(got, value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (array(np.array([Path("x")], object)), "Python objects"),
        (claims((2, 10**14), "<f4"), "another size than it says"),
        (claims((2**62, 2**62), "<f8"), "another size than it says"),
        (claims((3,), "<f4"), "another size than it says"),
        (array([1.0])[:100], ""),
        (b"PK", ""),
    ],
)
def test_what_lies_is_refused_before_anything_is_made(
    content: bytes, said: str, tmp_path: Path
) -> None:
    with pytest.raises(npz.CORRUPT_ERRORS) as caught:
        read(packed(tmp_path / "a.npz", x=content))
    assert said in str(caught.value)


def test_few_bytes_that_unpack_to_many_are_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = packed(tmp_path / "bomb.npz", x=array(np.zeros(1_000_000)))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(npz, "MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="over the limit"):
        read(path)

"""Untrusted archives of arrays: false headers and bombs are rejected before allocation."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib import format as npy

from qconvert.core import npz


def write_archive(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def npy_bytes(value: Any) -> bytes:
    content = io.BytesIO()
    npy.write_array(content, np.asarray(value), allow_pickle=True)
    return content.getvalue()


def npy_header(shape: tuple[int, ...], kind: str) -> bytes:
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
def test_array_is_read_as_written(value: Any, tmp_path: Path) -> None:
    loaded = read(write_archive(tmp_path / "a.npz", x=npy_bytes(value)))
    assert loaded.dtype == value.dtype
    np.testing.assert_array_equal(loaded, value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy_bytes(np.array([Path("x")], object)), "Python objects"),
        (npy_header((2, 10**14), "<f4"), "contradicts its header"),
        (npy_header((2**62, 2**62), "<f8"), "contradicts its header"),
        (npy_header((3,), "<f4"), "contradicts its header"),
        (npy_bytes([1.0])[:100], ""),
        (b"PK", ""),
    ],
)
def test_false_array_header_is_rejected_before_allocation(
    content: bytes, message: str, tmp_path: Path
) -> None:
    with pytest.raises(npz.CORRUPT_ERRORS) as caught:
        read(write_archive(tmp_path / "a.npz", x=content))
    assert message in str(caught.value)


def test_archive_over_unpacked_size_limit_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(tmp_path / "bomb.npz", x=npy_bytes(np.zeros(1_000_000)))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(npz, "MAX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="over the limit"):
        read(path)

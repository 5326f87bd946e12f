"""A calibration file is read back completely, or refused with the reason."""

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qconvert.calibrate.calibration import Calibration, load_calibration, save_calibration
from qconvert.calibrate.calibration import pack_calibration as pack
from qconvert.core.errors import QConvertError, UsageError
from tests.calibrate.activations import FakeTaps, calibrate, origin
from tests.models import floats

TAPS = FakeTaps({"a": floats(4, 2, 30), "b": floats(4, 1, 50, seed=1)})
WHOLE = calibrate(TAPS)

Array = NDArray[Any]


def rewritten(path: Path, name: str, change: Callable[[Array], Array]) -> Path:
    """Write a file in which one array is another."""
    content = pack(WHOLE)
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            array = np.load(io.BytesIO(old.read(member)))
            data = io.BytesIO()
            np.save(data, change(array) if member == f"{name}.npy" else array)
            new.writestr(member, data.getvalue())
    return path


def test_saved_calibration_round_trips_byte_for_byte(tmp_path: Path) -> None:
    save_calibration(WHOLE, tmp_path / "new" / "c.npz")
    loaded = load_calibration(tmp_path / "new" / "c.npz")
    assert loaded.origin == WHOLE.origin
    assert pack(loaded) == pack(WHOLE)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.npz"]


def test_empty_calibration_round_trips(tmp_path: Path) -> None:
    save_calibration(Calibration(origin(TAPS)), tmp_path / "c.npz")
    assert load_calibration(tmp_path / "c.npz").missing_images() == [range(4)]


def test_never_finite_tensor_round_trips(tmp_path: Path) -> None:
    broken = calibrate(FakeTaps({"t": np.full((2, 3, 4), np.nan, dtype=np.float32)}))
    save_calibration(broken, tmp_path / "c.npz")
    assert pack(load_calibration(tmp_path / "c.npz")) == pack(broken)


def test_calibration_file_is_a_plain_npz(tmp_path: Path) -> None:
    save_calibration(WHOLE, tmp_path / "c.npz")
    with np.load(tmp_path / "c.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["lows"][0], WHOLE.summaries["a"].lows)
        about = json.loads(arrays["about"].tobytes())
    assert about["origin"]["preprocessing"] == {"resize": 256}


def test_missing_calibration_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_calibration(tmp_path / "c.npz")


@settings(deadline=None, max_examples=60)
@given(cut=st.integers(0, len(pack(WHOLE)) - 1), at=st.integers(0, len(pack(WHOLE)) - 1))
def test_damaged_calibration_file_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, cut: int, at: int
) -> None:
    content = pack(WHOLE)
    path = tmp_path_factory.getbasetemp() / "damaged.npz"
    path.write_bytes(content[:cut])
    with pytest.raises(QConvertError):
        load_calibration(path)
    path.write_bytes(content[:at] + bytes([content[at] ^ 0x55]) + content[at + 1 :])
    try:
        loaded = load_calibration(path)
    except QConvertError:
        return
    assert pack(loaded) == content  # the damage is in an unused field, such as a date


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", pack(WHOLE)[:-30]])
def test_non_calibration_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.npz"
    path.write_bytes(content)
    with pytest.raises(QConvertError, match="is not a calibration file, or is damaged"):
        load_calibration(path)


def test_file_of_an_earlier_version_with_more_arrays_is_read(tmp_path: Path) -> None:
    save_calibration(WHOLE, tmp_path / "c.npz")
    content = io.BytesIO()
    np.save(content, np.zeros(3, np.int64))
    with zipfile.ZipFile(tmp_path / "c.npz", "a") as archive:
        archive.writestr("coarse.npy", content.getvalue())
    assert pack(load_calibration(tmp_path / "c.npz")) == pack(WHOLE)


def test_foreign_npz_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", weights=np.zeros(3))
    with pytest.raises(QConvertError, match="its format is not stated"):
        load_calibration(tmp_path / "c.npz")


def test_newer_file_version_is_refused(tmp_path: Path) -> None:
    def newer(about: Array) -> Array:
        content = json.loads(about.tobytes()) | {"version": 7}
        return np.frombuffer(json.dumps(content).encode(), dtype=np.uint8)

    with pytest.raises(QConvertError, match="has format 7, this qconvert reads 1"):
        load_calibration(rewritten(tmp_path / "c.npz", "about", newer))


def test_incomplete_origin_is_refused(tmp_path: Path) -> None:
    about = {"format": "qconvert-calibration", "version": 1, "origin": {"model": "m"}}
    blob = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    with pytest.raises(QConvertError, match="its origin is not complete: tensors"):
        load_calibration(rewritten(tmp_path / "c.npz", "about", lambda _: blob))


IMPOSSIBLE: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "images twice": ("done", lambda _: np.array([0, 1, 1, 2])),
    "images beyond the list": ("done", lambda _: np.array([0, 1, 2, 9])),
    "a row is missing": ("lows", lambda array: array[:1]),
    "lows above highs": ("lows", lambda array: np.full_like(array, 1e9)),
    "an infinite high": ("highs", lambda array: np.full_like(array, np.inf)),
    "highs not a number": ("highs", lambda array: np.full_like(array, np.nan)),
    "sizes below zero": ("sizes", np.negative),
    "more keys than there are": ("key_counts", lambda _: np.array([2**40, 2**40])),
    "keys out of order": ("keys", lambda array: array[::-1].copy()),
    "counts of nothing": ("numbers", np.zeros_like),
    "a count too many": ("numbers", lambda array: np.append(array, array[:1])),
    "counts that overflow": ("numbers", lambda array: np.full_like(array, 2**62)),
    "no channels": ("channel_counts", lambda _: np.array([3, 0])),
    "channels not a number": ("channel_lows", lambda array: np.full_like(array, np.nan)),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_impossible_array_values_are_refused(tmp_path: Path, what: str) -> None:
    name, change = IMPOSSIBLE[what]
    with pytest.raises(QConvertError, match="are impossible"):
        load_calibration(rewritten(tmp_path / "c.npz", name, change))


def test_array_of_wrong_dtype_is_refused(tmp_path: Path) -> None:
    path = rewritten(tmp_path / "c.npz", "lows", lambda array: array.astype(np.float64))
    with pytest.raises(QConvertError, match="`lows` has another type"):
        load_calibration(path)


def test_array_header_with_a_false_huge_size_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2, 10**14)}
    )
    path = tmp_path / "c.npz"
    with zipfile.ZipFile(io.BytesIO(pack(WHOLE))) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            claims = member == "lows.npy"
            new.writestr(member, header.getvalue() if claims else old.read(member))
    with pytest.raises(QConvertError, match=r"the size of `lows\.npy` contradicts its header"):
        load_calibration(path)


def test_archive_with_a_false_huge_size_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.npy", b"x")
    content = bytearray(path.read_bytes())
    central = content.rindex(b"PK\x01\x02")
    content[central + 24 : central + 28] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(bytes(content))
    with pytest.raises(QConvertError, match="over the limit"):
        load_calibration(path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    hostile = np.array([Path("x")], dtype=object)
    path = tmp_path / "c.npz"
    with zipfile.ZipFile(path, "w") as archive, archive.open("about.npy", "w") as member:
        np.lib.format.write_array(member, hostile, allow_pickle=True)
    with pytest.raises(QConvertError, match="Python objects"):
        load_calibration(path)

import contextlib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.core import npz
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.images import ImageChoice, open_images, reopen_images
from qconvert.images.arrays import ArrayImages
from qconvert.images.listing import NO_CLASSES, ImageEntry, Images
from qconvert.images.preprocess import PRESETS

UNIT = PRESETS["unit"]
TWO = [
    TensorSpec("ids", np.dtype("int64"), ("N", 7)),
    TensorSpec("mask", np.dtype("bool"), ("N", "length")),
]


def two_inputs(count: int = 10) -> dict[str, Any]:
    ids = np.arange(count * 7, dtype=np.int64).reshape(count, 7)
    return {"ids": ids, "mask": ids % 2 == 0}


def open_rows(path: Path, specs: list[TensorSpec] = TWO, **choice: Any) -> Images:
    return open_images(ImageChoice(path, **choice), specs, UNIT)


def write_npz(tmp_path: Path, **named: Any) -> Path:
    np.savez(tmp_path / "arrays.npz", **named)
    return tmp_path / "arrays.npz"


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_model_inputs_get_their_own_rows(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "arrays.npz", **two_inputs())
    batches = list(open_rows(tmp_path / "arrays.npz").batches(4))
    assert [len(batch.items) for batch in batches] == [4, 4, 2]
    for name, array in two_inputs().items():
        assert np.array_equal(np.concatenate([batch.feeds[name] for batch in batches]), array)
    assert batches[1].items[0].name == "4"


@settings(deadline=None)
@given(size=st.integers(1, 12), start=st.integers(0, 9))
def test_hashes_and_positions_do_not_depend_on_batches_or_parts(size: int, start: int) -> None:
    entries = tuple(ImageEntry(str(row), position=row) for row in range(10))
    whole = ArrayImages(Path("x.npz"), entries, NO_CLASSES, two_inputs())
    items = [item for batch in whole.batches(3) for item in batch.items]
    part = [item for batch in whole.between(start, 10).batches(size) for item in batch.items]
    assert part == items[start:]


def test_npy_feeds_the_only_input(tmp_path: Path) -> None:
    array = np.asfortranarray(np.random.default_rng(0).random((5, 3, 2), np.float32))
    np.save(tmp_path / "arrays.npy", array)
    specs = [TensorSpec("x", np.dtype("float32"), ("N", 3, 2))]
    batch = next(open_rows(tmp_path / "arrays.npy", specs).batches(5))
    assert np.array_equal(batch.feeds["x"], array)
    with pytest.raises(UsageError, match="contains one array, but the model has several inputs"):
        open_rows(tmp_path / "arrays.npy")


@pytest.mark.parametrize("name", ["arrays.npz", "arrays.npy"])
def test_uncompressed_arrays_are_memory_mapped(tmp_path: Path, name: str) -> None:
    array = np.zeros((4, 3, 2), np.float32)
    np.savez(tmp_path / "arrays.npz", x=array)
    np.save(tmp_path / "arrays.npy", array)
    images = open_rows(tmp_path / name, [TensorSpec("x", np.dtype("float32"), ("N", 3, 2))])
    assert isinstance(images, ArrayImages)
    assert isinstance(images.arrays["x"], np.memmap)
    batch = next(images.batches(2))
    assert not isinstance(batch.feeds["x"], np.memmap)


def test_count_is_balanced_over_labels(tmp_path: Path) -> None:
    path = write_npz(tmp_path, **two_inputs(), labels=np.array([0] * 8 + [1] * 2))
    images = open_rows(path, count=4)
    assert images.labels == (0, 0, 1, 1)
    assert len(open_rows(path, count=99).names) == 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mask": None}, "has the arrays `ids`; the model's inputs are `ids`, `mask`"),
        ({"other": np.zeros(10)}, "has the arrays `ids`, `mask`, `other`"),
        ({"ids": np.zeros((10, 7), np.int32)}, "`ids` in .* is int32; the model takes int64"),
        ({"ids": np.zeros((10, 8), np.int64)}, r"has the shape \[10, 8\]; the model's input is"),
        ({"ids": np.zeros(10, np.int64)}, r"has the shape \[10\]"),
        ({"ids": np.zeros((9, 7), np.int64)}, "different lengths: `ids` 9, `mask` 10"),
        ({"labels": np.zeros(9, np.int64)}, "it must be 10 whole numbers"),
        ({"labels": np.full(10, -1)}, "it must be 10 whole numbers"),
        ({"ids": np.array([{}] * 10)}, "cannot be read as arrays: .*bject"),
    ],
)
def test_arrays_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    named = {name: array for name, array in (two_inputs() | change).items() if array is not None}
    with pytest.raises(UsageError, match=words):
        open_rows(write_npz(tmp_path, **named))


def test_empty_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(QConvertError, match="are empty"):
        open_rows(write_npz(tmp_path, **two_inputs(0)))


@pytest.mark.parametrize("name", ["arrays.npz", "arrays.npy"])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_truncated_array_file_is_refused(tmp_path: Path, name: str, share: float) -> None:
    np.save(tmp_path / "arrays.npy", two_inputs()["ids"])
    write_npz(tmp_path, ids=two_inputs()["ids"])
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(UsageError, match="cannot be read as arrays"):
        open_rows(tmp_path / name, TWO[:1])


STATE = [
    TensorSpec("frame", np.dtype("float32"), ("N", 4)),
    TensorSpec("state", np.dtype("float32"), (2, 1, 4)),
    TensorSpec("rate", np.dtype("int64"), ()),
]


def stateful_inputs(**other: Any) -> dict[str, Any]:
    rows = {"frame": np.zeros((3, 4), np.float32), "state": np.zeros((3, 2, 1, 4), np.float32)}
    return {**rows, "rate": np.arange(3), **other}


def test_unbatched_inputs_are_fed_whole_and_one_at_a_time(tmp_path: Path) -> None:
    batches = list(open_rows(write_npz(tmp_path, **stateful_inputs()), STATE).batches(8))
    shapes = {name: array.shape for name, array in batches[1].feeds.items()}
    assert shapes == {"frame": (1, 4), "state": (2, 1, 4), "rate": ()}
    assert [int(batch.feeds["rate"]) for batch in batches] == [0, 1, 2]


@pytest.mark.parametrize("batch", [2, "whole"])
def test_unbatched_inputs_need_a_batch_of_one(tmp_path: Path, batch: Any) -> None:
    frame = TensorSpec("frame", np.dtype("float32"), (1 if batch == "whole" else batch, 4))
    rows = np.zeros((3, 1, 4) if batch == "whole" else (3, 4), np.float32)
    with pytest.raises(UsageError, match="one at a time, but the first input is `frame"):
        open_rows(write_npz(tmp_path, **stateful_inputs(frame=rows)), [frame, *STATE[1:]])


def test_scalar_input_needs_one_number_per_item(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has the shape \[\]"):
        open_rows(write_npz(tmp_path, **stateful_inputs(rate=np.int64(1))), STATE)


def test_missing_file_and_label_file_for_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        open_rows(tmp_path / "gone.npz")
    (tmp_path / "labels.csv").touch()
    with pytest.raises(UsageError, match="is for image files"):
        open_rows(write_npz(tmp_path, **two_inputs()), labels=tmp_path / "labels.csv")


def test_member_that_is_not_an_array_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "arrays.npz", "w") as archive:
        archive.writestr("ids.npy", "hello")
    with pytest.raises(UsageError, match="cannot be read as arrays"):
        open_rows(tmp_path / "arrays.npz")


def test_manifest_reopens_the_same_rows(tmp_path: Path) -> None:
    images = open_rows(write_npz(tmp_path, **two_inputs()), count=3)
    manifest = images.manifest()
    reopened = reopen_images(tmp_path / "arrays.npz", manifest, TWO, UNIT)
    assert reopened.names == images.names
    assert reopened.manifest() == manifest
    assert reopened.between(1, 3).manifest() == manifest[1:]


def test_reopening_changed_or_missing_rows_is_an_error(tmp_path: Path) -> None:
    manifest = open_rows(write_npz(tmp_path, **two_inputs()), count=3).manifest()
    write_npz(tmp_path, **(two_inputs() | {"ids": two_inputs()["ids"] + 1}))
    with pytest.raises(QConvertError, match="has changed"):
        next(reopen_images(tmp_path / "arrays.npz", manifest, TWO, UNIT).batches(3))
    write_npz(tmp_path, **two_inputs(2))
    with pytest.raises(UsageError, match="has only 2 rows left"):
        reopen_images(tmp_path / "arrays.npz", manifest, TWO, UNIT)


def test_arrays_that_unpack_over_the_limit_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez_compressed(tmp_path / "arrays.npz", **two_inputs(20_000))
    monkeypatch.setattr(npz, "MAX_BYTES", 1_000_000)
    with pytest.raises(UsageError, match="over the limit of 1 GiB in memory"):
        open_rows(tmp_path / "arrays.npz")
    np.savez(tmp_path / "arrays.npz", **two_inputs(20_000))
    assert len(open_rows(tmp_path / "arrays.npz").names) == 20_000


@pytest.mark.parametrize("name", ["arrays.npz", "packed.npz", "arrays.npy"])
def test_flipped_byte_is_refused_or_read(name: str, tmp_path: Path) -> None:
    ids = np.arange(70, dtype=np.int64).reshape(10, 7)
    path = tmp_path / name
    save = {"arrays.npz": np.savez, "packed.npz": np.savez_compressed}.get(name)
    if save is None:
        np.save(path, ids)
    else:
        save(path, ids=ids)
    intact = path.read_bytes()
    for position in range(0, len(intact), 3):
        flipped = bytes([intact[position] ^ 0x84])
        path.write_bytes(intact[:position] + flipped + intact[position + 1 :])
        with contextlib.suppress(UsageError):
            open_rows(path, TWO[:1])

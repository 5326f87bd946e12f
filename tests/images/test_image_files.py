import hashlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.images import image_files, reopen_images
from qconvert.images.image_files import PixelBudget, map_ordered
from qconvert.images.listing import digest_of, sha256sum_text
from qconvert.images.preprocess import PRESETS, Preprocess
from tests.images.image_folders import (
    SPEC,
    all_rows,
    noise_image,
    open_for_test,
    write_images,
    write_numbered,
)


def truncate(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:60])
    return root


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_pixels_do_not_depend_on_threads_or_batch_size(
    tmp_path: Path, workers: int, size: int
) -> None:
    write_numbered(tmp_path, 17)
    images = open_for_test(tmp_path, threads=workers)
    in_one_batch = all_rows(open_for_test(tmp_path, threads=1), 17)
    assert np.array_equal(all_rows(images, size), in_one_batch)


def test_batches_except_last_are_full_and_name_their_items(tmp_path: Path) -> None:
    write_numbered(tmp_path, 10)
    (tmp_path / "labels.csv").write_text("file,label\n004.png,9\n")
    batches = list(open_for_test(tmp_path).batches(4))
    assert [len(batch.items) for batch in batches] == [4, 4, 2]
    assert [batch.feeds["x"].shape for batch in batches] == [(4, 3, 24, 24)] * 2 + [(2, 3, 24, 24)]
    assert [batch.items[0].position for batch in batches] == [0, 4, 8]
    first = batches[1].items[0]
    sha256 = hashlib.sha256((tmp_path / "004.png").read_bytes()).hexdigest()
    assert (first.position, first.name, first.sha256, first.label) == (4, "004.png", sha256, 9)
    assert batches[1].items[1].label is None


@pytest.mark.parametrize("broken", [("000.png",), ("003.png", "004.png"), ("007.png",)])
def test_broken_file_is_skipped_and_shifts_no_position(
    tmp_path: Path, broken: tuple[str, ...]
) -> None:
    truncate(write_numbered(tmp_path, 8), *broken)
    batches = list(open_for_test(tmp_path).batches(7))
    items = [item for batch in batches for item in batch.items]
    assert len(items) == 8 - len(broken)
    assert not {item.name for item in items} & set(broken)
    assert all(item.name == f"{item.position:03}.png" for item in items)


@pytest.mark.parametrize(
    ("files", "broken", "limit"), [(30, 11, None), (200, 21, None), (5, 1, 0), (12, 5, 4)]
)
def test_more_broken_files_than_allowed_are_an_error(
    tmp_path: Path, files: int, broken: int, limit: int | None
) -> None:
    names = [f"{number:03}.png" for number in range(files)]
    write_images(tmp_path, *names, size=(8, 6))
    truncate(tmp_path, *names[: broken - 1])
    assert len(all_rows(open_for_test(tmp_path, max_broken=limit))) == files - broken + 1
    truncate(tmp_path, names[-1])
    message = f"of the {files} images .*: {broken} so far, {broken - 1} allowed"
    with pytest.raises(QConvertError, match=message) as error:
        all_rows(open_for_test(tmp_path, max_broken=limit))
    assert error.value.details[0].startswith("`000.png` (" if broken > 1 else f"`{names[-1]}` (")


def test_folder_without_a_readable_image_is_an_error_even_within_the_limit(tmp_path: Path) -> None:
    truncate(write_numbered(tmp_path, 2), "000.png", "001.png")
    with pytest.raises(QConvertError, match=r"no image of .* could be read"):
        next(open_for_test(tmp_path).batches(4))


def test_links_pipes_empty_and_oversized_files_are_named_with_the_reason(tmp_path: Path) -> None:
    write_numbered(tmp_path, 1)
    (tmp_path / "dangling.png").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(QConvertError) as error:
        next(open_for_test(tmp_path, max_broken=3).batches(4))
    assert list(error.value.details) == [
        "`dangling.png` (No such file or directory)",
        "`empty.png` (empty file)",
        "`huge.png` (10,000,000,000 bytes are over the limit of 100,000,000 pixels)",
        "`pipe.png` (not a file)",
    ]


def test_image_over_the_pixel_limit_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_files, "MAX_PIXELS", 2000)
    write_numbered(tmp_path, 1)
    noise_image(60, 60).save(tmp_path / "bomb.png")
    batch = next(open_for_test(tmp_path).batches(4))
    assert [item.name for item in batch.items] == ["000.png"]


def test_leaving_the_loop_leaves_no_thread(tmp_path: Path) -> None:
    write_numbered(tmp_path, 30)
    for _ in open_for_test(tmp_path).batches(2):
        break
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for batch in open_for_test(tmp_path).batches(2):
            _ = len(batch.items) / 0
    assert [thread for thread in threading.enumerate() if thread.name.startswith("qconvert")] == []


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_pixel_mode_feeds_gray_and_coloured_networks(
    tmp_path: Path, mode: str, channels: int
) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 40), 51 * 257, np.uint16))
    else:
        image = Image.new("L", (40, 30), 51).convert(mode)
    image.save(tmp_path / "x.tif")
    spec = TensorSpec("x", np.dtype("uint8"), ("N", channels, 24, 24))
    rows = all_rows(open_for_test(tmp_path, preprocess=PRESETS["raw"], spec=spec))
    assert rows.shape == (1, channels, 24, 24)
    assert mode == "1" or abs(rows.astype(int) - 51).max() <= 1


def test_image_smaller_than_the_crop_is_an_error(tmp_path: Path) -> None:
    write_numbered(tmp_path, 3)
    spec = TensorSpec("x", np.dtype("float32"), (1, 3, 50, 50))
    images = open_for_test(tmp_path, preprocess=Preprocess(resize="none", crop=50), spec=spec)
    with pytest.raises(QConvertError, match=r"`000.png` is 40×30; the model takes 50×50"):
        all_rows(images)


def test_part_keeps_the_positions_of_the_whole(tmp_path: Path) -> None:
    whole = open_for_test(write_numbered(tmp_path, 9))
    part = whole.between(2, 7).between(1, 3)
    items = [item for batch in part.batches(1) for item in batch.items]
    assert [(item.position, item.name) for item in items] == [(3, "003.png"), (4, "004.png")]
    assert np.array_equal(all_rows(part), all_rows(whole)[3:5])


def test_at_most_count_images_are_used_with_balanced_classes(tmp_path: Path) -> None:
    write_images(tmp_path, *(f"many/{number}.png" for number in range(9)), "few/1.png", "few/2.png")
    images = open_for_test(tmp_path, count=4)
    assert sorted(images.labels, key=str) == [0, 0, 1, 1]
    assert images.names == open_for_test(tmp_path, count=4).names
    assert len(open_for_test(tmp_path, count=1000).names) == 11


def test_manifest_equals_that_of_the_items_read(tmp_path: Path) -> None:
    images = open_for_test(write_numbered(tmp_path, 6))
    items = [item for batch in images.batches(4) for item in batch.items]
    used = [(item.name, item.sha256) for item in items]
    assert [(entry.name, entry.sha256) for entry in images.manifest()] == used


def test_manifest_digest_depends_on_names_and_contents_but_not_on_the_folder(
    tmp_path: Path,
) -> None:
    digest = digest_of(open_for_test(write_numbered(tmp_path / "a", 3)).manifest())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert digest_of(open_for_test(tmp_path / "b").manifest()) == digest
    noise_image(9, 9).save(tmp_path / "b/001.png")
    assert digest_of(open_for_test(tmp_path / "b").manifest()) != digest


def test_manifest_reopens_the_same_images(tmp_path: Path) -> None:
    images = open_for_test(write_numbered(tmp_path, 20), count=7)
    reopened = reopen_images(tmp_path, images.manifest(), [SPEC], PRESETS["imagenet"])
    assert reopened.names == images.names
    assert np.array_equal(all_rows(reopened), all_rows(images))
    assert reopened.manifest() == images.manifest()


def test_reopening_changed_or_missing_images_is_an_error(tmp_path: Path) -> None:
    manifest = open_for_test(write_numbered(tmp_path, 3)).manifest()
    noise_image(40, 30, seed=99).save(tmp_path / "001.png")
    with pytest.raises(QConvertError, match=r"001\.png` has changed"):
        all_rows(reopen_images(tmp_path, manifest, [SPEC], PRESETS["imagenet"]))
    (tmp_path / "001.png").unlink()
    with pytest.raises(UsageError, match="names a file that does not exist"):
        reopen_images(tmp_path, manifest, [SPEC], PRESETS["imagenet"])


def test_manifest_text_passes_sha256sum(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b/c d.png", "e\nf.png", "g\\h.png")
    text = sha256sum_text(open_for_test(tmp_path).manifest())
    process = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet"],
        cwd=tmp_path,
        input=text,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (process.returncode, process.stdout) == (0, "")
    assert text.count("\n") == 4


def threads() -> list[str]:
    return [
        thread.name for thread in threading.enumerate() if thread.name.startswith("qconvert-images")
    ]


@settings(deadline=None)
@given(count=st.integers(0, 40), workers=st.integers(1, 8), limit=st.integers(1, 20))
def test_results_keep_the_order_of_the_items(count: int, workers: int, limit: int) -> None:
    assert list(map_ordered(lambda number: number * 10, range(count), workers, limit)) == [
        number * 10 for number in range(count)
    ]


def test_slow_item_does_not_let_later_results_pass() -> None:
    later_done = threading.Event()

    def compute(number: int) -> int:
        if number == 0:
            assert later_done.wait(30)
        if number == 3:
            later_done.set()
        return number

    assert list(map_ordered(compute, range(8), workers=4, limit=8)) == list(range(8))


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_no_more_items_are_taken_than_the_limit_allows(limit: int) -> None:
    started = 0

    def items() -> Iterator[int]:
        nonlocal started
        for number in range(30):
            started += 1
            yield number

    for taken, _ in enumerate(map_ordered(lambda number: number, items(), 4, limit), start=1):
        # One more item was taken, which waits for a free slot.
        assert started - taken <= limit


def test_closing_early_leaves_no_thread_and_starts_no_call() -> None:
    calls: list[int] = []
    results = map_ordered(calls.append, range(1000), workers=4, limit=8)
    next(results)
    results.close()
    assert threads() == []
    assert len(calls) <= 9


def test_exception_in_the_loop_leaves_no_thread() -> None:
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for _ in map_ordered(lambda number: number, range(1000), workers=4, limit=8):
            raise KeyboardInterrupt
    assert threads() == []


def test_error_in_the_function_is_raised_at_its_place_and_leaves_no_thread() -> None:
    def compute(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    results = []
    with pytest.raises(ValueError, match="five"):  # noqa: PT012
        for number in map_ordered(compute, range(100), workers=4, limit=8):
            results.append(number)
    assert results == [0, 1, 2, 3, 4]
    assert threads() == []


@pytest.mark.parametrize(("pixels", "most"), [(10, 100), (60, 60), (500, 500)])
def test_pixel_budget_limits_threads_and_lets_a_single_larger_image_through(
    pixels: int, most: int
) -> None:
    budget, lock = PixelBudget(100), threading.Lock()
    reserved, totals = 0, list[int]()

    def read(_: int) -> None:
        nonlocal reserved
        with budget.reserve(pixels):
            with lock:
                reserved += pixels
                totals.append(reserved)
            with lock:
                reserved -= pixels

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(read, range(200)))
    assert len(totals) == 200
    assert max(totals) <= most


def test_pixel_budget_is_released_when_reading_fails() -> None:
    budget = PixelBudget(100)
    with pytest.raises(ValueError, match="broken"), budget.reserve(100):
        raise ValueError("broken")
    with budget.reserve(100):
        pass

import hashlib
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qconvert.core.errors import QConvertError, UsageError
from qconvert.images import reopen_images
from qconvert.images.batches import ImageManifest, SkippedFile, manifest_of
from qconvert.images.image_files import ImageReader, PreparedImage, ReadOptions
from qconvert.images.listing import ImageFile
from qconvert.images.preprocess import PRESETS, Preprocess
from tests.images.drawn import SPEC, arrays, folder, noise, numbered, opened


def breaking(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).write_bytes((root / name).read_bytes()[:60])
    return root


@pytest.mark.parametrize("workers", [1, 3, 8])
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_the_bytes_do_not_depend_on_threads_or_batch_size(
    tmp_path: Path, workers: int, size: int
) -> None:
    numbered(tmp_path, 17)
    images = opened(tmp_path, ReadOptions(workers=workers))
    assert np.array_equal(
        arrays(images, size), arrays(opened(tmp_path, ReadOptions(workers=1)), 17)
    )


def test_batches_are_full_but_the_last_and_say_what_is_in_them(tmp_path: Path) -> None:
    numbered(tmp_path, 10)
    (tmp_path / "labels.csv").write_text("file,label\n004.png,9\n")
    batches = list(opened(tmp_path).batches(4))
    assert [len(batch.items) for batch in batches] == [4, 4, 2]
    assert [batch.feeds["x"].shape for batch in batches] == [(4, 3, 24, 24)] * 2 + [(2, 3, 24, 24)]
    assert [batch.index for batch in batches] == [0, 4, 8]
    first = batches[1].items[0]
    sha256 = hashlib.sha256((tmp_path / "004.png").read_bytes()).hexdigest()
    assert (first.position, first.name, first.sha256, first.label) == (4, "004.png", sha256, 9)
    assert batches[1].items[1].label is None


@pytest.mark.parametrize("broken", [("000.png",), ("003.png", "004.png"), ("007.png",)])
def test_a_broken_file_is_skipped_and_named_and_moves_no_position(
    tmp_path: Path, broken: tuple[str, ...]
) -> None:
    breaking(numbered(tmp_path, 8), *broken)
    batches = list(opened(tmp_path).batches(7))
    skipped = [each for batch in batches for each in batch.skipped]
    assert [each.name for each in skipped] == list(broken)
    assert all("truncated" in str(each) or "identify" in str(each) for each in skipped)
    items = [item for batch in batches for item in batch.items]
    assert len(items) == 8 - len(broken)
    assert all(item.name == f"{item.position:03}.png" for item in items)


@pytest.mark.parametrize(
    ("files", "broken", "limit"), [(30, 11, None), (200, 21, None), (5, 1, 0), (12, 5, 4)]
)
def test_more_broken_files_than_allowed_stop_the_work(
    tmp_path: Path, files: int, broken: int, limit: int | None
) -> None:
    names = [f"{number:03}.png" for number in range(files)]
    numbered(tmp_path, files)
    reading = ReadOptions(workers=2, max_broken=limit)
    breaking(tmp_path, *names[: broken - 1])
    assert len(arrays(opened(tmp_path, reading))) == files - broken + 1
    breaking(tmp_path, names[-1])
    with pytest.raises(
        QConvertError, match=f"of the {files} images .*: {broken} so far, {broken - 1} allowed"
    ) as told:
        arrays(opened(tmp_path, reading))
    assert told.value.details[0].startswith("`000.png` (" if broken > 1 else f"`{names[-1]}` (")


def test_nothing_readable_is_an_error_even_within_the_limit(tmp_path: Path) -> None:
    breaking(numbered(tmp_path, 2), "000.png", "001.png")
    with pytest.raises(QConvertError, match=r"no image of .* could be read"):
        next(opened(tmp_path).batches(4))


def test_what_cannot_be_opened_is_broken_too(tmp_path: Path) -> None:
    numbered(tmp_path, 1)
    (tmp_path / "dangling.png").symlink_to("gone")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "empty.png").touch()
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(10**10)
    batch = next(opened(tmp_path).batches(4))
    assert [str(each) for each in batch.skipped] == [
        "`dangling.png` (No such file or directory)",
        "`empty.png` (empty file)",
        "`huge.png` (10,000,000,000 bytes are over the limit of 100,000,000 pixels)",
        "`pipe.png` (not a file)",
    ]


def test_a_bomb_is_skipped(tmp_path: Path) -> None:
    numbered(tmp_path, 1)
    noise(60, 60).save(tmp_path / "bomb.png")
    batch = next(opened(tmp_path, ReadOptions(workers=1, max_pixels=2000)).batches(4))
    assert [each.name for each in batch.skipped] == ["bomb.png"]


def test_leaving_the_loop_leaves_no_thread(tmp_path: Path) -> None:
    numbered(tmp_path, 30)
    for _ in opened(tmp_path).batches(2):
        break
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        for batch in opened(tmp_path).batches(2):
            _ = batch.index / 0
    assert [each for each in threading.enumerate() if each.name.startswith("qconvert")] == []


def test_no_more_is_decoded_ahead_than_a_batch_and_two_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counted(self: ImageReader, given: tuple[int, ImageFile]) -> PreparedImage | SkippedFile:
        read.append(given[1].name)
        return original(self, given)

    original = ImageReader.read
    monkeypatch.setattr(ImageReader, "read", counted)
    batches = opened(numbered(tmp_path, 60), ReadOptions(workers=2)).batches(4)
    for taken, _ in enumerate(batches, start=1):
        # What was taken, the one that showed that the batch is not the last, and those ahead.
        assert len(read) <= 4 * taken + 1 + 4 + 2 * 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_feeds_a_gray_or_a_coloured_network(
    tmp_path: Path, mode: str, channels: int
) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((30, 40), 51 * 257, np.uint16))
    else:
        image = Image.new("L", (40, 30), 51).convert(mode)
    image.save(tmp_path / "x.tif")
    spec = type(SPEC)("x", np.dtype("uint8"), ("N", channels, 24, 24))
    got = arrays(opened(tmp_path, preprocess=PRESETS["raw"], spec=spec))
    assert got.shape == (1, channels, 24, 24)
    assert mode == "1" or abs(got.astype(int) - 51).max() <= 1


def test_settings_that_fit_no_picture_stop_the_work(tmp_path: Path) -> None:
    numbered(tmp_path, 3)
    with pytest.raises(QConvertError, match=r"`000.png` is 40×30; the model takes 50×50"):
        arrays(
            opened(
                tmp_path,
                preprocess=Preprocess(resize="none", crop=50),
                spec=type(SPEC)("x", np.dtype("float32"), (1, 3, 50, 50)),
            )
        )


def test_a_part_keeps_the_positions_of_the_whole(tmp_path: Path) -> None:
    whole = opened(numbered(tmp_path, 9))
    part = whole.between(2, 7).between(1, 3)
    items = [item for batch in part.batches(1) for item in batch.items]
    assert [(item.position, item.name) for item in items] == [(3, "003.png"), (4, "004.png")]
    assert np.array_equal(arrays(part), arrays(whole)[3:5])


def test_at_most_count_are_used_and_classes_are_balanced(tmp_path: Path) -> None:
    folder(tmp_path, *(f"many/{number}.png" for number in range(9)), "few/1.png", "few/2.png")
    images = opened(tmp_path, count=4)
    assert sorted(images.labels, key=str) == [0, 0, 1, 1]
    assert images.names == opened(tmp_path, count=4).names
    assert len(opened(tmp_path, count=1000).names) == 11


def test_the_listing_is_what_reading_them_finds(tmp_path: Path) -> None:
    images = opened(numbered(tmp_path, 6))
    used = manifest_of(images, (item for batch in images.batches(4) for item in batch.items))
    assert images.manifest() == used
    assert used.digest() == images.manifest().digest()


def test_the_digest_is_about_names_and_contents_and_not_about_the_place(tmp_path: Path) -> None:
    first = opened(numbered(tmp_path / "a", 3)).manifest()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert opened(tmp_path / "b").manifest().digest() == first.digest()
    noise(9, 9).save(tmp_path / "b/001.png")
    changed = opened(tmp_path / "b").manifest()
    assert changed.digest() != first.digest()
    assert first.shared(changed) == ("000.png", "002.png")


def test_a_stored_list_opens_the_very_same_images(tmp_path: Path) -> None:
    images = opened(numbered(tmp_path, 20), count=7)
    stored = ImageManifest.from_dict(images.manifest().to_dict())
    again = reopen_images(stored, [SPEC], PRESETS["imagenet"])
    assert again.names == images.names
    assert np.array_equal(arrays(again), arrays(images))
    assert again.manifest() == stored


def test_a_stored_list_notices_what_is_gone_or_changed(tmp_path: Path) -> None:
    stored = opened(numbered(tmp_path, 3)).manifest()
    noise(40, 30, seed=99).save(tmp_path / "001.png")
    with pytest.raises(QConvertError, match=r"001\.png` is not what it was"):
        arrays(reopen_images(stored, [SPEC], PRESETS["imagenet"]))
    (tmp_path / "001.png").unlink()
    with pytest.raises(UsageError, match="names a file that does not exist"):
        reopen_images(stored, [SPEC], PRESETS["imagenet"])
    with pytest.raises(QConvertError, match="list of images is damaged"):
        ImageManifest.from_dict({"root": "x", "images": [{"name": "a"}]})


def test_the_text_of_a_list_is_what_sha256sum_checks(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b/c d.png", "e\nf.png", "g\\h.png")
    text = opened(tmp_path).manifest().to_text()
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet"],
        cwd=tmp_path,
        input=text,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert text.count("\n") == 4


@pytest.mark.parametrize("limits", [{"workers": 0}, {"max_broken": -1}, {"max_pixels": 0}])
def test_limits_on_reading_make_sense(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="no such limits"):
        ReadOptions(**limits)

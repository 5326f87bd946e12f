import inspect
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.core.errors import QConvertError, UsageError
from qconvert.images.listing import choose_subset, find_labels, list_images
from tests.images.image_folders import noise_image, open_for_test, write_images, write_numbered

LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60)
COUNTS = st.integers(1, 70)
SEEDS = st.integers(0, 5)


def test_folder_is_listed_at_any_depth_in_sorted_order(tmp_path: Path) -> None:
    write_images(tmp_path, "b/2.png", "a.JPEG", "b/10.webp", "c/d/e.tif", "b.bmp")
    assert list_images(tmp_path) == ["a.JPEG", "b.bmp", "b/10.webp", "b/2.png", "c/d/e.tif"]


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", ".b.png", ".hidden/c.png")
    (tmp_path / "notes.txt").write_text("no image")
    assert list_images(tmp_path) == ["a.png"]


def test_links_are_followed_except_to_a_folder_around_them(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "a.png")
    write_images(tmp_path / "elsewhere", "b.png")
    (tmp_path / "images/link.png").symlink_to("a.png")
    (tmp_path / "images/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/round").symlink_to(tmp_path / "images")
    assert list_images(tmp_path / "images") == ["a.png", "link.png", "more/b.png"]


def test_list_file_keeps_its_order_and_its_paths_are_relative_to_it(tmp_path: Path) -> None:
    write_images(tmp_path / "data", "a.png", "b.png")
    list_file = tmp_path / "list.txt"
    list_file.write_text(f"\ufeffdata/b.png\n\n  data/a.png  \ndata/b.png\n{tmp_path}/data/a.png\n")
    assert list_images(list_file) == [
        "data/b.png",
        "data/a.png",
        "data/b.png",
        f"{tmp_path}/data/a.png",
    ]
    assert all((tmp_path / name).is_file() for name in list_images(list_file))


def test_csv_with_a_file_column_is_a_list(tmp_path: Path) -> None:
    write_images(tmp_path, "a b.png")
    (tmp_path / "list.csv").write_text('file\n"a b.png"\n')
    assert list_images(tmp_path / "list.csv") == ["a b.png"]


def test_single_image_is_a_list_of_one(tmp_path: Path) -> None:
    noise_image(4, 4).save(tmp_path / "one.png")
    assert list_images(tmp_path / "one.png") == ["one.png"]


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`nowhere` does not exist"):
        list_images(Path("nowhere"))
    (tmp_path / "list.txt").write_text("".join(f"{number}.png\n" for number in range(8)))
    with pytest.raises(UsageError, match="names 8 files that do not exist") as error:
        list_images(tmp_path / "list.txt")
    assert error.value.details[0] == f"`{tmp_path}/0.png`"
    assert error.value.details[-1] == "and 3 more"


def test_folder_or_list_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(QConvertError, match="contains no images"):
        list_images(tmp_path)
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(QConvertError, match="names no images"):
        list_images(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", b"path,label\nx.png,1\n", "no column `file`; its columns: path, label"),
        ("b.csv", b"", "no column `file`; its columns: none"),
        ("c.csv", b"file,label\nx.png\n", "line 2: 1 cells under 2 columns"),
        ("d.csv", b"file,label\n,3\n", "line 2: no file is named"),
        ("e.csv", b"file,label\n\xff\xfe,3\n", "cannot be read as CSV"),
        ("f.bin", b"\xff\xfe\x00", "is not a list of images"),
    ],
)
def test_invalid_list_file_is_refused(tmp_path: Path, name: str, text: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UsageError, match=words):
        list_images(tmp_path / name)


def test_link_to_itself_is_listed_as_an_image(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("a.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "b.png").touch()
    assert list_images(tmp_path) == ["a.png", "b.png"]


def test_non_utf8_image_name_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    (tmp_path / "\udcfc.png").write_bytes((tmp_path / "a.png").read_bytes())
    with pytest.raises(QConvertError, match="has 1 images whose names are not UTF-8"):
        list_images(tmp_path)


def test_deeply_nested_folders_are_listed_within_the_recursion_limit(tmp_path: Path) -> None:
    write_images(tmp_path, "/".join("a" * 200) + "/a.png")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        listed = list_images(tmp_path)
    finally:
        sys.setrecursionlimit(before)
    assert listed == ["a/" * 200 + "a.png"]


@settings(deadline=None)
@given(LABELS, COUNTS, SEEDS)
def test_subset_is_ascending_and_repeatable(labels: list[int], count: int, seed: int) -> None:
    for optional in (labels, [None] * len(labels)):
        chosen = choose_subset(optional, count, seed)
        assert chosen == choose_subset(optional, count, seed)
        assert len(chosen) == min(count, len(labels))
        assert list(chosen) == sorted(set(chosen))


@settings(deadline=None)
@given(LABELS, COUNTS, SEEDS)
def test_subset_of_labelled_images_balances_classes(
    labels: list[int], count: int, seed: int
) -> None:
    chosen = Counter(labels[index] for index in choose_subset(labels, count, seed))
    available = Counter(labels)
    fullest = max(chosen.values())
    assert all(chosen[label] >= min(available[label], fullest - 1) for label in available)


@settings(deadline=None)
@given(st.integers(1, 200), COUNTS, SEEDS)
def test_subset_of_unlabelled_images_is_spread_evenly(total: int, count: int, seed: int) -> None:
    chosen = choose_subset([None] * total, count, seed)
    if count < total:
        assert all(part * total // count <= index for part, index in enumerate(chosen))
        assert all(index < (part + 1) * total // count for part, index in enumerate(chosen))


def test_subset_depends_on_the_seed() -> None:
    assert choose_subset([None] * 1000, 10, 0) != choose_subset([None] * 1000, 10, 1)
    assert choose_subset([0, 1] * 500, 10, 0) != choose_subset([0, 1] * 500, 10, 1)


def test_subset_is_the_same_on_any_machine() -> None:
    assert choose_subset([None] * 100, 5, 0) == (9, 37, 47, 63, 82)
    assert choose_subset([0, 1] * 50, 4, 0) == (15, 44, 46, 87)


def test_subset_without_count_is_everything() -> None:
    assert choose_subset([None, 3, 1], None, 0) == (0, 1, 2)


def labels(path: Path, file: Path | None = None) -> dict[str, int | None]:
    names = list_images(path)
    return dict(zip(names, find_labels(path, names, file)[0], strict=True))


def test_class_folders_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/1.png", "cat/1.png", "cat/deep/2.png")
    (tmp_path / "cow").mkdir()  # no image here, but a class of the model
    assert labels(tmp_path) == {"cat/1.png": 0, "cat/deep/2.png": 0, "dog/1.png": 2}
    assert find_labels(tmp_path, list_images(tmp_path))[1].names == ("cat", "cow", "dog")


@pytest.mark.parametrize("place", [".", ".."])
def test_classes_txt_overrides_the_sorted_order(tmp_path: Path, place: str) -> None:
    images = write_images(tmp_path / "val", "dog/1.png", "cat/1.png")
    (images / place / "classes.txt").write_text("dog\ncow\ncat\n")
    assert labels(images) == {"cat/1.png": 2, "dog/1.png": 0}


def test_folder_missing_from_classes_txt_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/1.png", "cat/1.png")
    (tmp_path / "classes.txt").write_text("dog\n")
    with pytest.raises(UsageError, match="are not in the `classes") as error:
        labels(tmp_path)
    assert error.value.details == ("`cat`",)


def test_folders_of_pictures_and_masks_are_no_classes(tmp_path: Path) -> None:
    write_images(tmp_path, "images/1.png", "masks/1.png")
    with pytest.raises(UsageError, match="pictures and their masks") as error:
        labels(tmp_path)
    assert f"`{tmp_path / 'images'}`" in str(error.value.hint)


@pytest.mark.parametrize(
    "names", [("a.png", "cat/1.png", "dog/1.png"), ("images/1.png",), ("train/1.png", "val/1.png")]
)
def test_folder_without_classes_gives_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert set(labels(write_images(tmp_path, *names)).values()) == {None}


@pytest.mark.parametrize(
    ("place", "rows"),
    [(".", "1.png,3\n2.png,4\n"), ("..", "val/1.png,3\nval/2.png,4\ntrain/9.png,5\n")],
)
def test_labels_csv_is_found_in_the_folder_or_next_to_it(
    tmp_path: Path, place: str, rows: str
) -> None:
    images = write_images(tmp_path / "val", "1.png", "2.png")
    (images / place / "labels.csv").write_text("file,label\n" + rows)
    assert labels(images) == {"1.png": 3, "2.png": 4}


@pytest.mark.parametrize("path", [".", "../val", "deep/.."])
def test_labels_next_to_a_folder_are_found_for_any_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    write_images(tmp_path / "val", "1.png", "deep/2.png")
    (tmp_path / "labels.csv").write_text("file,label\nval/1.png,3\nval/deep/2.png,4\n")
    monkeypatch.chdir(tmp_path / "val")
    assert labels(Path(path)) == {"1.png": 3, "deep/2.png": 4}


def test_labels_csv_about_other_folders_is_ignored(tmp_path: Path) -> None:
    images = write_images(tmp_path / "val", "cat/1.png", "dog/1.png")
    (tmp_path / "labels.csv").write_text("file,label\ntrain/9.png,5\n")
    assert labels(images) == {"cat/1.png": 0, "dog/1.png": 1}


def test_given_label_file_overrides_all_others(tmp_path: Path) -> None:
    images = write_images(tmp_path / "val", "cat/1.png", "dog/1.png")
    (images / "labels.csv").write_text("file,label\ncat/1.png,8\n")
    (tmp_path / "mine").mkdir()
    label_file = tmp_path / "mine/truth.csv"
    label_file.write_text("label,file\n7,../val/cat/1.png\n")
    assert labels(images, label_file) == {"cat/1.png": 7, "dog/1.png": None}


def test_labels_are_found_through_links_to_folders(tmp_path: Path) -> None:
    write_images(tmp_path / "store", "1.png")
    (tmp_path / "val").symlink_to("store")
    (tmp_path / "labels.csv").write_text("file,label\nval/1.png,3\n")
    assert labels(tmp_path / "val") == {"1.png": 3}
    assert labels(tmp_path / "store") == {"1.png": 3}


def test_class_names_are_accepted_as_labels(tmp_path: Path) -> None:
    write_images(tmp_path, "1.png", "2.png")
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n\n")
    (tmp_path / "labels.csv").write_text("file,label\n1.png,dog\n2.png,1\n")
    assert labels(tmp_path) == {"1.png": 2, "2.png": 1}


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("cow", "is neither a number nor in a `classes.txt`"),
        ("crane", "is listed twice"),
        ("-1", "`-1`"),
        ("9" * 5000, "is neither a number"),
    ],
    ids=["unknown", "twice", "below zero", "long"],
)
def test_label_that_names_no_class_is_refused(tmp_path: Path, label: str, words: str) -> None:
    write_images(tmp_path, "1.png")
    (tmp_path / "classes.txt").write_text("crane\ncat\ncrane\n")
    (tmp_path / "labels.csv").write_text(f"file,label\n1.png,{label}\n")
    with pytest.raises(UsageError, match=rf"labels.csv`, line 2: .*{words}"):
        labels(tmp_path)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("1.png,0\ngone.png,1\nlost.png,1\n", "names 2 files that do not exist"),
        ("1.png,0\n./1.png,1\n", "`./1.png` has two labels"),
        ("1.png,0\na\0b/1.png,1\n", "line 3: no file is named"),
    ],
)
def test_label_file_with_missing_files_or_conflicting_rows_is_refused(
    tmp_path: Path, rows: str, words: str
) -> None:
    write_images(tmp_path, "1.png")
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    with pytest.raises(UsageError, match=words):
        labels(tmp_path)


def test_given_label_file_must_name_these_images(tmp_path: Path) -> None:
    write_images(tmp_path / "val", "1.png")
    (tmp_path / "labels.csv").write_text("file,label\n1.png,0\n")
    with pytest.raises(UsageError, match=r"no row of .* names an image"):
        labels(tmp_path / "val", tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("file,class\nval/1.png,0\n")
    with pytest.raises(UsageError, match="no column `label`"):
        labels(tmp_path / "val", tmp_path / "labels.csv")


def test_csv_list_brings_its_labels(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    (tmp_path / "list.csv").write_text("file,label\nb.png,2\na.png,\n")
    assert labels(tmp_path / "list.csv") == {"b.png": 2, "a.png": None}


def test_label_beyond_the_classes_of_the_model_is_refused(tmp_path: Path) -> None:
    write_numbered(tmp_path, 1)
    (tmp_path / "labels.csv").write_text("file,label\n000.png,10\n")
    open_for_test(tmp_path).check_classes(11)
    with pytest.raises(UsageError, match="label 10 is not a class of the model, which has 10"):
        open_for_test(tmp_path).check_classes(10)


def test_class_folders_of_a_model_with_more_classes_are_refused(tmp_path: Path) -> None:
    images = open_for_test(write_images(tmp_path, "cat/1.png", "dog/1.png"))
    images.check_classes(2)
    with pytest.raises(UsageError, match="2 class folders do not say which of the model's 1000"):
        images.check_classes(1000)
    (tmp_path / "classes.txt").write_text("ant\ncat\ndog\n")
    open_for_test(tmp_path).check_classes(1000)

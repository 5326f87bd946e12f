from pathlib import Path

import pytest

from qconvert.core.errors import UsageError
from qconvert.images.listing import attach_labels, list_images
from tests.images.image_folders import open_for_test, write_images, write_numbered


def labels(path: Path, file: Path | None = None) -> dict[str, int | None]:
    return {item.name: item.label for item in attach_labels(list_images(path), file).items}


def test_class_folders_are_numbered_in_sorted_order(tmp_path: Path) -> None:
    write_images(tmp_path, "dog/1.png", "cat/1.png", "cat/deep/2.png")
    (tmp_path / "cow").mkdir()  # no image here, but a class of the model
    assert labels(tmp_path) == {"cat/1.png": 0, "cat/deep/2.png": 0, "dog/1.png": 2}
    assert attach_labels(list_images(tmp_path)).classes.names == ("cat", "cow", "dog")


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


@pytest.mark.parametrize("names", [("a.png", "cat/1.png", "dog/1.png"), ("images/1.png",)])
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

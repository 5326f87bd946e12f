from pathlib import Path

import pytest

from qconvert.core.errors import UsageError
from qconvert.images.labels import attach_labels, check_classes, require_labels
from qconvert.images.listing import list_images
from tests.images.drawn import folder, numbered, opened


def labels(path: Path, file: Path | None = None) -> dict[str, int | None]:
    return {item.name: item.label for item in attach_labels(list_images(path), file).items}


def test_class_folders_are_numbered_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder(tmp_path, "dog/1.png", "cat/1.png", "cat/deep/2.png")
    (tmp_path / "cow").mkdir()  # no picture of it here, but a class of the model
    assert labels(tmp_path) == {"cat/1.png": 0, "cat/deep/2.png": 0, "dog/1.png": 2}
    assert attach_labels(list_images(tmp_path)).classes.names == ("cat", "cow", "dog")


@pytest.mark.parametrize("place", [".", ".."])
def test_the_order_in_classes_txt_counts_before_that_of_names(tmp_path: Path, place: str) -> None:
    images = folder(tmp_path / "val", "dog/1.png", "cat/1.png")
    (images / place / "classes.txt").write_text("dog\ncow\ncat\n")
    assert labels(images) == {"cat/1.png": 2, "dog/1.png": 0}


def test_folders_that_are_no_classes_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, "dog/1.png", "cat/1.png")
    (tmp_path / "classes.txt").write_text("dog\n")
    with pytest.raises(UsageError, match="are not in the `classes") as refused:
        labels(tmp_path)
    assert refused.value.details == ("`cat`",)


@pytest.mark.parametrize("names", [("a.png", "cat/1.png", "dog/1.png"), ("images/1.png",)])
def test_a_folder_without_classes_gives_no_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert set(labels(folder(tmp_path, *names)).values()) == {None}


@pytest.mark.parametrize(
    ("place", "rows"),
    [(".", "1.png,3\n2.png,4\n"), ("..", "val/1.png,3\nval/2.png,4\ntrain/9.png,5\n")],
)
def test_labels_csv_is_found_in_the_folder_or_next_to_it(
    tmp_path: Path, place: str, rows: str
) -> None:
    images = folder(tmp_path / "val", "1.png", "2.png")
    (images / place / "labels.csv").write_text("file,label\n" + rows)
    assert labels(images) == {"1.png": 3, "2.png": 4}


@pytest.mark.parametrize("given", [".", "../val", "deep/.."])
def test_labels_next_to_a_folder_are_found_however_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    folder(tmp_path / "val", "1.png", "deep/2.png")
    (tmp_path / "labels.csv").write_text("file,label\nval/1.png,3\nval/deep/2.png,4\n")
    monkeypatch.chdir(tmp_path / "val")
    assert labels(Path(given)) == {"1.png": 3, "deep/2.png": 4}


def test_a_labels_csv_about_other_folders_says_nothing(tmp_path: Path) -> None:
    images = folder(tmp_path / "val", "cat/1.png", "dog/1.png")
    (tmp_path / "labels.csv").write_text("file,label\ntrain/9.png,5\n")
    assert labels(images) == {"cat/1.png": 0, "dog/1.png": 1}


def test_a_given_file_counts_before_all_others_and_is_relative_to_itself(tmp_path: Path) -> None:
    images = folder(tmp_path / "val", "cat/1.png", "dog/1.png")
    (images / "labels.csv").write_text("file,label\ncat/1.png,8\n")
    (tmp_path / "mine").mkdir()
    given = tmp_path / "mine/truth.csv"
    given.write_text("label,file\n7,../val/cat/1.png\n")
    assert labels(images, given) == {"cat/1.png": 7, "dog/1.png": None}


def test_labels_are_found_through_links_to_folders(tmp_path: Path) -> None:
    folder(tmp_path / "store", "1.png")
    (tmp_path / "val").symlink_to("store")
    (tmp_path / "labels.csv").write_text("file,label\nval/1.png,3\n")
    assert labels(tmp_path / "val") == {"1.png": 3}
    assert labels(tmp_path / "store") == {"1.png": 3}


def test_names_of_classes_are_labels_too(tmp_path: Path) -> None:
    folder(tmp_path, "1.png", "2.png")
    (tmp_path / "classes.txt").write_text("cat\n\ndog\n\n")
    (tmp_path / "labels.csv").write_text("file,label\n1.png,dog\n2.png,1\n")
    assert labels(tmp_path) == {"1.png": 2, "2.png": 1}


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("cow", "is no number and not in a `classes.txt`"),
        ("crane", "stands twice"),
        ("-1", "`-1`"),
        ("9" * 5000, "is no number"),
    ],
    ids=["unknown", "twice", "below zero", "long"],
)
def test_a_label_that_names_no_class_is_refused(tmp_path: Path, label: str, words: str) -> None:
    folder(tmp_path, "1.png")
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
def test_a_wrong_label_file_is_refused(tmp_path: Path, rows: str, words: str) -> None:
    folder(tmp_path, "1.png")
    (tmp_path / "labels.csv").write_text("file,label\n" + rows)
    with pytest.raises(UsageError, match=words):
        labels(tmp_path)


def test_a_given_file_must_be_about_these_pictures(tmp_path: Path) -> None:
    folder(tmp_path / "val", "1.png")
    (tmp_path / "labels.csv").write_text("file,label\n1.png,0\n")
    with pytest.raises(UsageError, match=r"no row of .* names a picture"):
        labels(tmp_path / "val", tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("file,class\nval/1.png,0\n")
    with pytest.raises(UsageError, match="no column `label`"):
        labels(tmp_path / "val", tmp_path / "labels.csv")


def test_a_csv_list_brings_its_labels(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", "b.png")
    (tmp_path / "list.csv").write_text("file,label\nb.png,2\na.png,\n")
    assert labels(tmp_path / "list.csv") == {"b.png": 2, "a.png": None}


def test_images_without_labels_are_named_where_labels_are_needed(tmp_path: Path) -> None:
    numbered(tmp_path, 3)
    (tmp_path / "labels.csv").write_text("file,label\n001.png,5\n")
    with pytest.raises(UsageError, match="2 of 3 images have no label") as refused:
        require_labels(opened(tmp_path))
    assert refused.value.details == ("`000.png`", "`002.png`")
    assert require_labels(opened(tmp_path).between(1, 2)) == (5,)


def test_labels_must_be_classes_of_the_model(tmp_path: Path) -> None:
    numbered(tmp_path, 1)
    (tmp_path / "labels.csv").write_text("file,label\n000.png,10\n")
    check_classes(opened(tmp_path), 11)
    with pytest.raises(UsageError, match="label 10 is no class of the model, which has 10"):
        check_classes(opened(tmp_path), 10)


def test_folders_alone_cannot_say_which_classes_of_more_they_are(tmp_path: Path) -> None:
    images = opened(folder(tmp_path, "cat/1.png", "dog/1.png"))
    check_classes(images, 2)
    with pytest.raises(UsageError, match="2 class folders do not say which of the model's 1000"):
        check_classes(images, 1000)
    (tmp_path / "classes.txt").write_text("ant\ncat\ndog\n")
    check_classes(opened(tmp_path), 1000)

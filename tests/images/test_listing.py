import inspect
import sys
from pathlib import Path

import pytest

from qconvert.core.errors import QConvertError, UsageError
from qconvert.images.listing import list_images
from tests.images.drawn import folder, noise


def names(path: Path) -> list[str]:
    return [item.name for item in list_images(path).items]


def test_a_folder_is_read_at_any_depth_in_the_order_of_names(tmp_path: Path) -> None:
    folder(tmp_path, "b/2.png", "a.JPEG", "b/10.webp", "c/d/e.tif", "b.bmp")
    assert names(tmp_path) == ["a.JPEG", "b.bmp", "b/10.webp", "b/2.png", "c/d/e.tif"]


def test_hidden_files_and_other_files_are_left_out(tmp_path: Path) -> None:
    folder(tmp_path, "a.png", ".b.png", ".hidden/c.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert names(tmp_path) == ["a.png"]


def test_links_count_but_a_link_to_a_folder_around_it_does_not(tmp_path: Path) -> None:
    folder(tmp_path / "images", "a.png")
    folder(tmp_path / "elsewhere", "b.png")
    (tmp_path / "images/link.png").symlink_to("a.png")
    (tmp_path / "images/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/round").symlink_to(tmp_path / "images")
    assert names(tmp_path / "images") == ["a.png", "link.png", "more/b.png"]


def test_a_list_keeps_its_order_and_is_relative_to_itself(tmp_path: Path) -> None:
    folder(tmp_path / "data", "a.png", "b.png")
    list_file = tmp_path / "list.txt"
    list_file.write_text(f"\ufeffdata/b.png\n\n  data/a.png  \ndata/b.png\n{tmp_path}/data/a.png\n")
    assert names(list_file) == ["data/b.png", "data/a.png", "data/b.png", f"{tmp_path}/data/a.png"]
    assert all(item.file.is_file() for item in list_images(list_file).items)


def test_a_csv_is_a_list_too(tmp_path: Path) -> None:
    folder(tmp_path, "a b.png")
    (tmp_path / "list.csv").write_text('file\n"a b.png"\n')
    assert names(tmp_path / "list.csv") == ["a b.png"]


def test_one_picture_is_a_list_of_one(tmp_path: Path) -> None:
    noise(4, 4).save(tmp_path / "one.png")
    assert names(tmp_path / "one.png") == ["one.png"]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="`nowhere` does not exist"):
        list_images(Path("nowhere"))
    (tmp_path / "list.txt").write_text("".join(f"{number}.png\n" for number in range(8)))
    with pytest.raises(UsageError, match="names 8 files that do not exist") as refused:
        list_images(tmp_path / "list.txt")
    assert refused.value.details[0] == f"`{tmp_path}/0.png`"
    assert refused.value.details[-1] == "and 3 more"


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(QConvertError, match="holds no pictures"):
        list_images(tmp_path)
    (tmp_path / "list.txt").write_text("\n")
    with pytest.raises(QConvertError, match="names no pictures"):
        list_images(tmp_path / "list.txt")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", b"path,label\nx.png,1\n", "no column `file`; its columns: path, label"),
        ("b.csv", b"", "no column `file`; its columns: none"),
        ("c.csv", b"file,label\nx.png\n", "line 2: 1 cells under 2 columns"),
        ("d.csv", b"file,label\n,3\n", "line 2: no file is named"),
        ("e.csv", b"file,label\n\xff\xfe,3\n", "cannot be read as CSV"),
        ("f.bin", b"\xff\xfe\x00", "is no list of pictures"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, name: str, text: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(text)
    with pytest.raises(UsageError, match=words):
        list_images(tmp_path / name)


def test_a_link_that_leads_to_itself_is_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("a.png")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "b.png").touch()
    assert [item.name for item in list_images(tmp_path).items] == ["a.png", "b.png"]


def test_names_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    folder(tmp_path, "a.png")
    (tmp_path / "\udcfc.png").write_bytes((tmp_path / "a.png").read_bytes())
    with pytest.raises(QConvertError, match="has 1 pictures whose names are not UTF-8"):
        list_images(tmp_path)


def test_folders_in_folders_are_walked_however_deep(tmp_path: Path) -> None:
    folder(tmp_path, "/".join("a" * 200) + "/a.png")
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 100)
    try:
        found = names(tmp_path)
    finally:
        sys.setrecursionlimit(before)
    assert found == ["a/" * 200 + "a.png"]

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.images import ImageChoice, open_images
from qconvert.images.image_files import upright_size
from qconvert.images.listing import Images, choose_subset, list_images
from qconvert.images.preprocess import PRESETS
from qconvert.images.truth import TrueBoxes, TrueMask, truth_digest
from qconvert.images.truth_files import TruthSet, find_truth
from qconvert.images.truth_masks import read_mask
from qconvert.images.truth_yolo import read_yaml_names
from tests.images.image_folders import open_for_test
from tests.images.truth_folders import (
    coco_content,
    voc_text,
    write_json,
    write_mask,
    write_pictures,
    write_text,
)


def truth_of(path: Path, file: Path | None = None) -> TruthSet:
    truth = find_truth(path, list_images(path), file)
    assert truth is not None
    return truth


def boxes_of(truth: TruthSet, index: int = 0) -> TrueBoxes:
    boxes = truth.truths[index]
    assert isinstance(boxes, TrueBoxes)
    return boxes


def refusal(path: Path, file: Path | None = None) -> UsageError:
    with pytest.raises(UsageError) as error:
        find_truth(path, list_images(path), file)
    assert error.value.hint
    return error.value


def test_pictures_without_labels_have_no_truth(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "a.png")
    assert find_truth(tmp_path / "images", ["a.png"]) is None
    write_text(tmp_path / "labels.csv", "file,label\nimages/a.png,1\n")
    assert find_truth(tmp_path / "images", ["a.png"], tmp_path / "labels.csv") is None


@pytest.mark.parametrize(
    "place",
    [
        "pictures/annotations.json",
        "annotations.json",
        "pictures/_annotations.coco.json",
        "instances_val.json",
        "annotations/instances_pictures.json",
    ],
)
def test_coco_file_is_read_from_customary_places(tmp_path: Path, place: str) -> None:
    write_pictures(tmp_path / "pictures", "a.png", "b.png", "sub/c.png")
    content = coco_content({"a.png": [(7, [1, 2, 10, 20]), (3, [0, 0, 4, 5])], "c.png": []})
    content["annotations"][1] |= {"iscrowd": 1, "area": 12.5}
    write_json(tmp_path / place, content)
    truth = truth_of(tmp_path / "pictures")
    assert (truth.kind, truth.classes.names) == ("boxes", ("cat", "dog", "bird"))
    boxes = boxes_of(truth)
    assert boxes.boxes.tolist() == [[1, 2, 11, 22], [0, 0, 4, 5]]
    assert boxes.boxes.dtype == boxes.area.dtype == np.float32
    assert boxes.classes.tolist() == [1, 0]
    assert boxes.crowd.tolist() == [False, True]
    assert boxes.area.tolist() == [200, 12.5]
    assert truth.truths[1] is None  # not listed
    assert len(boxes_of(truth, 2).boxes) == 0  # listed, with nothing in it
    assert "COCO" in truth.notes[0]
    assert "2 objects in 2 of 3 pictures" in truth.notes[0]
    assert "categories in order of their ids" in truth.notes[0]


def test_coco_categories_follow_a_list_of_classes(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    write_text(tmp_path / "classes.txt", "bird\ndog\ncat\n")
    write_json(tmp_path / "annotations.json", coco_content({"a.png": [(3, [1, 1, 2, 2])]}))
    truth = truth_of(tmp_path)
    assert boxes_of(truth).classes.tolist() == [2]
    write_text(tmp_path / "classes.txt", "bird\ndog\n")
    assert refusal(tmp_path).details == ("`cat`",)


def test_other_json_in_the_folder_is_left_alone(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    file = write_json(tmp_path / "annotations.json", {"key": "value"})
    assert find_truth(tmp_path, ["a.png"]) is None
    assert "has no list `images`" in str(refusal(tmp_path, file))


def test_several_coco_files_are_ambiguous(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    for name in ("instances_a.json", "instances_b.json"):
        write_json(tmp_path / name, coco_content({"a.png": []}))
    assert refusal(tmp_path).details == ("`instances_a.json`", "`instances_b.json`")
    assert truth_of(tmp_path, tmp_path / "instances_a.json").truths[0] is not None


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["annotations"][0].update(category_id=8), "category_id 8"),
        (lambda c: c["annotations"][0].update(image_id=8), "image_id 8"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "`bbox` is not"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "4"]), "`bbox` is not"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "`bbox` is not"),
        (lambda c: c["annotations"][0].pop("bbox"), "`bbox` is not"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 5]), "has no area"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, -3, 5]), "has no area"),
        (lambda c: c["annotations"][0].update(bbox=[30, 2, 15, 5]), "5 px outside the 40×30"),
        (lambda c: c["annotations"][0].update(bbox=[70, 2, 15, 5]), "outside the 40×30"),
        (lambda c: c["annotations"].append([]), "`annotations[1]` is not an object"),
        (lambda c: c["annotations"][0].pop("image_id"), "no `image_id`"),
        (lambda c: c["images"][0].update(width=41), "`a.png` is 40×30, not 41×30"),
        (lambda c: c["images"][0].update(file_name="b.png"), "`b.png`"),
        (lambda c: c["images"].append({"id": 2, "file_name": "b.png"}), "`b.png`"),
        (lambda c: c["images"].append({"id": 2, "file_name": "a.png"}), "`a.png`"),
        (lambda c: c["images"].append({"id": 1, "file_name": "b.png"}), "id 1"),
        (lambda c: c["images"].append({"id": 2, "file_name": 3}), "no `file_name`"),
        (lambda c: c["categories"].append({"id": 3, "name": "cat"}), "id 3"),
    ],
)
def test_invalid_coco_files_are_refused(tmp_path: Path, change: Change, words: str) -> None:
    write_pictures(tmp_path / "pictures", "a.png")
    content = coco_content({"a.png": [(3, [1, 2, 3, 4])]})
    change(content)
    file = write_json(tmp_path / "labels.json", content)
    error = refusal(tmp_path / "pictures", file)
    assert words in " ".join(error.details), error.details


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\ufffe", "null", "[]", '{"images": 3}'])
def test_files_that_are_not_coco_are_refused(tmp_path: Path, text: str) -> None:
    write_pictures(tmp_path, "a.png")
    refusal(tmp_path, write_text(tmp_path / "labels.json", text))


def test_list_of_pictures_may_leave_out_some_that_coco_lists(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "a.png", "b.png")
    content = coco_content({"a.png": [], "b.png": [], "missing.png": []})
    file = write_json(tmp_path / "labels.json", content)
    listing = write_text(tmp_path / "list.txt", "images/b.png\nimages/a.png\nimages/b.png\n")
    assert [truth is not None for truth in truth_of(listing, file).truths] == [True] * 3
    error = refusal(tmp_path / "images", file)
    assert error.details == ("`missing.png`",)


def test_coco_name_of_two_pictures_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a/1.png", "b/1.png")
    file = write_json(tmp_path / "labels.json", coco_content({"x/1.png": []}))
    assert refusal(tmp_path, file).details == ("`a/1.png`", "`b/1.png`")
    write_json(file, coco_content({"b/1.png": []}))
    assert truth_of(tmp_path, file).truths[0] is None


def test_boxes_that_stick_out_a_little_are_clipped(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    content = coco_content({"a.png": [(3, [-0.9, 5, 41.8, 10])]})
    truth = truth_of(tmp_path, write_json(tmp_path / "labels.json", content))
    assert boxes_of(truth).boxes.tolist() == [[0, 5, 40, 15]]
    assert len(truth.notes) == 1


def test_few_boxes_outside_their_pictures_are_a_note(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    good: list[tuple[int, list[float]]] = [(3, [1, 1, 5, 5])] * 300
    content = coco_content({"a.png": [*good, (3, [35, 2, 10, 5]), (3, [50, 2, 10, 5])]})
    truth = truth_of(tmp_path, write_json(tmp_path / "labels.json", content))
    assert len(boxes_of(truth).boxes) == 301
    assert boxes_of(truth).boxes[-1].tolist() == [35, 2, 40, 7]
    assert truth.notes[1].startswith("2 of 302 boxes of `labels.json` lie outside their pictures")
    assert "`annotations[300]`" in truth.notes[1]


@pytest.mark.parametrize("layout", ["images", "images/val", "flat", "inside", "dataset"])
def test_yolo_labels_are_read_from_customary_places(tmp_path: Path, layout: str) -> None:
    pictures, labels = {
        "images": ("d/images", "d/labels"),
        "images/val": ("d/images/val", "d/labels/val"),
        "flat": ("d/pictures", "d/labels"),
        "inside": ("d", "d/labels"),
        "dataset": ("d/images", "d/labels"),
    }[layout]
    write_pictures(tmp_path / pictures, "a.png", "sub/b.c.png", "none.png")
    write_text(tmp_path / labels / "a.txt", "1 0.5 0.5 0.5 0.2\n\n0 .25 .5 .5 1\r\n")
    write_text(tmp_path / labels / "sub/b.c.txt", "")
    truth = truth_of(tmp_path / ("d" if layout == "dataset" else pictures))
    a, none, b = truth.truths
    assert isinstance(a, TrueBoxes)
    np.testing.assert_allclose(a.boxes, [[10, 12, 30, 18], [0, 0, 20, 30]], rtol=1e-6)
    assert a.classes.tolist() == [1, 0]
    assert none is None
    assert isinstance(b, TrueBoxes)
    assert len(b.boxes) == 0
    assert truth.classes.names == ()
    assert "YOLO" in truth.notes[0]
    assert "2 of 3 pictures, the others are unlabelled" in truth.notes[0]
    assert "numbers without names" in truth.notes[0]


def test_yolo_outline_becomes_the_box_around_it(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    write_text(tmp_path / "labels/a.txt", "0 0.25 0.5 0.75 0.1 0.5 0.9\n")
    truth = truth_of(tmp_path)
    np.testing.assert_allclose(boxes_of(truth).boxes, [[10, 3, 30, 27]], rtol=1e-6)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0 .5 .5 .1", "4 numbers"),
        ("0 .5 .5 .1 .1 .9", "6 numbers"),
        ("cat .5 .5 .1 .1", "is not a row of numbers"),
        ("0.5 .5 .5 .1 .1", "is not the number of a class"),
        ("-1 .5 .5 .1 .1", "is not the number of a class"),
        ("2 .5 .5 .1 .1", "2 is not one of the 2 classes"),
        ("0 nan .5 .1 .1", "no shares of a picture"),
        ("0 .5 .5 0 .1", "has no area"),
        ("0 20 15 4 4", "px outside the 40×30 picture"),
    ],
)
def test_invalid_yolo_lines_are_named(tmp_path: Path, line: str, words: str) -> None:
    write_pictures(tmp_path / "images", "a.png")
    write_text(tmp_path / "labels/a.txt", f"0 .5 .5 .5 .5\n{line}\n")
    write_text(tmp_path / "data.yaml", "nc: 2\nnames: [cat, dog]\n")
    error = refusal(tmp_path / "images")
    assert error.details[0].startswith("`a.txt`, line 2: ")
    assert words in error.details[0]


def test_label_files_without_a_picture_are_refused_for_a_folder(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "a.png")
    for name in ("a", "b", "c"):
        write_text(tmp_path / f"labels/{name}.txt", "")
    write_text(tmp_path / "labels/classes.txt", "cat\n")
    assert len(refusal(tmp_path / "images").details) == 2
    listing = write_text(tmp_path / "list.txt", "images/a.png\n")
    assert truth_of(listing).classes.names == ("cat",)


def test_label_file_of_two_pictures_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "a.png", "a.jpg")
    write_text(tmp_path / "labels/a.txt", "")
    assert "more than one picture" in str(refusal(tmp_path / "images"))


@pytest.mark.parametrize(
    "text",
    [
        "names: [cat, 'big dog', \"a, b\"]\n",
        "train: x\nnames:\n  - cat\n  - big dog # comment\n  - 'a, b'\nnc: 3\n",
        "names:\n- cat\n- big dog\n- a, b\nnc: 3\n",
        "names:\n  0: cat\n  1: 'big dog'\n\n  # comment\n  2: a, b\nnc: 3\n",
        "names: {0: cat, 1: big dog, 2: 'a, b'}\n",
        "names: [cat,\n  big dog,  # comment\n  'a, b',\n]\n",
    ],
)
def test_class_names_of_yaml_files(tmp_path: Path, text: str) -> None:
    file = write_text(tmp_path / "data.yaml", text)
    assert read_yaml_names(file).names == ("cat", "big dog", "a, b")


@pytest.mark.parametrize(
    "text", ["names: cat\n", "names: [cat, dog\n", "names:\n  1: cat\n", "names:\n  cat\n"]
)
def test_invalid_class_names_of_yaml_files_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError):
        read_yaml_names(write_text(tmp_path / "data.yaml", text))


def test_yaml_without_names_has_no_classes(tmp_path: Path) -> None:
    assert read_yaml_names(write_text(tmp_path / "data.yaml", "nc: 3\n")).names == ()


def test_voc_annotations_count_from_one(tmp_path: Path) -> None:
    write_pictures(tmp_path / "JPEGImages", "a.png", "b.png")
    size = "<size><width>40</width><height>30</height><depth>3</depth></size>"
    objects = ("dog", (1, 1, 40, 30), 0), ("cat", (11, 6, 20, 10), 1)
    write_text(tmp_path / "Annotations/a.xml", voc_text(*objects, size=size))
    truth = truth_of(tmp_path / "JPEGImages")
    boxes = boxes_of(truth)
    assert boxes.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 10]]
    assert boxes.classes.tolist() == [1, 0]
    assert boxes.crowd.tolist() == [False, True]
    assert truth.classes.names == ("cat", "dog")
    assert truth.classes.from_folders
    assert truth.truths[1] is None
    write_text(tmp_path / "classes.txt", "dog\n")
    assert refusal(tmp_path / "JPEGImages").details == ("`cat`",)


BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "a document type or entity is declared"),
        ("<annotation>", "no element found"),
        ("<other/>", "the first element is `other`"),
        (voc_text(("", (1, 1, 4, 4), 0)), "object 1 has no `name`"),
        ("<annotation><object><name>a</name></object></annotation>", "`bndbox/xmin`"),
        (voc_text(("a", (1, 1, float("nan"), 4), 0)), "`bndbox/xmax`"),
        (voc_text(("a", (9, 1, 4, 4), 0)), "has no area"),
        (voc_text(("a", (1, 1, 44, 4), 0)), "px outside the 40×30"),
        (voc_text(size="<size><width>41</width><height>30</height></size>"), "is 40×30, not 41×30"),
    ],
)
def test_invalid_voc_files_are_named(tmp_path: Path, text: str, words: str) -> None:
    write_pictures(tmp_path / "JPEGImages", "a.png")
    write_text(tmp_path / "Annotations/a.xml", text)
    assert words in refusal(tmp_path / "JPEGImages").details[0]


def test_entities_in_another_encoding_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "JPEGImages", "a.png")
    write_text(tmp_path / "Annotations/a.xml", "").write_bytes(BOMB.encode("utf-16"))
    assert "`a.xml`" in refusal(tmp_path / "JPEGImages").details[0]


def test_masks_are_read_lazily(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "a.jpg", "b.jpg")
    pixels = np.zeros((30, 40), np.uint8)
    pixels[:10], pixels[-1] = 2, 255
    file = write_mask(tmp_path / "masks/a.png", pixels)
    truth = truth_of(tmp_path / "images")
    mask = truth.truths[0]
    assert (truth.kind, mask, truth.truths[1]) == ("masks", TrueMask(file), None)
    assert truth.sampling_labels() == (None, None)
    assert isinstance(mask, TrueMask)
    np.testing.assert_array_equal(read_mask(mask, (40, 30), classes=3), pixels)
    with pytest.raises(QConvertError, match="400 pixels of classes that are not among the 2: 2"):
        read_mask(mask, (40, 30), classes=2)
    with pytest.raises(QConvertError, match="is 40×30, its picture 41×30"):
        read_mask(mask, (41, 30))


def test_palette_mask_is_its_numbers(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8)).convert("P")
    image.putpalette([9] * 768)
    image.putdata([0, 1, 2, 255])
    image.save(tmp_path / "mask.png")
    assert read_mask(TrueMask(tmp_path / "mask.png")).tolist() == [[0, 1], [2, 255]]


def test_masks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "a.jpg", "b.jpg", "c.jpg")
    write_mask(tmp_path / "masks/a.png", np.zeros((30, 41)))
    write_mask(tmp_path / "masks/b.png", np.zeros((30, 40, 3)))
    write_text(tmp_path / "masks/c.png", "no image")
    assert refusal(tmp_path / "images").details == (
        "`a.png` is 41×30, its picture 40×30",
        "`b.png` has the mode RGB",
        "`c.png` cannot be read: not an image",
    )
    with pytest.raises(QConvertError, match="is not a mask"):
        read_mask(TrueMask(tmp_path / "masks/c.png"))


def test_masks_of_only_0_and_255_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "a.jpg")
    pixels = np.zeros((30, 40), np.uint8)
    pixels[:10] = 255
    write_mask(tmp_path / "masks/a.png", pixels)
    assert "hold only 0 and 255" in str(refusal(tmp_path / "images"))


def test_masks_among_the_pictures_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "a.png")
    write_mask(tmp_path / "masks/a.png", np.zeros((30, 40)))
    assert refusal(tmp_path).details == ("`masks/a.png`",)


@pytest.mark.parametrize("suffix", [".txt", ".xml", ".png"])
def test_named_folder_is_read_in_the_format_of_its_files(tmp_path: Path, suffix: str) -> None:
    write_pictures(tmp_path / "p", "sub/a.jpg")
    file = tmp_path / "marks" / f"a{suffix}"
    if suffix == ".png":
        write_mask(file, np.zeros((30, 40)))
    else:
        write_text(file, "0 .5 .5 .1 .1" if suffix == ".txt" else voc_text())
    assert truth_of(tmp_path / "p", tmp_path / "marks").truths[0] is not None


def test_named_labels_that_say_nothing_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "p", "a.jpg")
    (tmp_path / "empty").mkdir()
    assert "has no file for any picture" in str(refusal(tmp_path / "p", tmp_path / "empty"))
    assert "does not exist" in str(refusal(tmp_path / "p", tmp_path / "nowhere.json"))
    file = write_text(tmp_path / "labels.xlsx", "")
    assert "is not a file of labels" in str(refusal(tmp_path / "p", file))
    file = write_json(tmp_path / "labels.json", coco_content({"b.jpg": []}))
    assert "names no picture" in str(refusal(tmp_path / "p", file))
    write_json(tmp_path / "annotations.json", json.loads(file.read_text()))
    assert find_truth(tmp_path / "p", ["a.jpg"]) is None


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_are_in_pixels_of_the_upright_picture(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    file = tmp_path / "images" / f"a.{suffix}"
    write_pictures(tmp_path / "images", file.name)
    Image.new("RGB", (40, 30)).save(file, exif=exif)
    assert upright_size(file) == ((30, 40) if orientation in (6, 8) else (40, 30))


def test_truth_of_a_broken_picture_is_left_out_where_its_size_is_needed(tmp_path: Path) -> None:
    write_pictures(tmp_path / "images", "a.png", "b.png")
    (tmp_path / "images/b.png").write_bytes(b"broken")
    for name in "ab":
        write_text(tmp_path / f"labels/{name}.txt", "0 .5 .5 .5 .5\n")
    assert truth_of(tmp_path / "images").truths[1] is None


def test_sampling_label_is_the_rarest_class(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(6)]
    write_pictures(tmp_path, *names)
    common, rare = (3, [1.0, 1.0, 5.0, 5.0]), (9, [1.0, 1.0, 5.0, 5.0])
    content = coco_content({name: [common] for name in names[:4]} | {names[4]: [common, rare]})
    content["images"].append({"id": 9, "file_name": names[5]})
    truth = truth_of(tmp_path, write_json(tmp_path / "labels.json", content))
    assert truth.sampling_labels() == (0, 0, 0, 0, 2, 3)
    assert set(choose_subset(truth.sampling_labels(), 3, seed=1)) >= {4, 5}


def test_truth_of_other_classes_than_the_model_has_is_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    content = coco_content({"a.png": [(9, [1, 1, 5, 5])]})
    images = open_labelled(tmp_path, write_json(tmp_path / "labels.json", content))
    images.check_classes(3)
    images.check_classes(80)
    with pytest.raises(
        UsageError, match=r"label 2 \(`bird`\) is not a class of the model, which has"
    ):
        images.check_classes(2)
    # Names of VOC have no order of their own.
    write_text(tmp_path / "Annotations/a.xml", voc_text(("cat", (1, 1, 5, 5), 0)))
    images = open_labelled(tmp_path, tmp_path / "Annotations")
    images.check_classes(1)
    with pytest.raises(UsageError, match="1 names of classes do not say which of the model's 20"):
        images.check_classes(20)


def open_labelled(folder: Path, labels: Path) -> Images:
    choice = ImageChoice(folder, labels=labels)
    specs = [TensorSpec("image", np.dtype(np.float32), ("N", 3, 8, 8))]
    return open_images(choice, specs, PRESETS["unit"])


def test_digest_changes_with_the_truth(tmp_path: Path) -> None:
    box = np.array([[1, 2, 3, 4]], np.float32)
    truths = [
        TrueBoxes(box, np.array([label], np.int32), np.array([crowd]), np.array([4], np.float32))
        for label in (0, 1)
        for crowd in (False, True)
    ]
    file = write_mask(tmp_path / "a.png", np.zeros((3, 4)))
    digests = [truth_digest(truth) for truth in [*truths, None, TrueMask(file)]]
    digests.append(truth_digest(TrueMask(write_mask(file, np.ones((3, 4))))))
    digests.append(truth_digest(TrueMask(tmp_path / "missing.png")))
    assert len(set(digests)) == len(digests)
    assert truth_digest(truths[0]) == digests[0]


def test_digest_of_images_covers_their_truth(tmp_path: Path) -> None:
    images = open_for_test(write_pictures(tmp_path, "a.png", "b.png"))
    file = write_mask(tmp_path / "mask.png", np.zeros((3, 4)))
    entries = tuple(replace(entry, truth=TrueMask(file)) for entry in images.entries)
    labelled = replace(images, entries=entries)
    assert labelled.digest() != images.digest()
    assert labelled.manifest() == images.manifest()
    assert labelled.select([1]).entries[0].truth == TrueMask(file)


def test_arrays_of_different_lengths_are_no_boxes() -> None:
    one, two = np.zeros(1, np.int32), np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="2 boxes, but an array"):
        TrueBoxes(two, one, np.zeros(2, np.bool_), np.zeros(2, np.float32))


def test_coco_file_of_a_neighbour_is_not_that_of_the_folder(tmp_path: Path) -> None:
    for folder in ("train", "val", "test"):
        write_pictures(tmp_path / folder, "a.png")
    content = coco_content({"a.png": [(3, [1, 1, 2, 2])]})
    write_json(tmp_path / "instances_train.json", content)
    assert find_truth(tmp_path / "val", ["a.png"]) is None
    assert "1 object in 1 picture;" in truth_of(tmp_path / "train").notes[0]
    # It is of another split, but the user says so.
    assert truth_of(tmp_path / "val", tmp_path / "instances_train.json").kind == "boxes"
    write_json(tmp_path / "instances_default.json", content)
    assert truth_of(tmp_path / "val").source.endswith("instances_default.json")
    assert truth_of(tmp_path / "train").source.endswith("instances_train.json")

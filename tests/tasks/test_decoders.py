import contextlib
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import Tensors
from qconvert.images.frames import Frame
from qconvert.tasks.decoders import BOX_LAYOUTS, DECODERS, MASK_LAYOUTS, decode, find_decoder
from qconvert.tasks.heads import Head, Sample
from qconvert.tasks.predictions import ClassMap, Detections
from tests.docs.commands import ROOT
from tests.tasks.encoded_heads import CLASSES, HEADS, SIZE, Objects, batch_of

FULL = Frame(*SIZE, *SIZE)


def detections(outputs: Tensors, head: Head, batch: list[Objects]) -> list[Detections]:
    results = decode(outputs, head, [objects.frame for objects in batch])
    assert all(isinstance(result, Detections) for result in results)
    return [result for result in results if isinstance(result, Detections)]


# torchvision's lists are those of one picture.
BATCHES = [(family, 1) for family in HEADS]
BATCHES += [(family, 3) for family in HEADS if "torchvision" not in family]


@pytest.mark.parametrize(("family", "pictures"), BATCHES)
def test_objects_come_back_from_every_head(family: str, pictures: int) -> None:
    name, layout, encode = HEADS[family]
    batch = batch_of(pictures)
    outputs = encode(batch)
    decoder, head = find_decoder(Sample(outputs, SIZE))
    assert (decoder.name, head.decoder, head.layout) == (name, name, layout), head.text
    results = detections(outputs, replace(head, threshold=0.1), batch)
    for objects, result in zip(batch, results, strict=True):
        assert result.boxes == pytest.approx(objects.boxes, abs=1e-3)
        assert result.scores == pytest.approx(objects.scores, abs=1e-5)
        classes = objects.classes % (head.classes or CLASSES)
        assert result.classes.tolist() == classes.tolist()


@pytest.mark.parametrize("family", [name for name, head in HEADS.items() if head[0] != "boxes"])
def test_number_of_classes_is_that_of_the_head(family: str) -> None:
    outputs = HEADS[family][2](batch_of(3))
    _, head = find_decoder(Sample(outputs, SIZE))
    expected = {"CenterFace": 1, "v10": None, "v26, masks": None}
    assert head.classes == expected.get(family, CLASSES)


@pytest.mark.parametrize("family", HEADS)
def test_head_of_the_first_batch_reads_a_batch_without_objects(family: str) -> None:
    _, _, encode = HEADS[family]
    _, head = find_decoder(Sample(encode(batch_of(1)), SIZE))
    batch = batch_of(1, counts=(0, 0, 0))
    assert len(detections(encode(batch), head, batch)[0]) == 0


@pytest.mark.parametrize("family", HEADS)
def test_values_that_are_not_finite_are_dropped_and_the_rest_stays(family: str) -> None:
    _, _, encode = HEADS[family]
    batch = batch_of(1)
    outputs = encode(batch)
    _, head = find_decoder(Sample(outputs, SIZE))
    everything = {
        name: np.full_like(array, np.nan) if array.dtype.kind == "f" else array
        for name, array in outputs.items()
    }
    result = detections(everything, head, batch)[0]
    assert len(result) == 0
    assert result.dropped > 0 or head.layout == "indexed_rows"


@pytest.mark.parametrize("family", HEADS)
def test_head_comes_back_from_json_and_says_what_it_reads(family: str) -> None:
    outputs = HEADS[family][2](batch_of(1))
    _, head = find_decoder(Sample(outputs, SIZE))
    assert Head.from_dict(json.loads(json.dumps(head.to_dict()))) == head
    assert all(f"`{name}`" in head.text for name in head.outputs if "num" not in name)


def test_boxes_too_large_for_float32_are_no_reason_to_stop() -> None:
    batch = batch_of(1)
    outputs = HEADS["v8"][2](batch)
    _, head = find_decoder(Sample(outputs, SIZE))
    outputs["output0"][0, 2] = 3e38
    outputs["output0"][0, 3, :50] = 3e38
    result = detections(outputs, head, batch)[0]
    assert len(result) > 0
    assert np.isfinite(result.boxes).all()


@pytest.mark.parametrize("family", ["v10", "EfficientNMS", "torchvision"])
def test_head_of_a_batch_without_boxes_says_what_it_could_not_see(family: str) -> None:
    outputs = HEADS[family][2](batch_of(1, counts=(0, 0, 0)))
    _, head = find_decoder(Sample({name: array * 0 for name, array in outputs.items()}, SIZE))
    assert "taken as pixels, as the first batch has no boxes" in head.text


@pytest.mark.parametrize("named", [None, CLASSES])
def test_number_of_classes_tells_whether_there_is_an_objectness(named: int | None) -> None:
    batch = batch_of(3)
    rows = HEADS["v8"][2](batch)["output0"].transpose(0, 2, 1)
    _, head = find_decoder(Sample({"rows": rows}, SIZE, classes=named))
    assert head.options["objectness"] == (named is None)
    assert head.classes == (CLASSES if named else CLASSES - 1)


def test_truth_of_fewer_classes_makes_no_objectness_of_columns() -> None:
    outputs = HEADS["v8"][2](batch_of(3))
    _, head = find_decoder(Sample(outputs, SIZE, classes=CLASSES - 1))
    assert not head.options["objectness"]
    assert head.classes == CLASSES


def test_thousands_of_boxes_become_at_most_the_limit() -> None:
    generator = np.random.default_rng(0)
    rows = generator.random((1, 84, 8400), np.float32)
    rows[:, :4] *= 640
    outputs: Tensors = {"output0": rows}
    _, head = find_decoder(Sample(outputs, (640, 640)))
    frame = Frame(640, 640, 640, 640)
    (result,) = decode(outputs, head, [frame])
    assert isinstance(result, Detections)
    assert len(result) == 300
    assert len(result.first(100)) == 100


def test_boxes_in_the_border_of_a_letterbox_are_no_objects() -> None:
    frame = Frame(96, 20, *SIZE, offset=(0.0, 22.0))
    rows = np.zeros((1, 4, 6), np.float32)
    rows[0, 0] = [10, 2, 20, 12, 0.9, 1]
    rows[0, 1] = [10, 12, 20, 32, 0.8, 2]
    _, head = find_decoder(Sample({"rows": rows}, SIZE))
    (result,) = decode({"rows": rows}, head, [frame])
    assert isinstance(result, Detections)
    assert result.boxes.tolist() == [[10, 0, 20, 10]]
    assert result.dropped == 0


SCORES = np.random.default_rng(0).standard_normal((3, 7, 32, 48)).astype(np.float32)
BEST = SCORES.argmax(axis=1)
MASKS: dict[str, tuple[Tensors, np.ndarray, str]] = {
    "logits": ({"logits": SCORES}, BEST, "class_scores"),
    "channels last": ({"logits": SCORES.transpose(0, 2, 3, 1)}, BEST, "class_scores"),
    "with auxiliary": ({"aux": -SCORES, "out": SCORES}, BEST, "class_scores"),
    "pyramid": ({"small": -SCORES[..., ::4, ::4], "big": SCORES}, BEST, "class_scores"),
    "classes": ({"mask": BEST}, BEST, "class_numbers"),
    "classes with an axis": ({"mask": BEST[:, None].astype(np.uint8)}, BEST, "class_numbers"),
    "logit": ({"map": SCORES[:, :1]}, SCORES[:, 0] > 0, "foreground"),
    "probability": ({"map": 1 / (1 + np.exp(-SCORES[:, 0]))}, SCORES[:, 0] > 0, "foreground"),
    "probability, channel last": (
        {"map": 1 / (1 + np.exp(-SCORES[:, 0, ..., None]))},
        SCORES[:, 0] > 0,
        "foreground",
    ),
    "boolean": ({"map": SCORES[:, 0] > 0}, SCORES[:, 0] > 0, "class_numbers"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_every_kind_of_mask_becomes_the_classes_of_pixels(kind: str) -> None:
    outputs, expected, layout = MASKS[kind]
    decoder, head = find_decoder(Sample(outputs, SIZE))
    assert (decoder.name, decoder.task, head.layout) == ("mask", "segment", layout)
    results = decode(outputs, head, [FULL] * 3)
    for result, classes in zip(results, expected, strict=True):
        assert isinstance(result, ClassMap)
        assert (result.classes == classes).all()
        picture = result.to_picture()
        assert picture.shape == (SIZE[1], SIZE[0])
        assert (picture[::2, ::2] == classes).all()


def test_nan_in_a_mask_is_below_every_score() -> None:
    scores = SCORES.copy()
    scores[0, 3] = np.nan
    outputs: Tensors = {"logits": scores}
    _, head = find_decoder(Sample(outputs, SIZE))
    results = decode(outputs, head, [FULL] * 3)
    assert isinstance(results[0], ClassMap)
    assert (results[0].classes != 3).all()


@pytest.mark.parametrize(
    "outputs",
    [
        {"scores": np.zeros((1, 1000), np.float32)},
        {"scores": np.zeros((2, 7), np.float32) + 0.3},
        {"features": np.zeros((1, 2048, 1, 1), np.float32)},
        {"features": np.zeros((1, 1024, 14, 14), np.float32)},
        {"features": np.zeros((1, 512, 28, 28), np.float32)},
        {"nothing": np.zeros((0, 3, 224, 224), np.float32)},
        {"tokens": np.random.default_rng(0).standard_normal((1, 197, 768)).astype(np.float32)},
        {"boxes": np.zeros((1, 9, 4), np.float32)},
        {"x": np.zeros((), np.float32)},
        {},
    ],
)
def test_outputs_that_no_decoder_takes_are_listed_with_the_decoders(outputs: Tensors) -> None:
    with pytest.raises(UsageError, match="no decoder fits") as error:
        find_decoder(Sample(outputs, (224, 224)))
    text = "\n".join(error.value.details)
    for name, array in outputs.items():
        assert f"output `{name}`: {array.dtype} {list(array.shape)}" in text
    assert all(f"`{name}` takes " in text for name in DECODERS)


@pytest.mark.parametrize("name", DECODERS)
def test_named_decoder_that_does_not_fit_is_refused(name: str) -> None:
    sample = Sample({"scores": np.zeros((1, 1000), np.float32)}, SIZE)
    with pytest.raises(UsageError, match=f"`{name}` does not fit"):
        find_decoder(sample, name)


def test_unknown_decoder_is_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="did you mean `yolo`"):
        find_decoder(Sample({}, SIZE), "yola")


def test_outputs_of_another_model_or_batch_are_refused() -> None:
    outputs = HEADS["v8"][2](batch_of(3))
    _, head = find_decoder(Sample(outputs, SIZE))
    with pytest.raises(QConvertError, match="has no output `output0`"):
        decode({"other": outputs["output0"]}, head, [FULL] * 3)
    with pytest.raises(QConvertError, match="inputs are not pictures"):
        decode(outputs, head, [])
    with pytest.raises(QConvertError, match="hold 3 pictures, the batch 2"):
        decode(outputs, head, [FULL] * 2)


def test_page_lists_every_decoder_in_the_order_of_trial() -> None:
    page = (ROOT / "docs/concepts/heads.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert rows == list(DECODERS)


def test_layouts_are_found_by_the_names_that_heads_record() -> None:
    assert len(BOX_LAYOUTS) + len(MASK_LAYOUTS) == 13


@pytest.mark.parametrize(
    "setting", [{"threshold": 0.0}, {"threshold": 1.0}, {"iou": 0.0}, {"limit": 0}]
)
def test_impossible_settings_of_a_head_are_refused(setting: dict[str, float]) -> None:
    head = Head("yolo", "yolo", ("x",), "")
    with pytest.raises(ValueError, match="got"):
        replace(head, **setting)  # type: ignore[arg-type]


def test_named_decoder_takes_what_only_its_name_tells() -> None:
    rows = np.full((1, 31, 12), 0.5, np.float32)  # 31 is not the number of cells of any grids
    rows[:, :, :4] = 20
    sample = Sample({"rows": rows}, SIZE)
    with pytest.raises(UsageError, match="no decoder fits"):
        find_decoder(sample)
    assert find_decoder(sample, "yolo")[1].layout == "yolo"


def random_outputs(generator: np.random.Generator) -> Tensors:
    """Return outputs of any ranks, types and values, of sizes that occur together in heads."""
    sizes = [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 12, 24, 30, 64, 68, 96, 100, 126, 378]
    rows, pictures = int(generator.choice(sizes)), int(generator.integers(4))
    outputs: Tensors = {}
    for name in ("boxes", "scores", "labels", "x")[: generator.integers(1, 5)]:
        rank = int(generator.integers(4))
        shape = [pictures, rows, *generator.choice([*sizes, rows], 2)][: rank + 1]
        values = np.asarray(generator.standard_normal(shape[generator.random() < 0.1 :]))
        values *= generator.choice([0, 0.1, 100])
        if generator.random() < 0.5:
            values = np.abs(values) % 1
        dtype = generator.choice(["float32", "float32", "float16", "float64", "int64", "bool"])
        if dtype[0] == "f" and values.size and generator.random() < 0.2:
            values.flat[0] = generator.choice([np.nan, np.inf, -np.inf])
        outputs[name] = values.astype(dtype)
    return outputs


@pytest.mark.parametrize("seed", range(8))
def test_any_outputs_are_decoded_or_refused(seed: int) -> None:
    generator = np.random.default_rng(seed)
    for _ in range(20):
        outputs = random_outputs(generator)
        for name in ("auto", *DECODERS):
            try:
                _, head = find_decoder(Sample(outputs, SIZE, classes=5), name)
            except UsageError:
                continue
            with contextlib.suppress(QConvertError):
                decode(outputs, head, [FULL] * 2)

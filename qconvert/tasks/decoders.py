"""Find how the outputs of a network become predictions, and do it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError, UsageError, did_you_mean
from qconvert.core.tensors import Tensors
from qconvert.images.frames import Frame
from qconvert.tasks import anchors, centers, listed, masks, yolo
from qconvert.tasks.boxes import Candidates, suppress
from qconvert.tasks.heads import BoxLayout, Decoder, Head, MaskLayout, Sample, shape_text
from qconvert.tasks.predictions import MAX_CLASSES, ClassMap, Prediction, detections_of
from qconvert.tasks.user_decoder import USER_LAYOUT, decode_by_function, fit_function, is_function

# In the order in which they are tried: a family whose outputs have more of a shape of their own
# comes first.
DECODERS: dict[str, Decoder] = {
    decoder.name: decoder
    for decoder in (listed.BOXES, yolo.YOLO, anchors.DETR, anchors.SSD, centers.CENTERS, masks.MASK)
}

BOX_LAYOUTS: dict[str, BoxLayout] = {
    function.__name__: function
    for function in (
        yolo.yolo,
        yolo.yolox,
        yolo.yolo_maps,
        yolo.finished_rows,
        anchors.box_scores,
        anchors.queries,
        listed.object_lists,
        listed.indexed_rows,
        listed.nms_indices,
        centers.center_maps,
    )
}
MASK_LAYOUTS: dict[str, MaskLayout] = {
    function.__name__: function
    for function in (masks.class_scores, masks.class_numbers, masks.foreground)
}
# Layouts of which a second output are the prototypes of masks of the objects.
PROTOTYPE_LAYOUTS = (yolo.yolo.__name__, yolo.finished_rows.__name__)
AUTO = "auto"
NO_OBJECTS = Candidates(
    np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
)


def find_decoder(sample: Sample, name: str = AUTO) -> tuple[Decoder, Head]:
    """Return the decoder and the head of a network's outputs, by name or the first that fits.

    A name with a colon is that of a function of the user, as in `package.module:function`.
    """
    if is_function(name):
        return fit_function(name, sample)
    if name != AUTO and name not in DECODERS:
        raise UsageError(
            f"there is no decoder `{name}`{did_you_mean(name, list(DECODERS))}",
            details=_takes(),
            hint="name one of these, or a function of your own: `package.module:function`",
        )
    sample = replace(sample, forced=name != AUTO)
    for decoder in DECODERS.values() if name == AUTO else (DECODERS[name],):
        if (head := decoder.fit(sample)) is not None:
            return decoder, head
    outputs = [
        f"output `{key}`: {array.dtype} {shape_text(array)}" for key, array in sample.arrays.items()
    ]
    fits = "no decoder fits" if name == AUTO else f"the decoder `{name}` does not fit"
    raise UsageError(
        f"{fits} the outputs of this model, whose input is {sample.size[0]}×{sample.size[1]}",
        details=[*outputs, *_takes()],
        hint="name a decoder with `--decode NAME`, or a function of your own: "
        "`--decode package.module:function`; `--task any` compares the outputs by their error alone",
    )


def _takes() -> list[str]:
    return [f"`{decoder.name}` takes {decoder.text}" for decoder in DECODERS.values()]


def has_object_masks(head: Head) -> bool:
    """Return whether the detections of a head have masks."""
    has_prototypes = head.layout in PROTOTYPE_LAYOUTS and len(head.outputs) > 1
    return has_prototypes or bool(head.options.get("masks"))


def decode(outputs: Tensors, head: Head, frames: Sequence[Frame]) -> list[Prediction]:
    """Return the prediction of each picture of a batch, in pixels of the picture."""
    if not frames:
        raise QConvertError(
            "these inputs are not pictures, so boxes and masks have no place in them",
            hint="give image files, or arrays with the axes of images, [N, 3, height, width]",
        )
    if head.layout == USER_LAYOUT:
        return decode_by_function(outputs, head, frames)
    missing = [name for name in head.outputs if name not in outputs]
    if missing:
        raise QConvertError(
            f"the model has no output `{missing[0]}`, which its decoder `{head.decoder}` reads",
            details=[f"its outputs: {', '.join(f'`{name}`' for name in outputs)}"],
            hint="decode the outputs of the model for which the head was made",
        )
    arrays = head.arrays(outputs)
    if head.layout in MASK_LAYOUTS:
        maps = MASK_LAYOUTS[head.layout](arrays, **head.options)
        _require_count(len(maps), frames, head)
        count = head.classes or MAX_CLASSES
        return [
            ClassMap(classes, frame, count) for classes, frame in zip(maps, frames, strict=True)
        ]
    # What overflows becomes infinite, and is dropped and counted like what was before.
    with np.errstate(over="ignore", invalid="ignore"):
        return _detections(arrays, head, frames)


def _detections(
    arrays: Sequence[NDArray[Any]], head: Head, frames: Sequence[Frame]
) -> list[Prediction]:
    size = frames[0].input_size
    candidates = BOX_LAYOUTS[head.layout](arrays, size, head.threshold, **head.options)
    if head.layout == "indexed_rows":  # nothing tells of a last picture without objects
        candidates += [NO_OBJECTS] * (len(frames) - len(candidates))
    _require_count(len(candidates), frames, head)
    pairs = zip(candidates, frames, strict=True)
    return [detections_of(_kept(objects, head), frame, head.limit) for objects, frame in pairs]


def _kept(objects: Candidates, head: Head) -> Candidates:
    if head.iou is None:
        return objects
    kept = suppress(objects.boxes, objects.scores, objects.classes, head.iou, head.limit)
    coefficients = objects.coefficients
    return replace(
        objects,
        boxes=objects.boxes[kept],
        scores=objects.scores[kept],
        classes=objects.classes[kept],
        coefficients=None if coefficients is None else coefficients[kept],
    )


def _require_count(count: int, frames: Sequence[Frame], head: Head) -> None:
    if count != len(frames):
        raise QConvertError(
            f"the outputs hold {count} pictures, the batch {len(frames)}",
            details=[f"decoder `{head.decoder}`: {head.text}"],
            hint="run the model with a batch of 1: `--batch 1`",
        )

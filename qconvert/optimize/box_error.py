"""The error of the boxes of a quantized network against those of FP32, where a decoder reads them.

What a network loses in mAP does not show in its outputs: most of their values are of no box. The
error of boxes counts lost boxes, boxes that moved and scores that changed alike (`shared_scores`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qconvert.core.errors import UsageError
from qconvert.core.tensors import Tensors, TensorSpec, batch_size
from qconvert.images.frames import Frame
from qconvert.images.preprocess import find_image_input
from qconvert.measure.output_error import ErrorArray
from qconvert.tasks.decoders import decode, find_decoder
from qconvert.tasks.detection_agreement import MIN_SCORE, shared_scores
from qconvert.tasks.heads import Head, Sample
from qconvert.tasks.predictions import Detections

# Fewer boxes of FP32 on all images say nothing about others.
MIN_BOXES = 8


@dataclass(frozen=True)
class BoxReader:
    """How boxes are read from the outputs, in pixels of the input."""

    head: Head
    size: tuple[int, int]

    def errors(
        self, reference: Sequence[Tensors], outputs: Sequence[Tensors], images: Sequence[int]
    ) -> ErrorArray | None:
        """Return the error of the boxes of each image; None where FP32 has too few boxes.

        `images` counts the images of each batch. The mean over images counts every box alike: it is
        0 where all are the same, .5 where all are lost, 1 where as many others stand elsewhere.
        """
        sides = self._decode(reference, images), self._decode(outputs, images)
        if sum(int((boxes.scores >= MIN_SCORE).sum()) for boxes in sides[0]) < MIN_BOXES:
            return None
        rows = [shared_scores(before, after) for before, after in zip(*sides, strict=True)]
        differences = [row.before + row.after - 2 * row.shared for row in rows]
        scores = 2 * np.mean([row.before for row in rows])
        return np.asarray(np.array(differences) / scores, np.float64)

    def _decode(self, batches: Sequence[Tensors], images: Sequence[int]) -> list[Detections]:
        frame, boxes = Frame(*self.size, *self.size), list[Detections]()
        for outputs, count in zip(batches, images, strict=True):
            predictions = decode(outputs, self.head, [frame] * count)
            boxes += [row for row in predictions if isinstance(row, Detections)]
        return boxes


def find_box_reader(
    specs: Sequence[TensorSpec], feeds: Tensors, outputs: Tensors
) -> BoxReader | None:
    """Return how the boxes of a network are read, by its outputs on a batch; None if by no decoder."""
    try:
        image_input = find_image_input(specs)
        shape = feeds[image_input.name].shape
        height, width = shape[2:4] if image_input.layout == "nchw" else shape[1:3]
        sample = Sample(outputs, (width, height), pictures=batch_size(feeds))
        decoder, head = find_decoder(sample)
    except UsageError:
        return None
    return BoxReader(head, sample.size) if decoder.task == "detect" else None

"""Whether the boxes of a quantized network agree with those of FP32, where a decoder reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

from qconvert.core.errors import UsageError
from qconvert.core.tensors import Tensors, TensorSpec, batch_size
from qconvert.images.frames import Frame
from qconvert.images.preprocess import find_image_input
from qconvert.tasks.decoders import decode, find_decoder
from qconvert.tasks.detection_agreement import PictureAgreement, agreement, total_agreement
from qconvert.tasks.heads import Head, Sample
from qconvert.tasks.predictions import Detections


@dataclass(frozen=True)
class BoxReader:
    """How boxes are read from the outputs, in pixels of the input."""

    head: Head
    size: tuple[int, int]

    def agreement(self, reference: Sequence[Tensors], outputs: Sequence[Tensors]) -> float | None:
        """Return the share of boxes with a partner, over all batches; None without boxes."""
        pictures: list[PictureAgreement] = []
        for before, after in zip(reference, outputs, strict=True):
            sides = self._decode(before), self._decode(after)
            pictures += [agreement(one, other) for one, other in zip(*sides, strict=True)]
        return total_agreement(pictures)

    def _decode(self, outputs: Tensors) -> list[Detections]:
        frame = Frame(*self.size, *self.size)
        frames = [frame] * Sample(outputs, self.size).count
        predictions = decode(outputs, self.head, frames)
        return [row for row in predictions if isinstance(row, Detections)]


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

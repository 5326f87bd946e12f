"""Compare the outputs of engines with those of FP32, batch by batch, as the task of the network."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qconvert.core.number_format import count
from qconvert.core.tensors import RunModel, Tensors, rows_of_images, run_padded
from qconvert.images.listing import Batch, Images
from qconvert.measure import accuracy
from qconvert.measure.accuracy import BASELINE, Accuracy, ImageScores, MeasuredOn
from qconvert.tasks.reading import Reading, TaskRequest, choose_reading, padded_frames

SIMULATION: MeasuredOn = "cpu-simulation"
# So many batches are held while none of them has a box, from which the unit of boxes follows.
MAX_OPEN_BATCHES = 16

BatchOutputs = Mapping[str, Tensors]


@dataclass(eq=False)
class Comparison:
    """What became of the batches so far, by the name of the engine; `BASELINE` is FP32.

    `size` is the batch that the model fixes, if it does. `held` are batches not yet read, as it is
    not clear how.
    """

    images: Images
    request: TaskRequest
    size: int | None = None
    reading: Reading | None = None
    scores: dict[str, list[ImageScores]] = field(default_factory=dict)
    rows: dict[str, list[Any]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    cut: int = 0
    held: list[tuple[Batch, BatchOutputs]] = field(default_factory=list)

    def add(self, batch: Batch, outputs: BatchOutputs) -> None:
        """Compare what `run_padded` returned; the first objects of FP32 decide how it is read."""
        if not self.names or (self.held and self.reading is not None):
            self.reading = choose_image_reading(
                self.images, self.request, batch, outputs[BASELINE], self.size
            )
        self.names += [item.name for item in batch.items]
        self.cut += sum(frame.is_cut for frame in batch.frames)
        labels = [item.label if self.reading is None else None for item in batch.items]
        rows = {name: rows_of_images(own, len(labels), self.size) for name, own in outputs.items()}
        for name, own in rows.items():
            parts = self.scores.setdefault(name, [])
            parts.append(accuracy.score_batch(rows[BASELINE], own, labels))
            if self.reading is None and len(parts) == 1 and (classes := parts[0].classes):
                self.images.check_classes(classes)
        if self.reading is None:
            return
        self.held.append((batch, outputs))
        if not self.reading.is_open or len(self.held) == MAX_OPEN_BATCHES:
            self._compare_held(self.reading)

    def summarize(self, name: str, measured_on: MeasuredOn) -> Accuracy:
        """Return the accuracy of an engine, or of FP32, over all batches."""
        if self.reading is not None:
            self._compare_held(self.reading)
        joined, is_baseline = accuracy.join_scores(self.scores[name]), name == BASELINE
        names = () if is_baseline else self.names
        result = accuracy.summarize_accuracy(joined, measured_on, names)
        if self.reading is not None:
            task = self.reading.task
            result = accuracy.with_task(result, task, task.summarize(self.rows[name]), names)
        if not is_baseline:
            return result
        result = accuracy.without_comparisons(result, joined.notes)
        return replace(result, notes=(*self._reading_notes(), *result.notes))

    def _reading_notes(self) -> list[str]:
        """Say how the outputs are read, and other things that a wrong metric may come from."""
        reading, named = self.reading, len(self.images.classes.names)
        if reading is None:
            return []
        notes = [f"task `{reading.task.name}`: {reading.text}"]
        if reading.classes and named not in (0, reading.classes):
            notes.append(
                f"the labels name {named} classes, the model has "
                f"{reading.classes}: check that both number them alike"
            )
        if self.cut and reading.head is not None:
            notes.append(
                f"preprocessing cuts off a part of {count(self.cut, 'picture')}, where nothing can "
                "be seen: `--resize letterbox` keeps all of it"
            )
        return notes

    def _compare_held(self, reading: Reading) -> None:
        held, self.held = self.held, []
        for batch, outputs in held:
            self._compare(batch, outputs, reading)

    def _compare(self, batch: Batch, outputs: BatchOutputs, reading: Reading) -> None:
        place = batch.frames, len(batch.items), self.size
        references = reading.read(outputs[BASELINE], *place)
        truths = [reading.truth_of(item) for item in batch.items]
        for name, own in outputs.items():
            predictions = references if name == BASELINE else reading.read(own, *place)
            triples = zip(references, predictions, truths, strict=True)
            rows = self.rows.setdefault(name, [])
            rows += [reading.task.compare(*triple) for triple in triples]


def choose_image_reading(
    images: Images, request: TaskRequest, batch: Batch, outputs: Tensors, size: int | None
) -> Reading | None:
    """Return how the outputs of FP32 for a batch of images are read, and check their classes."""
    frames, kind = padded_frames(batch.frames, size), images.truth_kind
    classes = len(images.classes.names) or None
    reading = choose_reading(request, outputs, frames, kind, classes)
    # A class for the whole image is no truth of boxes or pixels, and is not read.
    if reading is not None and reading.classes and kind is not None:
        images.check_classes(reading.classes)
    return reading


def find_image_reading(
    images: Images, request: TaskRequest, run: RunModel, size: int, fixed: int | None
) -> Reading | None:
    """Return how the outputs of FP32 are read, as a `Comparison` does in batches of this size."""
    reading = None
    for number, batch in enumerate(images.batches(size), 1):
        outputs = run_padded(run, batch.feeds, fixed)
        reading = choose_image_reading(images, request, batch, outputs, fixed)
        if reading is None or not reading.is_open or number == MAX_OPEN_BATCHES:
            break
    return reading

"""Compare the outputs of engines with those of FP32, batch by batch, as the task of the network."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from qconvert.core.tensors import Tensors
from qconvert.images.listing import Batch, Images
from qconvert.measure import accuracy
from qconvert.measure.accuracy import BASELINE, Accuracy, ImageScores, MeasuredOn
from qconvert.tasks.reading import Reading, TaskRequest, choose_reading

SIMULATION: MeasuredOn = "cpu-simulation"


@dataclass(eq=False)
class Comparison:
    """What became of the batches so far, by the name of the engine; `BASELINE` is FP32."""

    images: Images
    request: TaskRequest
    reading: Reading | None = None
    scores: dict[str, list[ImageScores]] = field(default_factory=dict)
    rows: dict[str, list[Any]] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)

    def add(self, batch: Batch, outputs: Mapping[str, Tensors]) -> None:
        """Compare the outputs of a batch; the first batch of FP32 decides how outputs are read."""
        expected = outputs[BASELINE]
        if not self.names:
            self._start(batch, expected)
        self.names += [item.name for item in batch.items]
        labels = [item.label if self.reading is None else None for item in batch.items]
        for name, own in outputs.items():
            parts = self.scores.setdefault(name, [])
            parts.append(accuracy.score_batch(expected, own, labels))
            if not self.rows and self.reading is None and (classes := parts[0].classes):
                self.images.check_classes(classes)
        if self.reading is not None:
            self._compare(batch, outputs, self.reading)

    def summarize(self, name: str, measured_on: MeasuredOn) -> Accuracy:
        """Return the accuracy of an engine, or of FP32, over all batches."""
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
        """Say how the outputs are read, which a wrong metric may come from."""
        reading = self.reading
        return [] if reading is None else [f"task `{reading.task.name}`: {reading.text}"]

    def _start(self, batch: Batch, expected: Tensors) -> None:
        images = self.images
        classes = len(images.classes.names) or None
        kind = images.truth_kind
        self.reading = choose_reading(self.request, expected, batch.frames, kind, classes)
        # A class for the whole image is no truth of boxes or pixels, and is not read.
        if self.reading is not None and self.reading.classes and kind is not None:
            images.check_classes(self.reading.classes)

    def _compare(self, batch: Batch, outputs: Mapping[str, Tensors], reading: Reading) -> None:
        references = reading.predict(outputs[BASELINE], batch.frames)
        truths = [reading.truth_of(item) for item in batch.items]
        for name, own in outputs.items():
            predictions = references
            if name != BASELINE:
                predictions = reading.predict(own, batch.frames)
            triples = zip(references, predictions, truths, strict=True)
            rows = self.rows.setdefault(name, [])
            rows += [reading.task.compare(*triple) for triple in triples]

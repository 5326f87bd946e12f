"""How the outputs of one network are read and scored: the task, found or named, and its decoder."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qconvert.core.config import Task as TaskName
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import Tensors, output_array
from qconvert.images.frames import Frame
from qconvert.images.listing import ImageEntry
from qconvert.tasks.decoders import AUTO, DECODERS, decode, find_decoder
from qconvert.tasks.detect import DETECT
from qconvert.tasks.embed import EMBED
from qconvert.tasks.heads import Head, Sample
from qconvert.tasks.own_metric import own_task
from qconvert.tasks.segment import SEGMENT
from qconvert.tasks.task import Task

TASKS: dict[str, Task] = {task.name: task for task in (DETECT, SEGMENT, EMBED)}
METRIC_TITLES: dict[str, str] = {
    "top1": "top-1",
    "top5": "top-5",
    **{name: title for task in TASKS.values() for name, title in task.metrics.items()},
}

TruthKind = Literal["boxes", "masks"]
Predict = Callable[[Tensors, Sequence[Frame]], list[Any]]


@dataclass(frozen=True)
class TaskRequest:
    """What the user says of a network: its task, its decoder, and a metric of their own."""

    task: TaskName | None = None
    decode: str = AUTO
    metric: str = ""


@dataclass(frozen=True, eq=False)
class Reading:
    """How outputs become predictions, and which task scores them.

    `classes` is the number of classes, None where the outputs do not say it. `head` is that of a
    decoder of ours. `base` reads the same, scored without the user's own metric.
    """

    task: Task
    predict: Predict
    text: str
    classes: int | None = None
    head: Head | None = None
    base: "Reading | None" = None

    @property
    def is_open(self) -> bool:
        """Whether a batch with objects may say more of how outputs are read."""
        return self.head is not None and self.head.is_open

    def read(
        self, outputs: Tensors, frames: Sequence[Frame], count: int, size: int | None = None
    ) -> list[Any]:
        """Return the predictions for `count` images from the outputs of `run_padded`.

        Lists of objects of all pictures can be told apart only with those of the padding.
        """
        predictions = self.predict(outputs, padded_frames(frames, size))
        if len(predictions) < count:
            raise QConvertError(
                f"the outputs hold {len(predictions)} images, the batch {count}",
                details=[self.text],
                hint="run the model with a batch of 1: `--batch 1`",
            )
        return predictions[:count]

    def truth_of(self, entry: ImageEntry) -> Any:
        """Return the truth of an image that this task is scored by, None where there is none."""
        shown = (entry.truth, entry.label)
        return next((truth for truth in shown if isinstance(truth, self.task.truth)), None)


def padded_frames(frames: Sequence[Frame], size: int | None) -> tuple[Frame, ...]:
    """Return the frames of a batch that was padded to `size` by repeating its images."""
    return tuple(frames if size is None else islice(cycle(frames), size))


def choose_reading(
    request: TaskRequest,
    outputs: Tensors,
    frames: Sequence[Frame],
    truth: TruthKind | None = None,
    truth_classes: int | None = None,
) -> Reading | None:
    """Return how the outputs of a first batch are read; None for classifiers and what is unknown.

    Without a word of the user the truth decides, then rows of class scores, then whether a decoder
    of boxes fits.
    """
    reading = _choose(request, outputs, frames, truth, truth_classes)
    if not request.metric:
        return reading
    task = own_task(request.metric, reading.task if reading is not None else None)
    if reading is not None:
        text = f"{reading.text}, {task.text}"
        return replace(reading, task=task, text=text, base=reading)
    return Reading(task, _rows_of_outputs, f"outputs as they are, {task.text}")


def _choose(
    request: TaskRequest,
    outputs: Tensors,
    frames: Sequence[Frame],
    truth: TruthKind | None,
    truth_classes: int | None,
) -> Reading | None:
    task = request.task or {"boxes": "detect", "masks": "segment", None: None}[truth]
    if task in ("classify", "any"):
        return None
    if task is not None and (read := TASKS[task].read) is not None:
        return Reading(
            TASKS[task], lambda rows, places: read(rows, _count(rows, places)), TASKS[task].text
        )
    if not frames:
        if task is None:
            return None
        raise UsageError(
            f"`--task {task}` needs images: the inputs of this model are not pictures",
            hint="leave `--task` out, and the outputs are compared by their error",
        )
    is_named = task is not None or request.decode != AUTO
    if not is_named and _has_class_scores(outputs, len(frames)):
        return None
    sample = Sample(outputs, frames[0].input_size, truth_classes, pictures=len(frames))
    try:
        decoder, head = find_decoder(sample, request.decode)
    except UsageError:
        if is_named:
            raise
        return None
    if task is not None and decoder.task != task:
        problem = f"the outputs look like those of `--task {decoder.task}` ({head.text})"
        if request.task is None:
            raise UsageError(
                f"the labels are {truth}, but {problem}",
                hint=f"name labels of that task, or compare without these: `--task {decoder.task}`",
            )
        fitting = [name for name, entry in DECODERS.items() if entry.task == task]
        hint = f"decoders of `{task}`: {', '.join(fitting)}; name one with `--decode`"
        raise UsageError(problem, hint=hint)
    # A map of the input's shape may be anything, such as a depth or a restored image.
    if not is_named and decoder.task == "segment":
        return None
    return Reading(
        TASKS[decoder.task],
        lambda rows, places: decode(rows, head, places),
        f"decoder `{decoder.name}`: {head.text}",
        head.classes,
        head,
    )


def _has_class_scores(outputs: Tensors, count: int) -> bool:
    arrays = [output_array(outputs, name) for name in outputs]
    # torchvision's boxes [n, 4] of a single object are no row of four scores.
    lists = {array.shape for array in arrays if array.ndim == 1}
    return any(
        array.ndim >= 2
        and len(array) == count
        and array.shape[1] > 1
        and not (array.shape[1] == 4 and array.shape[:1] in lists)
        and array.dtype.kind not in "iub"
        and all(size == 1 for size in array.shape[2:])
        for array in arrays
    )


def _count(outputs: Tensors, frames: Sequence[Frame]) -> int:
    """Return how many images outputs are of: those of the frames, or else their rows."""
    arrays = (np.asarray(array) for array in outputs.values())
    return len(frames) or max((len(array) for array in arrays if array.ndim), default=1)


def _rows_of_outputs(outputs: Tensors, frames: Sequence[Frame]) -> list[dict[str, NDArray[Any]]]:
    """Return the outputs of each image by name."""
    arrays = {name: output_array(outputs, name) for name in outputs}
    count = _count(arrays, frames)
    return [
        {
            name: array[row] if array.shape[:1] == (count,) else array
            for name, array in arrays.items()
        }
        for row in range(count)
    ]

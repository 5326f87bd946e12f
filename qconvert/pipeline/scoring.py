"""The answers of every engine over the same images, which are read once for all of them."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
from numpy.typing import NDArray

from qconvert import __version__, backends, onnx_io
from qconvert.backends.base import Engine
from qconvert.backends.ort import VERSION, open_cpu
from qconvert.feeds import Feeds, Run, answer, filled_up, first, fixed_batch
from qconvert.images.batch import Images
from qconvert.images.labels import check_classes
from qconvert.measure.accuracy import Accuracy, MeasuredOn, accuracy, baseline
from qconvert.measure.judged import Judged, join, judge
from qconvert.measure.machine import machine
from qconvert.pipeline.progress import Progress, Tell
from qconvert.pipeline.timing import hashes
from qconvert.report.numerals import count
from qconvert.store import Store

BATCH = 8
SCORES = "scores.json"
BF16 = "ONNX Runtime has no bf16 kernels for the CPU, so its answers are not known here"

ADAPTER = pydantic.TypeAdapter(dict[str, Accuracy])
BASELINE = ""


@dataclass(frozen=True)
class Exam:
    """The FP32 model, the images, and what was done to them: the same for every engine."""

    model: Path
    images: Images
    preprocessing: Mapping[str, object]

    def digest(self) -> str:
        """Return one hash over all that decides what is asked: images, labels, preprocessing."""
        used = self.images.listing()
        decided = [used.digest(), list(self.images.labels), dict(self.preprocessing)]
        return hashlib.sha256(json.dumps(decided, sort_keys=True).encode()).hexdigest()


def scored(
    engines: Mapping[str, Engine],
    runs_here: Mapping[str, bool],
    exam: Exam,
    work: tuple[Store, Tell],
) -> dict[str, Accuracy]:
    """Return the scores of every engine whose graph can run here, and under "" those of FP32.

    An engine that cannot run here is scored by its graph on the CPU.
    """
    store, tell = work
    started = time.perf_counter()
    listing = exam.images.listing()
    recipe = {
        "name": ", ".join(engines),
        "model": onnx_io.fingerprint(onnx_io.load(exam.model)),
        "engines": json.dumps(hashes(engines), sort_keys=True),
        "runs": json.dumps(dict(runs_here), sort_keys=True),
        "images": listing.digest(),
        "labels": json.dumps(list(exam.images.labels)),
        "preprocessing": json.dumps(dict(exam.preprocessing), sort_keys=True),
        "qconvert": __version__,
        "onnxruntime": VERSION,
        "numpy": version("numpy"),
        "pillow": version("pillow"),
        "machine": json.dumps(machine(), sort_keys=True),
    }

    def make(folder: Path) -> None:
        found = _score(engines, runs_here, exam, tell)
        told = ADAPTER.dump_json(found, indent=1)
        (folder / SCORES).write_bytes(told)

    found = store.get("evaluate", recipe, make)
    scores = ADAPTER.validate_json((found.path / SCORES).read_bytes())
    text = f"{count(scores[BASELINE].images, 'image')}, {count(len(scores) - 1, 'engine')}"
    tell(Progress("evaluate", text, time.perf_counter() - started, found.stored))
    return scores


def _score(
    engines: Mapping[str, Engine], runs_here: Mapping[str, bool], exam: Exam, tell: Tell
) -> dict[str, Accuracy]:
    reference = open_cpu(onnx_io.load(exam.model))
    runs = {
        name: _runner(engine, here=runs_here[name])
        for name, engine in engines.items()
        if runs_here[name] or engine.precision != "bf16"
    }
    parts: dict[str, list[Judged]] = {name: [] for name in (BASELINE, *runs)}
    size = fixed_batch(onnx_io.inputs(onnx_io.load(exam.model)))
    total, names = len(exam.images.names), list[str]()
    for batch in exam.images.batches(size or BATCH):
        labels = [item.label for item in batch.items]
        wanted = _run(reference, batch.feeds, size)
        parts[BASELINE].append(judge(wanted, wanted, labels))
        if classes := parts[BASELINE][0].classes:
            check_classes(exam.images, classes)
        for name, run in runs.items():
            parts[name].append(judge(wanted, _run(run, batch.feeds, size), labels))
        names += [item.name for item in batch.items]
        tell(Progress("evaluate", "images", done=len(names), total=total))
    scores = {BASELINE: baseline(join(parts.pop(BASELINE)))}
    for name, judged in parts.items():
        where: MeasuredOn = "engine" if runs_here[name] else "cpu-simulation"
        scores[name] = accuracy(join(judged), where, names)
    return scores


def _run(run: Run, feeds: Feeds, size: int | None) -> Feeds:
    """Run a batch; where the model fixes a larger one it is filled up, and the filling dropped."""
    count = len(next(iter(feeds.values())))
    if size == 1:
        # Whatever answers one image is that image's, also what has no axis of images.
        made = run(feeds)
        return {name: _row(answer(made, name)) for name in made}
    if not size or count == size:
        return run(feeds)
    return first(run(filled_up(feeds, size)), count, size)


def _row(answer: NDArray[Any]) -> NDArray[Any]:
    return answer if answer.shape[:1] == (1,) else answer[np.newaxis]


def _runner(engine: Engine, *, here: bool) -> Run:
    if here:
        return backends.load(engine.backend).open(engine).run
    return open_cpu(onnx_io.load(engine.folder / engine.graph))

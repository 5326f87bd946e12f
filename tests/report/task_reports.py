"""Hand-written reports of detectors, segmenters and embeddings."""

from dataclasses import replace
from typing import Any

from qconvert.measure.accuracy import Accuracy, ChangedPicture
from qconvert.report.model import Report
from qconvert.tasks.task import ClassShift
from tests.report import reports

METRICS = {
    "map": 0.9321, "map50": 0.991, "map75": 0.972, "map_small": 0.81, "ar1": 0.5, "ar10": 0.93,
    "ar100": 0.94,
}  # fmt: skip
PRIMARY = {"detect": "map", "segment": "miou", "embed": "recall1"}
OWN = {
    "detect": METRICS,
    "segment": {"miou": 0.78, "pixel_accuracy": 0.95, "dice": 0.87},
    "embed": {"recall1": 0.9, "recall5": 0.99, "cosine": 0.9995},
}


def scored(task: Any, change: float | None, **more: Any) -> Accuracy:
    """Return the accuracy of an engine whose first metric changed by so many points."""
    metrics = dict(OWN[task])
    if change is not None:
        metrics[PRIMARY[task]] += change / 100
    fields: dict[str, Any] = {
        "images": 300,
        "measured_on": "engine",
        "agreement": 98.7,
        "sqnr_db": 31.0,
        "kl": None,
        "cosine": 0.9996,
        "change_pp": change,
        "half_width_pp": None if change is None else 0.21,
        "labelled": 0 if change is None else 300,
        "task": task,
        "metrics": metrics if change is not None else {},
        "primary": PRIMARY[task] if change is not None else "",
    }
    return Accuracy(**{**fields, **more})


def of_task(task: Any, change: float | None = -0.34, **more: Any) -> Report:
    """Return a run whose INT8 engine changed the metric so, None for a run without truth."""
    fp32, fp16, int8 = reports.cpu()
    zero = None if change is None else 0.0
    shifts = (ClassShift(1, 93.0, 91.5, 40), ClassShift(0, 90.0, 90.5, 60)) if change else ()
    pictures = (ChangedPicture("0007.jpg", 40.0), ChangedPicture("0003.jpg", 90.0))
    accuracies = (
        scored(task, zero, agreement=100.0, half_width_pp=zero, sqnr_db=float("inf")),
        scored(task, zero, agreement=100.0),
        scored(task, change, shifts=shifts, pictures=pictures, **more),
    )
    variants = [
        replace(variant, accuracy=accuracy)
        for variant, accuracy in zip((fp32, fp16, int8), accuracies, strict=True)
    ]
    nothing: dict[str, Any] = {
        "agreement": None,
        "sqnr_db": None,
        "cosine": None,
        "change_pp": None,
    }
    baseline = replace(accuracies[0], **nothing, half_width_pp=None)
    return reports.report(*variants, baseline=baseline)

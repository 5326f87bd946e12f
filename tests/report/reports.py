"""Hand-written reports in the shapes that runs have."""

from dataclasses import replace
from typing import Any, Literal

from qconvert.measure.accuracy import Accuracy
from qconvert.measure.latency import Latency
from qconvert.report.model import (
    EngineInfo,
    ImageSetInfo,
    MemoryUse,
    Report,
    UnquantizedNode,
    VariantResult,
)

CPU = {"CPUExecutionProvider": 60}
NO_GPU = "no RTX GPU here"


def engine(name: str, megabytes: float) -> EngineInfo:
    size = round(megabytes * 1e6)
    path = f"engines/{name}"
    return EngineInfo(path, ("model.onnx",), size, "ab" * 32, 1.25, False, {"onnxruntime": "1.31"})


def cpu_engine(sign: str) -> EngineInfo:
    """Return a quantized engine of the CPU."""
    return replace(engine("cpu-int8", 5.05), made_with={"activations": sign})


def timing(ms: float, batch: int = 1, where: Literal["host", "device"] = "host") -> Latency:
    return Latency(batch, where, (ms * 0.99, ms, ms * 1.01, ms * 0.98, ms * 1.02))


def scored(top1: float, change: float, half: float | None = 0.0, **more: Any) -> Accuracy:
    more = {"agreement": 98.5, "sqnr_db": 24.1, "kl": 0.0031, "cosine": 0.9987, **more}
    scores = {"top1": top1, "precision": top1 - 0.4, "recall": top1 + 0.2, "f1": top1 - 0.1}
    more = {"images": 300, "measured_on": "engine", **scores, **more}
    return Accuracy(change_pp=change, half_width_pp=half, top5=99.0, **more)


def alike(agreement: float | None, sqnr_db: float, **more: Any) -> Accuracy:
    more = {"images": 200, "measured_on": "engine", "kl": None, **more}
    return Accuracy(agreement=agreement, sqnr_db=sqnr_db, **more)


def variant(name: str, megabytes: float, ms: float | None, **more: Any) -> VariantResult:
    """Return a variant named as its backend and precision are."""
    backend, precision = name.rsplit("-", 1)
    timed = () if ms is None else (timing(ms), timing(ms * 7, 8))
    return VariantResult(
        name, backend, precision, engine(name, megabytes), **{"latency": timed, **more}
    )


def report(*variants: VariantResult, **more: Any) -> Report:
    fields: dict[str, Any] = {
        "tool": "qconvert 0.1.0",
        "created": "2026-11-21T14:02:11Z",
        "model": "lite0.onnx",
        "command": "qconvert build lite0.onnx --images calib --eval val",
        "config": {"model": "lite0.onnx", "gate": {"max-drop": 1.0}},
        "machine": {"cpu": "AMD EPYC 9454, 16 cores", "onnxruntime": "1.31.1"},
        "baseline": Accuracy(300, "engine", None, None, None, 88.33, 98.0, 88.0, 88.5, 88.1),
        "baseline_bytes": 18_600_000,
        "variants": variants,
        "seconds": {"export": 4.1, "build": 12.0},
        "calibration": ImageSetInfo("calib", 200, "cd" * 32),
        "evaluation": ImageSetInfo("val", 300, "ef" * 32),
    }
    return Report(**{**fields, **more})


def cpu() -> tuple[VariantResult, ...]:
    left = tuple(UnquantizedNode(f"/head/{n}", "Gemm", "answers in float") for n in range(2))
    exact = scored(88.33, 0.0, agreement=100.0, sqnr_db=float("inf"), kl=0.0)
    return (
        variant("cpu-fp32", 18.7, 24.0, accuracy=exact, by_provider=CPU, by_precision={"fp32": 60}),
        variant("cpu-fp16", 9.4, 25.0, accuracy=scored(88.33, 0.0), by_provider=CPU),
        variant(
            "cpu-int8",
            5.05,
            10.0,
            accuracy=scored(88.0, -0.33, 1.12),
            by_provider=CPU,
            quantized=58,
            candidates=60,
            unquantized=left,
            memory=MemoryUse(peak_rss_bytes=90_000_000),
        ),
    )


def measured() -> Report:
    """Return a run on one backend with everything measured."""
    return report(*cpu())


def simulated() -> Report:
    """Return a run whose second backend can build engines here, but not run them."""
    why = {"latency": NO_GPU}
    rtx = (
        variant("tensorrt-rtx-fp32", 19.1, None, accuracy=on_cpu(0.0), unmeasured=why),
        variant("tensorrt-rtx-fp16", 9.8, None, accuracy=on_cpu(0.0), unmeasured=why),
        variant("tensorrt-rtx-int8", 10.7, None, accuracy=on_cpu(-1.0, 1.3), unmeasured=why),
    )
    return report(*cpu(), *rtx)


def on_cpu(change: float, half: float = 0.0) -> Accuracy:
    return scored(88.33 + change, change, half, measured_on="cpu-simulation")


def wide() -> Report:
    """Return a run with the longest names and numbers a normal one has."""
    variants = list(simulated().variants)
    for name in ("fp32", "fp16", "int8", "mixed"):
        latency = (
            timing(123.456),
            timing(1034.5, 8),
            timing(101.2, 1, "device"),
            timing(999.9, 8, "device"),
        )
        accuracy = scored(100.0, -12.345, 10.5, agreement=100.0)
        variants.append(variant(f"tensorrt-{name}", 116.8, 1.0, accuracy=accuracy, latency=latency))
    return report(*variants)


def unlabelled() -> Report:
    """Return a run whose evaluation images have no labels."""
    accuracies = (
        alike(100.0, float("inf"), kl=0.0),
        alike(99.5, 60.0, kl=1e-6),
        alike(98.5, 24.1, kl=0.003),
    )
    variants = [replace(v, accuracy=a) for v, a in zip(cpu(), accuracies, strict=True)]
    return report(*variants, baseline=None)


def regression() -> Report:
    """Return a run of a network that names no classes."""
    accuracies = (
        alike(None, float("inf"), cosine=1.0),
        alike(None, 60.0, cosine=1.0),
        alike(None, 24.1, cosine=0.998),
    )
    variants = [replace(v, accuracy=a) for v, a in zip(cpu(), accuracies, strict=True)]
    return report(*variants, baseline=None)


def one_image() -> Report:
    """Return a run evaluated on a single image, from which no interval follows."""
    accuracy = scored(100.0, 0.0, half=None, images=1, agreement=100.0)
    return report(*(replace(variant, accuracy=accuracy) for variant in cpu()))


def unrated() -> Report:
    """Return a run without evaluation images."""
    variants = [replace(v, accuracy=None, unmeasured={"accuracy": "no `--eval`"}) for v in cpu()]
    return report(*variants, baseline=None, evaluation=None)


def with_int8(**more: Any) -> Report:
    """Return the measured run with changes to its INT8 engine."""
    fp32, fp16, int8 = cpu()
    return report(fp32, fp16, replace(int8, **more))

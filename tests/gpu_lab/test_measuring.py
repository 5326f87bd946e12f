"""What is measured on a GPU, on one whose answers are known."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_lab.lab import environment
from tests.gpu_lab.lab.environment import Host

BUILD = (
    *("build", "model.onnx", "-o", "run", "--images", "calib_data", "--precision", "fp32"),
    *("--set", "bench.seconds=0.05", "--batch-sizes", "1,4", "--set", "bench.streams=3"),
)


def measured(host: Host, world: Path, *args: str) -> dict[str, Any]:
    done = host.qconvert(*BUILD, *args, cwd=world)
    assert done.code == 0, done.err
    report: dict[str, Any] = json.loads((world / "run/report.json").read_text())
    return report


@pytest.mark.proves("{backend}", "timing by events, copies, CUDA graph, load", by="real wheel")
@pytest.mark.parametrize("backend", ["tensorrt", "cuda"])
def test_gpu_is_timed_by_events_copies_graphs_and_load(
    backend: str, gpu: Callable[..., Host], world: Path
) -> None:
    report = measured(gpu(engine_mb=64, mig=1), world, "--backend", backend)
    (variant,) = report["variants"]
    timed = [(item["batch"], item["where"]) for item in variant["latency"]]
    assert timed == [(batch, where) for batch in (1, 4) for where in ("host", "device", "graph")]
    assert all(item["samples"] >= 10 and item["median_ms"] > 0 for item in variant["latency"])
    for item in variant["latency"]:
        assert (item["gpu"] is None) == (item["where"] != "host")
    for item in variant["latency"][::3]:
        load = item["gpu"]
        assert load["streams"] == 3
        assert load["clock_mhz"] == 1500
        # The simulated GPU draws 100 W all the time: the energy of an image follows.
        assert load["power_watts"] == pytest.approx(100)
        energy = load["millijoules_per_image"] / 1000 * load["images_per_second"]
        assert energy == pytest.approx(100, rel=0.1)
        assert load["throttled"] == []
        assert load["device_bytes"] > (64e6 if backend == "tensorrt" else 0)
    assert report["machine"]["mig"] == "on"
    assert report["machine"]["gpu power limit"] == "200 W"


@pytest.mark.proves("tensorrt", "throttled GPU in the report", by="real wheel")
def test_throttled_gpu_is_reported(gpu: Callable[..., Host], world: Path) -> None:
    done = gpu(throttled=0x24).qconvert(*BUILD, "--backend", "tensorrt", cwd=world)
    assert done.code == 0, done.err
    assert "held down by its power limit and temperature" in done.out


@pytest.mark.proves("tensorrt", "one engine in the memory of the GPU at a time", by="real wheel")
def test_one_engine_is_in_the_memory_of_the_gpu_at_a_time(
    gpu: Callable[..., Host], world: Path
) -> None:
    """Three engines of 600 MB fit in 1300 MB one after the other, not together."""
    host = gpu(memory_mb=1300, engine_mb=600)
    done = host.qconvert(
        *BUILD, "--backend", "tensorrt", "--precision", "fp32,fp16,int8", "--set",
        "bench.streams=1", "--batch-sizes", "1", cwd=world,
    )  # fmt: skip
    assert done.code == 0, done.err


@pytest.mark.proves("tensorrt", "timing without NVML", by="real wheel")
def test_without_nvml_package_the_rest_is_measured(world: Path) -> None:
    wheels = [name for name in environment.GPU if name != "nvidia_ml_py"]
    host = Host(environment.make_host(world / "host", wheels=wheels))
    load = measured(host, world, "--backend", "tensorrt")["variants"][0]["latency"][0]["gpu"]
    assert load["images_per_second"] > 0
    assert load["power_watts"] is None

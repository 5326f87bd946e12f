"""The first commands on a host with GPUs."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu_lab.lab.environment import Finished, Host


def prove(host: Host, backend: str, folder: Path) -> Finished:
    command = ("doctor", "--prove", "--backend", backend, "-o", "proof", "--json")
    return host.qconvert(*command, cwd=folder, seconds=280)


@pytest.mark.proves("cuda", "`doctor --prove`", by="real wheel")
def test_proof_covers_every_precision_and_says_simulated(
    gpu: Callable[..., Host], tmp_path: Path
) -> None:
    done = prove(gpu(), "cuda", tmp_path)
    assert done.code == 0, done.err
    proofs = json.loads(done.out)["proofs"]
    assert [(it["precision"], it["result"]) for it in proofs] == [
        ("fp32", "ok"),
        ("fp16", "ok"),
        ("int8", "not tried"),
    ]
    assert all(it["median_ms"] > 0 and it["agreement"] > 97 for it in proofs[:2])
    with zipfile.ZipFile(tmp_path / "proof/proof.zip") as archive:
        machine = json.loads(archive.read("machine.json"))
        log = archive.read("logs/cuda-fp16.txt").decode()
    assert "Simulated GPU" in machine["machine"]["gpu"]
    assert "On a simulated GPU: " in log


@pytest.mark.proves("tensorrt", "`doctor --prove` of engines that fail", by="real bindings")
def test_engine_that_fails_is_one_line_with_the_reason_of_tensorrt(
    gpu: Callable[..., Host], tmp_path: Path
) -> None:
    reason = "Error Code 10: Could not find any implementation for node conv"
    done = prove(gpu(build_error=reason), "tensorrt", tmp_path)
    assert done.code == 1
    proofs = json.loads(done.out)["proofs"]
    assert {it["result"] for it in proofs} == {"failed"}
    assert all("Could not find any implementation for node conv" in it["detail"] for it in proofs)
    assert all(it["cure"] for it in proofs)
    assert (tmp_path / "proof/proof.zip").is_file()


def test_full_gpu_is_not_mended_by_pip(gpu: Callable[..., Host], tmp_path: Path) -> None:
    done = gpu(memory_mb=0).qconvert("doctor", "--json", cwd=tmp_path)
    states = json.loads(done.out)["backends"]
    for name in ("cuda", "tensorrt"):
        assert "memory" in states[name]["reason"].lower()
        assert "nvidia-smi" in states[name]["cure"]

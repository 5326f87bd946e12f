"""TensorRT 11 beside an onnxruntime-gpu that links 10: its own builder and runtime are used."""

from pathlib import Path

import pytest

from qconvert.core.formats import Precision
from tests.gpu_lab.conftest import Lab
from tests.gpu_lab.engines import do, prepare, result
from tests.gpu_lab.lab.environment import Host
from tests.gpu_lab.lab.events import Build, Deserialize, Refit, Unanswered

VERSION = "11.4.0.106"


@pytest.fixture
def host(lab: Lab) -> Host:
    """Return a machine with the real bindings of TensorRT 11."""
    return lab.host(lab.machines.gpu(tensorrt=VERSION))


@pytest.mark.proves("tensorrt", "TensorRT 11: outputs in {precision}", by="real bindings")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_engine_runs_in_tensorrts_own_runtime(
    host: Host, tmp_path: Path, precision: Precision
) -> None:
    done = do(host, prepare(tmp_path / "e", precision=precision), "build", "run")
    values = result(done)
    assert set(values["by_provider"]) == {"TensorRT"}
    assert values["by_precision"][precision] > 3
    [build] = done.all(Build)
    assert build.strongly_typed
    assert all(engine.valid for engine in done.all(Deserialize))
    assert not done.all(Unanswered)


@pytest.mark.proves("tensorrt", "TensorRT 11: engine without weights", by="real bindings")
def test_stripped_engine_gets_its_weights(host: Host, tmp_path: Path) -> None:
    done = do(host, prepare(tmp_path / "e", weight_stripped=True), "build", "run")
    result(done)
    assert {"STRIP_PLAN", "REFIT_IDENTICAL"} < done.all(Build)[0].flag_names
    assert len(done.all(Refit)) == 1


def test_doctor_names_the_runtime_and_the_provider_is_refused(host: Host, tmp_path: Path) -> None:
    done = host.qconvert("doctor", cwd=tmp_path)
    assert f"TensorRT {VERSION}, in its own runtime" in done.out
    refused = do(host, prepare(tmp_path / "e", builder="provider"), "build")
    assert refused.code == 4
    assert "do not work together" in refused.err
    assert "hint: leave out `tensorrt.builder` = provider" in refused.err

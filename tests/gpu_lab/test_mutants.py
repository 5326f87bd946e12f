"""The laboratory can fail: mistakes that were made before are noticed."""

from collections.abc import Callable
from pathlib import Path

from tests.gpu_lab.engines import do, prepare
from tests.gpu_lab.lab.environment import Finished, Host
from tests.gpu_lab.lab.events import Build


def mutated(machine: Host, name: str, folder: Path, *jobs: str) -> Finished:
    return machine.run("-m", "tests.gpu_lab.mutants", name, folder, *jobs, cwd=folder)


def test_switch_spelled_as_a_number_fails_the_build(
    gpu: Callable[..., Host], tmp_path: Path
) -> None:
    done = mutated(gpu(), "spelling", prepare(tmp_path / "e", builder="provider"), "build")
    assert done.code == 3
    assert "should be 'True' or 'False'" in done.err


def test_fallback_to_the_cpu_prints_and_hides_the_reason(
    gpu: Callable[..., Host], tmp_path: Path
) -> None:
    folder = prepare(tmp_path / "e", builder="provider")
    assert do(gpu(), folder, "build").code == 0
    right, wrong = (mutated(gpu(), name, folder, "run") for name in ("unknown", "fallback"))
    assert (right.code, right.out) == (3, "")
    assert "trt_no_such_option" in right.err
    assert "EP Error" in wrong.out


def test_load_without_the_flags_of_the_build_builds_again(
    gpu: Callable[..., Host], tmp_path: Path
) -> None:
    folder = prepare(tmp_path / "e", precision="int8", builder="provider", allow_fallback=True)
    assert do(gpu(), folder, "build").code == 0
    assert not do(gpu(), folder, "run").all(Build)
    assert mutated(gpu(), "flags", folder, "run").all(Build)

"""A run folder is new, or continued with the settings that determine its results."""

from pathlib import Path

import pytest

from qconvert.core import config_file
from qconvert.core.config import Config
from qconvert.core.errors import QConvertError, UsageError
from qconvert.run.run_folder import (
    ENGINE_FILE,
    RunFolder,
    begin_run,
    require_output_file,
    require_usable_folder,
    resume_run,
    update_settings,
)

ROOT = Path("runs/net")


def make_config(**settings: object) -> Config:
    values = {name.replace("__", ".").replace("_", "-"): value for name, value in settings.items()}
    return config_file.load(None, {"model": "net.onnx", **values})


def finish_run(**settings: object) -> RunFolder:
    """Create a run with these settings and an engine."""
    with begin_run(ROOT, make_config(**settings)) as run:
        run.engine("cpu-int8").mkdir(parents=True)
        (run.engine("cpu-int8") / ENGINE_FILE).touch()
    return run


def test_new_run_has_its_settings_with_absolute_paths() -> None:
    with begin_run(ROOT, make_config(calibration__images="images")) as run:
        assert run.settings().model == str(Path("net.onnx").absolute())
        assert run.settings().calibration.images == Path("images").absolute()
    assert run.engines() == []
    assert not run.has_results()


def test_new_run_that_fails_before_any_result_is_removed() -> None:
    with pytest.raises(RuntimeError), begin_run(ROOT, make_config()):
        raise RuntimeError
    assert not ROOT.parent.exists()


def test_failed_job_leaves_the_settings_of_a_run_as_they_were() -> None:
    run = finish_run()
    before = run.settings()
    with pytest.raises(QConvertError), begin_run(ROOT, make_config(bench__seconds=9.0)):
        raise QConvertError("failed", hint="try again")
    assert run.settings() == before


def test_other_settings_are_rejected_with_every_difference() -> None:
    finish_run()
    other = make_config(quantize__method="minmax", export__opset=19)
    for action in (begin_run, resume_run):
        with pytest.raises(UsageError) as raised, action(ROOT, other):
            pass
        assert list(raised.value.details) == [
            "`export.opset` was `20`, now `19`",
            "`quantize.method` was not set, now `minmax`",
        ]


def test_gates_engines_and_measurements_may_change() -> None:
    run = finish_run()
    other = make_config(gate__max_drop=1.0, build__backends=["cuda"], bench__rounds=3)
    with resume_run(ROOT, other):
        update_settings(run, other)
    settings = run.settings()
    assert (settings.gate.max_drop, settings.bench.rounds) == (1, 3)
    assert settings.build.backends == ()


def test_search_keeps_the_other_settings_of_a_built_run() -> None:
    run = finish_run(bench__seconds=2.0)
    with begin_run(ROOT, make_config(search__budget=3.0, bench__seconds=9.0), searching=True):
        pass
    assert (run.settings().search.budget, run.settings().bench.seconds) == (3, 2)


def test_folder_in_use_by_another_process_is_rejected() -> None:
    finish_run()
    with (
        begin_run(ROOT, make_config()),
        pytest.raises(UsageError, match="another qconvert works in"),
        resume_run(ROOT, make_config()),
    ):
        pass


def test_folder_with_other_files_and_a_file_are_rejected() -> None:
    ROOT.mkdir(parents=True)
    (ROOT / "notes.txt").touch()
    Path("file").touch()
    for path, message in ((ROOT, "holds other files"), (Path("file"), "a run is a folder")):
        with pytest.raises(UsageError, match=message):
            require_usable_folder(path, make_config())
        with pytest.raises(UsageError, match=message), begin_run(path, make_config()):
            pass


def test_output_that_is_a_folder_a_device_or_an_input_is_rejected() -> None:
    Path("folder").mkdir()
    for path, message in (
        ("folder", "is a folder"),
        ("/dev/null", "is a device or a pipe"),
        ("net.onnx", "is named twice"),
    ):
        with pytest.raises(UsageError, match=message):
            require_output_file(Path(path), Path("net.onnx"))

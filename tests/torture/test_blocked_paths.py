"""Paths that cannot be written: the error names the obstacle, and nothing changes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torture.conftest import Baseline
from tests.torture.environment import ALL, Environment
from tests.torture.file_systems import require_clear_error, with_read_only, without_privileges
from tests.torture.run_content import hashes, leftovers

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]

# In a finished run: files where a folder must be, and folders where a file must be.
FILES = ("engines", "calibration", "engines/cpu-int8")
FOLDERS = ("model.onnx", "calibration/calibration.npz", "report.json", "report.md")
# The file that each run rewrites; the Markdown comes after it.
NEW = {"report.json": ""}
OTHERS = (*ALL, "--method", "minmax")

Taking = Callable[[Path], list[str]]


@pytest.fixture
def old(baseline: Baseline, tmp_path: Path) -> Baseline:
    """Copy a finished run and its cache."""
    run, cache = tmp_path / "old", tmp_path / "old-cache"
    shutil.copytree(baseline.run, run)
    shutil.copytree(baseline.cache, cache)
    return Baseline(run, cache, baseline.facts)


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_wrong_file_type_inside_a_run_is_reported(
    name: str, old: Baseline, environment: Environment
) -> None:
    folder = old.run / name
    remove(folder)
    if name in FILES:
        folder.write_text("mine\n")
    else:
        folder.mkdir()
        (folder / "notes.txt").write_text("mine\n")
    before = hashes(old.run, "*") | NEW
    outcome = environment.build(old.run, old.cache)
    require_clear_error(outcome, folder)
    assert hashes(old.run, "*") | NEW == before
    assert leftovers(old.run) == []


@pytest.mark.parametrize("below", ["", "below", "far/below"])
@pytest.mark.parametrize("which", ["run", "cache"])
def test_file_in_place_of_run_or_cache_is_reported(
    which: str, below: str, environment: Environment, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine\n")
    places = {"run": tmp_path / "run", "cache": tmp_path / "cache", which: file / below}
    outcome = environment.build(places["run"], places["cache"])
    require_clear_error(outcome, file)
    assert file.read_text() == "mine\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "run", "cache"}


def test_file_in_place_of_cached_step_is_reported(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "engine").write_text("mine\n")
    outcome = environment.build(tmp_path / "run", tmp_path / "cache")
    require_clear_error(outcome, tmp_path / "cache" / "engine")


@pytest.mark.parametrize("taken", [with_read_only, without_privileges])
@pytest.mark.parametrize("below", ["", "new"])
def test_read_only_run_is_reported_or_read(
    taken: Taking, below: str, old: Baseline, environment: Environment
) -> None:
    before = hashes(old.run, "*")
    outcome = environment.build(old.run / below, old.cache, ALL, taken(old.run))
    require_clear_error(outcome, old.run / below)
    assert hashes(old.run, "*") == before
    assert leftovers(old.run) == []


@pytest.mark.parametrize("taken", [with_read_only, without_privileges])
def test_read_only_cache_is_reported_or_read(
    taken: Taking, old: Baseline, environment: Environment, tmp_path: Path
) -> None:
    """Cached results are used; new ones cannot be stored."""
    around = taken(old.cache)
    same = environment.build(tmp_path / "same", old.cache, ALL, around)
    assert same.code == 0, same.err
    assert all(same.steps.values())
    other = environment.build(tmp_path / "other", old.cache, OTHERS, around)
    require_clear_error(other, old.cache)
    assert leftovers(tmp_path / "other") == []


def test_run_files_follow_the_umask(baseline: Baseline, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    usual = {False: file.stat().st_mode, True: folder.stat().st_mode}
    strange = {
        path.relative_to(baseline.run).as_posix(): oct(path.stat().st_mode)
        for path in baseline.run.rglob("*")
        if path.stat().st_mode != usual[path.is_dir()]
    }
    assert strange == {}

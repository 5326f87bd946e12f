"""`package.module:factory` is imported from the working folder and called; errors are reported."""

from pathlib import Path

import pytest

from qconvert.core.errors import QConvertError, UsageError
from qconvert.sources import kind
from qconvert.sources.torch_models import call_factory


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write modules of unusual names, since Python caches modules by name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "factories.py").write_text(
        "print('importing')\n"
        "def build(): print('building'); return 41 + 1\n"
        "def raising(): raise ValueError('no such checkpoint')\n"
        "def leaving(): raise SystemExit('bye')\n"
        "def sized(size): return size\n"
        "thing = 3\n"
    )
    (tmp_path / "needy.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "broken.py").write_text("def f(:\n")


def test_function_is_called_and_prints_nothing_on_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call_factory("factories:build") == 42
    assert capsys.readouterr().out == ""


def test_unknown_names_are_usage_errors() -> None:
    for name, message in {
        "factories:bild": "`factories` has no `bild`; did you mean `build`",
        "factories:thing": "is not a function",
        "factoriez:build": "no module `factoriez` here",
        "factories.deeper:build": "no module `factories.deeper` here",
    }.items():
        with pytest.raises(UsageError, match=message):
            call_factory(name)


def test_error_in_user_code_names_the_line() -> None:
    for name, message, line in (
        ("factories:raising", "raised ValueError: no such checkpoint", "factories.py:3"),
        ("factories:leaving", "raised SystemExit: bye", "factories.py:4"),
        ("needy:f", "No module named 'a_module_that_is_not_there'", "needy.py:1"),
    ):
        with pytest.raises(QConvertError, match=message) as caught:
            call_factory(name)
        assert caught.value.exit_code == 3
        assert line in caught.value.details[0]
    with pytest.raises(QConvertError, match="importing `broken` raised SyntaxError"):
        call_factory("broken:f")


def test_hint_mentions_arguments_only_if_the_error_does() -> None:
    for name, expected in (("factories:sized", True), ("factories:raising", False)):
        with pytest.raises(QConvertError) as caught:
            call_factory(name)
        assert ("without arguments" in str(caught.value.hint)) == expected


def test_kind_of_a_source_follows_from_its_form() -> None:
    assert {
        name: kind(name)
        for name in ("a/b.onnx", "C.ONNX", "n.pt2", "n.pt", "n.pth", "pkg.mod:f", "timm:r18")
    } == {
        "a/b.onnx": "ONNX file",
        "C.ONNX": "ONNX file",
        "n.pt2": "pt2 file",
        "n.pt": "checkpoint",
        "n.pth": "checkpoint",
        "pkg.mod:f": "factory",
        "timm:r18": "timm",
    }
    assert kind("torchvision:resnet18") == "torchvision"
    for wrong in ("resnet50", "a.txt", "pkg.mod:", "pkg mod:f", "timm:", ""):
        with pytest.raises(UsageError, match="not a model that qconvert can read"):
            kind(wrong)

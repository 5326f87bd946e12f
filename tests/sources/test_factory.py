"""`package.module:factory`: found in the working folder, called, and its troubles told."""

from pathlib import Path

import pytest

from qconvert.core.errors import QConvertError, UsageError
from qconvert.sources import factory, kind


@pytest.fixture(autouse=True)
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a module under a name of its own, since Python remembers modules by name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "shop.py").write_text(
        "print('importing')\n"
        "def build(): print('building'); return 41 + 1\n"
        "def raising(): raise ValueError('no such checkpoint')\n"
        "def leaving(): raise SystemExit('bye')\n"
        "def sized(size): return size\n"
        "thing = 3\n"
    )
    (tmp_path / "needy.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "broken.py").write_text("def f(:\n")


def test_the_function_is_called_and_its_talk_stays_off_stdout(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert factory.call("shop:build") == 42
    assert capsys.readouterr().out == ""


def test_wrong_names_are_mistakes_of_the_command() -> None:
    for name, said in {
        "shop:bild": "`shop` has no `bild`; did you mean `build`",
        "shop:thing": "is not a function",
        "shoop:build": "no module `shoop` here",
        "shop.deeper:build": "no module `shop.deeper` here",
    }.items():
        with pytest.raises(UsageError, match=said):
            factory.call(name)


def test_what_the_users_code_raises_points_at_the_users_line() -> None:
    for name, said, line in (
        ("shop:raising", "raised ValueError: no such checkpoint", "shop.py:3"),
        ("shop:leaving", "raised SystemExit: bye", "shop.py:4"),
        ("needy:f", "No module named 'a_module_that_is_not_there'", "needy.py:1"),
    ):
        with pytest.raises(QConvertError, match=said) as caught:
            factory.call(name)
        assert caught.value.exit_code == 3
        assert line in caught.value.details[0]
    with pytest.raises(QConvertError, match="importing `broken` raised SyntaxError"):
        factory.call("broken:f")


def test_the_hint_is_about_arguments_only_where_the_error_is() -> None:
    for name, about in (("shop:sized", True), ("shop:raising", False)):
        with pytest.raises(QConvertError) as caught:
            factory.call(name)
        assert ("without arguments" in str(caught.value.hint)) == about


def test_a_source_is_known_by_how_it_is_written() -> None:
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
        with pytest.raises(UsageError, match="not a model this tool can read"):
            kind(wrong)

"""The glossary names code that exists, and the code uses no word that the glossary replaced."""

import re
from importlib import import_module

import pytest

from tests.docs.commands import ROOT

TEXT = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([^|]+) \| (?:`([\w.]+)`)? ?\| ([^|]+) \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize(("word", "name"), [(word, name) for word, name, _ in ROWS if name])
def test_name_in_the_glossary_exists(word: str, name: str) -> None:
    module, _, attribute = f"qconvert.{name}".rpartition(".")
    if not hasattr(import_module(module), attribute):
        assert import_module(f"{module}.{attribute}"), word


def test_glossary_defines_each_word_once() -> None:
    words = [word for word, _, _ in ROWS if word != "word"]
    assert len(words) == len(set(words)) >= 40

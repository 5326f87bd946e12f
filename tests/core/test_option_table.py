"""The option table: every setting, with what options and keyword arguments follow from it."""

import pytest

from qconvert.core import config_file
from qconvert.core.config import Config, keys_at, keyword_settings, option_table


def test_every_default_is_valid() -> None:
    defaults = {
        path: option.default
        for path, option in option_table().items()
        if option.default is not None
    }
    assert config_file.load(None, defaults) == Config()


@pytest.mark.parametrize(
    ("path", "type_name", "keyword"),
    [
        ("export.inputs", "list of str", "inputs"),
        ("export.batch", '"dynamic" or int', "batch"),
        ("evaluate.images", "Path", "eval"),
        ("build.profile", "list of int", "profile"),
        ("quantize.keep", 'list of "first" or "last"', "keep"),
    ],
)
def test_option_has_a_type_in_words_and_a_keyword(path: str, type_name: str, keyword: str) -> None:
    assert option_table()[path].type_name == type_name
    assert option_table()[path].keyword == keyword
    assert keyword_settings()[keyword] == path


def test_keys_are_listed_for_tables_only() -> None:
    assert "calibration" in keys_at(())
    assert keys_at(("calibration",)) == ["images", "count", "seed", "max-broken", "exact"]
    assert keys_at(("calibration", "count")) == keys_at(("nothing",)) == []

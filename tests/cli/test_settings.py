"""Settings from options and files."""

from pathlib import Path
from typing import Any, get_args

import click
import pytest

from qconvert.cli import options
from qconvert.core.config import Config, literals, option_table
from qconvert.core.errors import UsageError
from qconvert.images.preprocess import PRESETS, Interpolation, Preprocess
from qconvert.run.context import known_preprocessing
from qconvert.sources import Source
from tests import models


def load(*args: str) -> Config:
    @click.command()
    @options.image_options
    def command(**values: Any) -> dict[str, Any]:
        return values

    return options.open_job("m.onnx", command.main(list(args), standalone_mode=False)).config


def preprocessing(*args: str, own: Preprocess | None = None) -> Preprocess | None:
    return known_preprocessing(
        Source("m", models.tiny(), (), preprocess=own), load(*args).preprocess
    )


def test_preprocessing_options_offer_every_choice() -> None:
    table = option_table()
    assert literals(table["preprocess.preset"].type) == tuple(PRESETS)
    assert literals(table["preprocess.interpolation"].type) == get_args(Interpolation)


def test_option_sets_its_setting() -> None:
    config = load("--images", "a", "--count", "8", "--max-broken", "0", "--crop", "none")
    assert config.calibration.images == Path("a")
    assert (config.calibration.count, config.calibration.max_broken) == (8, 0)
    assert config.preprocess.crop == "none"
    assert load().calibration.count == 512
    assert load().calibration.images is None


def test_option_overrides_the_settings_file(tmp_path: Path) -> None:
    Path("qconvert.toml").write_text('[preprocess]\npreset = "clip"\nresize = [320, 200]\n')
    assert load().preprocess.resize == (320, 200)
    assert load("--resize", "100").preprocess.resize == 100
    assert preprocessing("--preprocess", "unit", "--resize", "256") == Preprocess(resize=256)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), None),
        (("--preprocess", "inception"), PRESETS["inception"]),
        (("--mean", "127/255"), Preprocess(mean=(127 / 255,), std=(0.229, 0.224, 0.225))),
        (("--resize", "320x200", "--preprocess", "unit"), Preprocess(resize=(320, 200))),
        (
            ("--resize", "letterbox:64", "--preprocess", "unit"),
            Preprocess(resize="letterbox:64x64"),
        ),
    ],
)
def test_preprocessing_options_override_the_preset(
    args: tuple[str, ...], expected: Preprocess | None
) -> None:
    assert preprocessing(*args) == expected


def test_source_preprocessing_overrides_the_default_but_not_options() -> None:
    own = Preprocess(mean=(0.1,), std=(0.2,), interpolation="bicubic")
    assert preprocessing(own=own) == own
    assert preprocessing("--std", "0.3", own=own) == Preprocess(
        mean=(0.1,), std=(0.3,), interpolation="bicubic"
    )
    assert preprocessing("--preprocess", "unit", own=own) == PRESETS["unit"]


@pytest.mark.parametrize(
    "args",
    [
        ("--resize", "0"),
        ("--resize", "axb"),
        ("--resize", "letterbox:0"),
        ("--resize", "letterbox", "--crop", "200"),
        ("--resize", "100", "--crop", "200"),
        ("--mean", "1,2"),
        ("--std", "0"),
    ],
)
def test_invalid_setting_is_a_usage_error(args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        preprocessing(*args)


@pytest.mark.parametrize("args", [("--crop", "2x2"), ("--mean", "a"), ("--std", "nan")])
def test_unreadable_value_is_rejected_by_its_option(args: tuple[str, ...]) -> None:
    with pytest.raises(click.BadParameter):
        load(*args)


def test_output_path_is_never_the_source(tmp_path: Path) -> None:
    assert options.output_path(None, "a/net.onnx", ".onnx") == Path("net.onnx")
    Path("net.onnx").touch()
    assert options.output_path(None, "net.onnx", ".onnx") == Path("net-clean.onnx")
    assert options.output_path(None, "pkg.nets:build", ".onnx") == Path("build.onnx")
    assert options.output_path(None, "timm:resnet18.a1", ".onnx") == Path("resnet18.a1.onnx")
    with pytest.raises(UsageError, match="is the source itself"):
        options.output_path(Path("./net.onnx"), "net.onnx", ".onnx")

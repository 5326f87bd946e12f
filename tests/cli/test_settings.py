"""From what was typed to settings."""

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from qconvert.cli import options, settings
from qconvert.core.config import Config
from qconvert.core.errors import UsageError
from qconvert.core.option_table import literals, option_table
from qconvert.images.preprocess import PRESETS, Interpolation, Preprocess
from qconvert.run.job_images import known_preprocessing
from qconvert.sources import Source
from tests import models


def typed(*args: str) -> Config:
    @click.command()
    @options.image_options
    def command(**values: Any) -> dict[str, Any]:
        return values

    return settings.load("m.onnx", command.main(list(args), standalone_mode=False))


def prepared(*args: str, own: Preprocess | None = None) -> Preprocess | None:
    return known_preprocessing(
        Source("m", models.tiny(), (), preprocess=own), typed(*args).preprocess
    )


def test_image_options_import_neither_numpy_nor_pillow() -> None:
    loaded = (
        "import sys, qconvert.cli.options; "
        "print([name for name in ('numpy', 'PIL', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_preprocessing_options_offer_every_choice() -> None:
    table = option_table()
    assert literals(table["preprocess.preset"].type) == tuple(PRESETS)
    assert literals(table["preprocess.interpolation"].type) == get_args(Interpolation)


def test_options_override_settings() -> None:
    config = typed("--images", "a", "--count", "8", "--max-broken", "0", "--crop", "none")
    assert config.calibration.images == Path("a")
    assert (config.calibration.count, config.calibration.max_broken) == (8, 0)
    assert config.preprocess.crop == "none"
    assert typed().calibration.count == 512
    assert typed().calibration.images is None


def test_command_line_overrides_the_settings_file(tmp_path: Path) -> None:
    Path("qconvert.toml").write_text('[preprocess]\npreset = "clip"\nresize = [320, 200]\n')
    assert typed().preprocess.resize == (320, 200)
    assert typed("--resize", "100").preprocess.resize == 100
    assert prepared("--preprocess", "unit", "--resize", "256") == Preprocess(resize=256)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((), None),
        (("--preprocess", "inception"), PRESETS["inception"]),
        (("--mean", "127/255"), Preprocess(mean=(127 / 255,), std=(0.229, 0.224, 0.225))),
        (("--resize", "320x200", "--preprocess", "unit"), Preprocess(resize=(320, 200))),
    ],
)
def test_preprocessing_options_override_the_preset(
    given: tuple[str, ...], wanted: Preprocess | None
) -> None:
    assert prepared(*given) == wanted


def test_embedded_preprocessing_overrides_the_default_only() -> None:
    own = Preprocess(mean=(0.1,), std=(0.2,), interpolation="bicubic")
    assert prepared(own=own) == own
    assert prepared("--std", "0.3", own=own) == Preprocess(
        mean=(0.1,), std=(0.3,), interpolation="bicubic"
    )
    assert prepared("--preprocess", "unit", own=own) == PRESETS["unit"]


@pytest.mark.parametrize(
    "wrong",
    [("--resize", "0"), ("--mean", "1,2"), ("--std", "0"), ("--resize", "100", "--crop", "200")],
)
def test_contradictory_options_are_usage_errors(wrong: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        prepared(*wrong)


@pytest.mark.parametrize(
    "wrong", [("--resize", "axb"), ("--crop", "2x2"), ("--mean", "a"), ("--std", "nan")]
)
def test_unreadable_option_value_is_refused(wrong: tuple[str, ...]) -> None:
    with pytest.raises(click.BadParameter):
        typed(*wrong)


def test_default_output_never_overwrites_the_source(tmp_path: Path) -> None:
    assert settings.output_path(None, "a/net.onnx", ".onnx") == Path("net.onnx")
    Path("net.onnx").touch()
    assert settings.output_path(None, "net.onnx", ".onnx") == Path("net-clean.onnx")
    assert settings.output_path(None, "pkg.nets:build", ".onnx") == Path("build.onnx")
    assert settings.output_path(None, "timm:resnet18.a1", ".onnx") == Path("resnet18.a1.onnx")
    with pytest.raises(UsageError, match="is the source itself"):
        settings.output_path(Path("./net.onnx"), "net.onnx", ".onnx")

import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import click
import pytest

from qconvert.cli import image_options
from qconvert.errors import UsageError
from qconvert.images import ImageChoice
from qconvert.images.preprocess import PRESETS, Interpolation, Preprocess
from qconvert.images.reading import Reading


def chosen(*args: str) -> dict[str, Any]:
    @click.command()
    @image_options.image_options
    @image_options.labels_options
    def command(**values: Any) -> dict[str, Any]:
        return values

    values: dict[str, Any] = command.main(list(args), standalone_mode=False)
    return values


def preprocess(*args: str, base: Preprocess | None = None) -> Preprocess:
    return image_options.preprocess(chosen(*args), base)


def test_help_needs_neither_numpy_nor_pillow() -> None:
    loaded = (
        "import sys, qconvert.cli.image_options; "
        "print([name for name in ('numpy', 'PIL', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", loaded], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_names_offered_are_those_that_exist() -> None:
    assert tuple(PRESETS) == image_options.PRESETS
    assert get_args(Interpolation) == image_options.INTERPOLATIONS


def test_images_default_to_512_and_eval_to_all() -> None:
    values = chosen("--images", "a", "--eval", "b", "--labels", "c.csv")
    assert image_options.image_choice(values) == ImageChoice(Path("a"), 512)
    assert image_options.eval_choice(values) == ImageChoice(Path("b"), None, Path("c.csv"))
    values = chosen("--images", "a", "--count", "8", "--eval", "b", "--eval-count", "9")
    assert image_options.image_choice(values) == ImageChoice(Path("a"), 8)
    assert image_options.eval_choice(values) == ImageChoice(Path("b"), 9)


def test_nothing_given_means_no_images() -> None:
    assert image_options.image_choice(chosen()) is None
    assert image_options.eval_choice(chosen()) is None
    assert image_options.reading(chosen()) == Reading()


@pytest.mark.parametrize("args", [("--labels", "x.csv"), ("--eval-count", "5")])
def test_labels_without_images_are_refused(args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match=f"`{args[0]}` needs `--eval`"):
        image_options.eval_choice(chosen(*args))


def test_a_preset_is_the_base_and_single_settings_go_over_it() -> None:
    assert preprocess() == PRESETS["imagenet"]
    assert preprocess("--preprocess", "clip") == PRESETS["clip"]
    lite0 = preprocess(
        *("--resize", "256", "--crop", "224", "--interpolation", "bicubic"),
        *("--mean", "127/255", "--std", "128/255"),
    )
    assert lite0 == Preprocess(256, 224, 0.875, "bicubic", 255.0, (127 / 255,), (128 / 255,))
    assert preprocess("--resize", "320x224", "--crop", "none").resize == (320, 224)
    assert preprocess("--resize", "none", "--crop", "fit").resize == "none"
    assert preprocess("--mean", "0.1,0.2,0.3").mean == (0.1, 0.2, 0.3)


def test_what_the_source_says_is_the_base_unless_a_preset_is_named() -> None:
    base = Preprocess(interpolation="box")
    assert preprocess("--crop", "24", base=base) == Preprocess(interpolation="box", crop=24)
    assert preprocess("--preprocess", "raw", base=base) == PRESETS["raw"]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--resize", "big"),
        ("--resize", "1x2x3"),
        ("--resize", "-5"),
        ("--crop", "320x224"),
        ("--mean", "a,b"),
        ("--mean", "nan"),
        ("--std", "1/0"),
        ("--mean", ""),
        ("--preprocess", "resnet"),
        ("--count", "0"),
        ("--workers", "0"),
        ("--max-broken", "-1"),
    ],
)
def test_values_that_make_no_sense_are_refused(option: str, value: str) -> None:
    with pytest.raises(click.BadParameter) as refused:
        chosen(option, value)
    assert option in refused.value.format_message()


@pytest.mark.parametrize(
    "args",
    [("--resize", "100", "--crop", "224"), ("--mean", "1,2"), ("--std", "0"), ("--crop", "0")],
)
def test_values_that_make_no_sense_together_are_refused(args: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        preprocess(*args)


def test_how_files_are_read_is_chosen() -> None:
    got = image_options.reading(chosen("--workers", "3", "--max-broken", "0"))
    assert got == Reading(workers=3, max_broken=0)

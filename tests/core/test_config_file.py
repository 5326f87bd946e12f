"""Settings files are strict, report all errors with their lines, and are written completely."""

from pathlib import Path

import pytest

from qconvert.core import config_file
from qconvert.core.config import Config, keys_at, keyword_settings, option_table, type_name
from qconvert.core.errors import UsageError

WRONG = """\
model = 3                      # line 1
[export]
opset = "x"
batchh = 3
"parity-tolerance" = -1.0
inputs = [
  "image:1x3",
  4,
]
[prepar]
skip = 1
"""


def problems(text: str, folder: Path) -> tuple[str, ...]:
    (folder / "q.toml").write_text(text)
    with pytest.raises(UsageError) as caught:
        config_file.load(folder / "q.toml")
    return caught.value.details


def test_invalid_settings_are_all_reported_with_their_lines(tmp_path: Path) -> None:
    assert problems(WRONG, tmp_path) == (
        "line 1: model: Input should be a valid string",
        "line 3: export.opset: Input should be a valid integer",
        "line 4: export.batchh: unknown setting; did you mean `batch`?",
        "line 5: export.parity-tolerance: Input should be greater than 0",
        "line 6: export.inputs: Input should be a valid string",
        "line 10: prepar: unknown setting; did you mean `prepare`?",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('opset = "21"', "Input should be a valid integer"),
        ("opset = 21.0", "Input should be a valid integer"),
        ('batch = "many"', "Input should be 'dynamic', or: Input should be a valid integer"),
        ("batch = true", "Input should be 'dynamic', or: Input should be a valid integer"),
        ("parity-tolerance = inf", "Input should be less than 1"),
        ('inputs = "x"', "Input should be a list"),
        ("parity_inputs = 9", "unknown setting; did you mean `parity-inputs`?"),
    ],
)
def test_value_of_another_type_is_not_converted(tmp_path: Path, text: str, message: str) -> None:
    key = text.partition(" ")[0]
    (problem,) = problems(f"[export]\n{text}\n", tmp_path)
    assert problem == f"line 2: export.{key}: {message}"


def test_value_in_place_of_a_table_is_rejected(tmp_path: Path) -> None:
    assert problems("export = 3\n", tmp_path) == ("line 1: export: Input should be a table",)
    with pytest.raises(UsageError, match="`model` is a value, not a table"):
        config_file.load(None, {"model": "a.onnx", "model.name": "b"})


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf[export]\nopset = 21\n")
    assert config_file.load(tmp_path / "bom.toml").export.opset == 21


def test_lines_inside_a_multi_line_string_are_not_keys(tmp_path: Path) -> None:
    text = 'model = """\n[export]\nopset = 3\n"""\n[export]\nopset = "y"\n'
    (problem,) = problems(text, tmp_path)
    assert problem.startswith("line 6: export.opset")


def test_error_on_the_command_line_says_so() -> None:
    with pytest.raises(UsageError) as caught:
        config_file.load(None, {"export.opset": 3, "export.nonsense": 1})
    assert caught.value.details == (
        "export.nonsense: unknown setting",
        "export.opset: Input should be greater than or equal to 18",
    )
    with pytest.raises(UsageError) as caught:
        config_file.load(None, {"a.b.c": 3})
    assert caught.value.details == ("a: unknown setting",)


def test_error_names_the_file_only_if_it_is_wrong_too(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text("[export]\nopset = 21\n")
    with pytest.raises(UsageError, match=r"^command line: 1 setting is wrong"):
        config_file.load(file, {"gate.max-drop": -1})
    file.write_text("[export]\nopset = 3\n")
    with pytest.raises(UsageError, match=r"q\.toml: 2 settings are wrong") as caught:
        config_file.load(file, {"gate.max-drop": -1})
    assert [text.partition(": ")[0] for text in caught.value.details] == ["line 2", "command line"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"model = \n", "not valid TOML: .*line 1, column 9"),
        (b"[export]\nopset = [\n", "not valid TOML: Invalid value .*line 2, the end"),
        (b"a = " + b"[" * 3000, "not valid TOML"),
        (b"\xff\xfe\x00", "cannot be read"),
        (None, "does not exist"),
    ],
)
def test_unreadable_file_is_rejected(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "q.toml").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        config_file.load(tmp_path / "q.toml")


def test_command_line_overrides_the_file(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text("[export]\nopset = 21\nparity-inputs = 9\n")
    loaded = config_file.load(file, {"export.opset": 22})
    assert (loaded.export.opset, loaded.export.parity_inputs) == (22, 9)


def test_paths_in_a_file_are_relative_to_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    file = folder / "q.toml"
    file.write_text('model = "net.onnx"\n[export]\nweights = "w.pt"\n')
    loaded = config_file.load(file)
    assert loaded.model == str(folder / "net.onnx")
    assert loaded.export.weights == str(folder / "w.pt")
    file.write_text('model = "timm:resnet18"\n[export]\nweights = "random"\n')
    assert config_file.load(file).model == "timm:resnet18"
    assert config_file.load(file).export.weights == "random"


def test_assignment_is_toml_or_text() -> None:
    read = config_file.parse_assignments(
        ("export.opset=21", "model=a b.onnx", 'prepare.skip=["names"]')
    )
    two_lines = config_file.parse_assignments(("export.opset=21\nx=3",))
    assert two_lines == {"export.opset": "21\nx=3"}
    assert read == {"export.opset": 21, "model": "a b.onnx", "prepare.skip": ["names"]}
    with pytest.raises(UsageError, match="not KEY=VALUE"):
        config_file.parse_assignments(("opset",))


def test_written_settings_are_read_back_unchanged(tmp_path: Path) -> None:
    loaded = config_file.load(
        None, {"model": "a.onnx", "export.batch": 4, "prepare.skip": ["names"]}
    )
    file = tmp_path / "effective.toml"
    file.write_text(config_file.dumps(loaded).replace("a.onnx", str(tmp_path / "a.onnx")))
    reloaded = config_file.load(file)
    assert (reloaded.export, reloaded.prepare) == (loaded.export, loaded.prepare)


def test_commented_file_contains_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text(config_file.commented_toml(None))
    assert config_file.load(file) == Config()
    text = config_file.commented_toml("m.onnx").partition("\n")[2]
    lines = [line.removeprefix("# ").split("  # ")[0].rstrip() for line in text.splitlines()]
    file.write_text("\n".join(line for line in lines if not line.endswith("=")))
    assert config_file.load(file) == Config(model=str(tmp_path / "m.onnx"))


def test_labels_of_a_base_do_not_apply_to_other_images(tmp_path: Path) -> None:
    images, labels = tmp_path / "val", tmp_path / "labels.csv"
    base = config_file.load(None, {"evaluate.images": str(images), "evaluate.labels": str(labels)})
    same = config_file.load(None, {"evaluate.images": images}, base=base)
    other = config_file.load(None, {"evaluate.images": tmp_path / "other"}, base=base)
    assert (same.evaluate.labels, other.evaluate.labels) == (labels, None)


def test_absolute_paths_leave_names_and_absolute_paths_unchanged(tmp_path: Path) -> None:
    relative = config_file.load(None, {"model": "a.onnx", "calibration.images": tmp_path})
    absolute = config_file.absolute_paths(relative)
    assert absolute.model == str(Path("a.onnx").absolute())
    assert absolute.calibration.images == tmp_path
    named = config_file.load(None, {"model": "timm:resnet18", "export.weights": "random"})
    assert config_file.absolute_paths(named) == named


# --- the table of options ---


@pytest.mark.parametrize(
    ("path", "words", "keyword"),
    [
        ("export.inputs", "list of str", "inputs"),
        ("export.batch", '"dynamic" or int', "batch"),
        ("evaluate.images", "Path", "eval"),
        ("build.profile", "list of int", "profile"),
        ("quantize.keep", 'list of "first" or "last"', "keep"),
    ],
)
def test_option_has_a_type_in_words_and_a_keyword(path: str, words: str, keyword: str) -> None:
    assert type_name(option_table()[path].type) == words
    assert option_table()[path].keyword == keyword
    assert keyword_settings()[keyword] == path


def test_keys_are_listed_for_tables_only() -> None:
    assert "calibration" in keys_at(())
    assert keys_at(("calibration",)) == ["images", "count", "seed", "max-broken", "exact"]
    assert keys_at(("calibration", "count")) == keys_at(("nothing",)) == []

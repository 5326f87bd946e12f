"""Settings: strict, all mistakes at once, with lines; printed back whole."""

from pathlib import Path

import pytest

from qconvert.core import config, config_file
from qconvert.core.errors import UsageError
from qconvert.core.option_table import option_table

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


def problems(text: str, folder: Path, **given: object) -> tuple[str, ...]:
    file = folder / "q.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        config_file.load(file, given)
    return caught.value.details


def test_all_mistakes_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    assert problems(WRONG, tmp_path) == (
        "line 1: model: Input should be a valid string",
        "line 3: export.opset: Input should be a valid integer",
        "line 4: export.batchh: unknown setting; did you mean `batch`?",
        "line 5: export.parity-tolerance: Input should be greater than 0",
        "line 6: export.inputs: Input should be a valid string",
        "line 10: prepar: unknown setting; did you mean `prepare`?",
    )


def test_a_value_of_two_possible_kinds_is_one_mistake(tmp_path: Path) -> None:
    (only,) = problems('[export]\nbatch = "many"\n', tmp_path)
    assert only.startswith("line 2: export.batch: Input should be 'dynamic', or: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('opset = "21"', "valid integer"),
        ("opset = 21.0", "valid integer"),
        ("batch = true", "valid integer"),
        ("parity-tolerance = inf", "less than 1"),
        ('inputs = "x"', "should be a list"),
        ("parity_inputs = 9", "unknown setting; did you mean `parity-inputs`?"),
    ],
)
def test_a_value_of_the_wrong_kind_is_not_bent_into_the_right_one(
    tmp_path: Path, text: str, said: str
) -> None:
    (only,) = problems(f"[export]\n{text}\n", tmp_path)
    assert said in only
    assert only.startswith("line 2: ")


def test_a_table_is_a_table_and_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    assert problems("export = 3\n", tmp_path) == ("line 1: export: Input should be a table",)
    (tmp_path / "bom.toml").write_bytes(b"\xef\xbb\xbf[export]\nopset = 21\n")
    assert config_file.load(tmp_path / "bom.toml").export.opset == 21
    (tmp_path / "deep.toml").write_text("a = " + "[" * 3000)
    with pytest.raises(UsageError, match="not valid TOML"):
        config_file.load(tmp_path / "deep.toml")


def test_a_key_inside_a_multi_line_string_is_no_key(tmp_path: Path) -> None:
    text = 'model = """\n[export]\nopset = 3\n"""\n[export]\nopset = "y"\n'
    (only,) = problems(text, tmp_path)
    assert only.startswith("line 6: export.opset")


def test_a_mistake_on_the_command_line_says_so() -> None:
    with pytest.raises(UsageError) as caught:
        config_file.load(None, {"export.opset": 3, "export.nonsense": 1})
    assert caught.value.details == (
        "command line: export.nonsense: unknown setting",
        "command line: export.opset: Input should be greater than or equal to 18",
    )
    with pytest.raises(UsageError) as caught:
        config_file.load(None, {"a.b.c": 3})
    assert caught.value.details == ("command line: a: unknown setting",)


def test_a_file_is_named_only_where_it_is_wrong_too(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text("[export]\nopset = 21\n")
    with pytest.raises(UsageError, match=r"^command line: 1 setting is wrong"):
        config_file.load(file, {"gate.max-drop": -1})
    file.write_text("[export]\nopset = 3\n")
    with pytest.raises(UsageError, match=r"q\.toml: 2 settings are wrong"):
        config_file.load(file, {"gate.max-drop": -1})


def test_broken_toml_names_the_place(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text("model = \n")
    with pytest.raises(UsageError, match=r"not valid TOML: .*line 1, column 9"):
        config_file.load(file)


def test_a_missing_or_binary_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        config_file.load(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="cannot be read"):
        config_file.load(tmp_path / "b.toml")


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text("[export]\nopset = 21\nparity-inputs = 9\n")
    loaded = config_file.load(file, {"export.opset": 22})
    assert (loaded.export.opset, loaded.export.parity_inputs) == (22, 9)


def test_paths_in_a_file_start_at_the_file(tmp_path: Path) -> None:
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


def test_assignments_are_toml_or_text() -> None:
    read = config_file.parse_assignments(
        ("export.opset=21", "model=a b.onnx", 'prepare.skip=["names"]')
    )
    two_lines = config_file.parse_assignments(("export.opset=21\nx=3",))
    assert two_lines == {"export.opset": "21\nx=3"}
    assert read == {"export.opset": 21, "model": "a b.onnx", "prepare.skip": ["names"]}
    with pytest.raises(UsageError, match="not KEY=VALUE"):
        config_file.parse_assignments(("opset",))


def test_an_assignment_below_a_value_is_refused() -> None:
    with pytest.raises(UsageError, match="`model` is a value, not a table"):
        config_file.load(None, {"model": "a.onnx", "model.name": "b"})


def test_the_effective_settings_read_back_the_same(tmp_path: Path) -> None:
    loaded = config_file.load(
        None, {"model": "a.onnx", "export.batch": 4, "prepare.skip": ["names"]}
    )
    file = tmp_path / "effective.toml"
    file.write_text(config_file.dumps(loaded).replace("a.onnx", str(tmp_path / "a.onnx")))
    again = config_file.load(file)
    assert again.export == loaded.export
    assert again.prepare == loaded.prepare


def test_the_commented_file_is_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "q.toml"
    file.write_text(config_file.commented_toml(None))
    assert config_file.load(file) == config.Config()
    lines = [line.removeprefix("# ").split("  # ")[0].rstrip() for line in _lines("m.onnx")]
    file.write_text("\n".join(line for line in lines if not line.endswith("=")))
    assert config_file.load(file) == config.Config(model=str(tmp_path / "m.onnx"))


def _lines(model: str) -> list[str]:
    """Return the settings and tables of the commented file, without its heading."""
    return config_file.commented_toml(model).splitlines()[1:]


def test_the_schema_knows_every_key() -> None:
    defined = config_file.settings_schema()["$defs"]
    assert set(defined["ExportConfig"]["properties"]) == {
        option.key for option in option_table().values() if option.table == "export"
    }
    assert defined["ExportConfig"]["additionalProperties"] is False
    assert all("description" in entry for entry in defined["GateConfig"]["properties"].values())

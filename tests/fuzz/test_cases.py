"""The first fuzz cases keep every rule; `make torture` runs thousands."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import cases, rules
from tests.fuzz.process import Ended

ROOT = Path(__file__).parents[2]
GOOD = Ended(3, "", "error: it is broken\n", 1.0, 1 << 20, ())


@pytest.mark.long
def test_first_forty_cases_keep_every_rule() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "0", "40"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout[-4000:] + process.stderr[-2000:]
    assert process.stdout.splitlines()[-1] == "40 cases, 0 failed"


def test_case_of_a_number_is_reproducible(tmp_path: Path) -> None:
    (tmp_path / "seeds/val").mkdir(parents=True)
    (tmp_path / "seeds/val/labels.csv").write_text("file,label\na.png,1\nb.png,2\n" * 9)
    (tmp_path / "seeds/val/classes.txt").write_text("a\nb\nc\n" * 9)
    number = next(n for n in range(1000) if cases.kind_of(n) == "labels")
    copies = [cases.make(number, tmp_path / "seeds", tmp_path / name) for name in ("a", "b")]
    assert copies[0] == copies[1]
    assert rules.tree(tmp_path / "a", ()) == rules.tree(tmp_path / "b", ())
    assert rules.tree(tmp_path / "a", ("out", "tmp")) != rules.tree(tmp_path / "seeds", ())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"code": 70}, "it ended with code 70"),
        ({"code": -11}, "it died of signal 11"),
        ({"code": 5}, "it ended with code 5"),
        ({"code": 0}, "an error, and exit code 0"),
        ({"err": "it is broken\n"}, "no line begins with `error:`"),
        ({"err": "error: x\nTraceback (most recent call last)\n"}, "a traceback"),
        ({"err": "error: \x1b[2J\n"}, "a control character on stderr: '\\x1b'"),
        ({"out": "\x9b2J\n"}, "a control character on stdout: '\\x9b'"),
        ({"seconds": 31.0}, "it ran for more than 30 s"),
        ({"peak_bytes": 3 << 30}, "it held 3.0 GiB"),
        ({"outside": ("open '/etc/x'",)}, "it wrote outside: open '/etc/x'"),
    ],
)
def test_broken_rule_is_reported(changes: dict[str, object], message: str) -> None:
    ended = Ended(**{**GOOD.__dict__, **changes})
    assert rules.broken_rules(["export", "x.onnx"], GOOD, {}, {}) == []
    assert rules.broken_rules(["export", "x.onnx"], ended, {}, {}) == [message]


def test_changed_files_and_invalid_json_are_reported() -> None:
    assert rules.broken_rules(["inspect", "x"], GOOD, {"a": "1"}, {"a": "2", "b": "folder"}) == [
        "it changed `a`",
        "it changed `b`",
    ]
    good = Ended(0, '{"a": NaN}', "", 1.0, 1, ())
    assert rules.broken_rules(["inspect", "x", "--json"], good, {}, {}) == ["no JSON on stdout"]

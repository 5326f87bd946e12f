"""The first of the cases that `make torture` runs by the thousand: each keeps every rule."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz import cases, judge
from tests.fuzz.child import Ended

ROOT = Path(__file__).parents[2]
FINE = Ended(3, "", "error: it is broken\n", 1.0, 1 << 20, ())


def test_the_first_cases_keep_every_rule() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "0", "40"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "40 cases, 0 failed"


def test_a_case_is_the_same_each_time(tmp_path: Path) -> None:
    (tmp_path / "seeds/val").mkdir(parents=True)
    (tmp_path / "seeds/val/labels.csv").write_text("file,label\na.png,1\nb.png,2\n" * 9)
    (tmp_path / "seeds/val/classes.txt").write_text("a\nb\nc\n" * 9)
    number = next(n for n in range(1000) if cases.kind_of(n) == "labels")
    made = [cases.make(number, tmp_path / "seeds", tmp_path / name) for name in ("a", "b")]
    assert made[0] == made[1]
    assert judge.tree(tmp_path / "a", ()) == judge.tree(tmp_path / "b", ())
    assert judge.tree(tmp_path / "a", ("out", "tmp")) != judge.tree(tmp_path / "seeds", ())


@pytest.mark.parametrize(
    ("changed", "said"),
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
def test_every_broken_rule_is_noticed(changed: dict[str, object], said: str) -> None:
    ended = Ended(**{**FINE.__dict__, **changed})
    assert judge.faults(["export", "x.onnx"], FINE, {}, {}) == []
    assert judge.faults(["export", "x.onnx"], ended, {}, {}) == [said]


def test_changed_files_and_broken_json_are_noticed() -> None:
    assert judge.faults(["inspect", "x"], FINE, {"a": "1"}, {"a": "2", "b": "folder"}) == [
        "it changed `a`",
        "it changed `b`",
    ]
    good = Ended(0, '{"a": NaN}', "", 1.0, 1, ())
    assert judge.faults(["inspect", "x", "--json"], good, {}, {}) == ["no JSON on stdout"]

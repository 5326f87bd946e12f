"""The rules that every case must keep, whatever was damaged."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.process import BYTES, SECONDS, Ended

Tree = dict[str, str]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def tree(folder: Path, left_out: Sequence[str]) -> Tree:
    """Return the content of a folder by path: hashes of files, targets of links."""
    content: Tree = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.partition("/")[0] in left_out:
            continue
        if path.is_symlink():
            content[name] = f"link to {path.readlink()}"
        elif path.is_file():
            content[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            content[name] = "folder"
    return content


def broken_rules(arguments: Sequence[str], ended: Ended, before: Tree, after: Tree) -> list[str]:
    """Return the rules that a case broke."""
    problems = [*_exit_problems(ended), *_output_problems(arguments, ended)]
    problems += [f"it wrote outside: {event}" for event in ended.outside]
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return problems + [f"it changed `{name}`" for name in changed]


def _exit_problems(ended: Ended) -> list[str]:
    problems = []
    if ended.peak_bytes > BYTES:
        problems.append(f"it held {ended.peak_bytes / 2**30:.1f} GiB")
    elif ended.seconds > SECONDS:
        problems.append(f"it ran for more than {SECONDS:.0f} s")
    elif ended.code < 0:
        problems.append(f"it died of signal {-ended.code}")
    elif ended.code > 4:
        problems.append(f"it ended with code {ended.code}")
    return problems


def _output_problems(arguments: Sequence[str], ended: Ended) -> list[str]:
    problems = []
    error_line = re.search(r"^error: \S", ended.err, re.MULTILINE)
    if 1 < ended.code <= 4 and not error_line:
        problems.append("no line begins with `error:`")
    if ended.code == 0 and error_line:
        problems.append("an error, and exit code 0")
    if "Traceback (most recent call last)" in ended.err + ended.out:
        problems.append("a traceback")
    for stream, text in (("stderr", ended.err), ("stdout", ended.out)):
        if control := CONTROL.search(text):
            problems.append(f"a control character on {stream}: {control[0]!r}")
    if "--json" in arguments and ended.code in (0, 1) and not _is_json(ended.out):
        problems.append("no JSON on stdout")
    return problems


def _is_json(text: str) -> bool:
    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True

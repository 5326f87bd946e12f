"""What must hold of every case, whatever was spoiled."""

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz.child import BYTES, SECONDS, Ended

Tree = dict[str, str]
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def tree(folder: Path, passed_over: Sequence[str]) -> Tree:
    """Return what lies in a folder, by path: the hash of a file, or where a link leads."""
    found: Tree = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if name.partition("/")[0] in passed_over:
            continue
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "folder"
    return found


def faults(arguments: Sequence[str], ended: Ended, before: Tree, after: Tree) -> list[str]:
    """Return what is wrong with how a case ended; nothing where all is well."""
    found = [*_ending(ended), *_talk(arguments, ended)]
    found += [f"it wrote outside: {each}" for each in ended.outside]
    changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return found + [f"it changed `{name}`" for name in changed]


def _ending(ended: Ended) -> list[str]:
    found = []
    if ended.peak_bytes > BYTES:
        found.append(f"it held {ended.peak_bytes / 2**30:.1f} GiB")
    elif ended.seconds > SECONDS:
        found.append(f"it ran for more than {SECONDS:.0f} s")
    elif ended.code < 0:
        found.append(f"it died of signal {-ended.code}")
    elif ended.code > 4:
        found.append(f"it ended with code {ended.code}")
    return found


def _talk(arguments: Sequence[str], ended: Ended) -> list[str]:
    found = []
    said = re.search(r"^error: \S", ended.err, re.MULTILINE)
    if 1 < ended.code <= 4 and not said:
        found.append("no line begins with `error:`")
    if ended.code == 0 and said:
        found.append("an error, and exit code 0")
    if "Traceback (most recent call last)" in ended.err + ended.out:
        found.append("a traceback")
    for place, text in (("stderr", ended.err), ("stdout", ended.out)):
        if strange := CONTROL.search(text):
            found.append(f"a control character on {place}: {strange[0]!r}")
    if "--json" in arguments and ended.code in (0, 1) and not _is_json(ended.out):
        found.append("no JSON on stdout")
    return found


def _is_json(text: str) -> bool:
    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True

"""Runs cases by number, and tells which of them break a rule.

    python -m tests.fuzz 0 5000             all cases of a range
    python -m tests.fuzz 1234               one case, with all that it said
    python -m tests.fuzz 0 5000 --keep DIR  the folders of those that fail stay in DIR

Seeds and cases are made below `--work`, which is made anew. The last line says how many there were.
"""

import argparse
import collections
import importlib
import os
import pkgutil
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

from tests.fuzz import cases, child, judge

WRITABLE = ("out", "store", "tmp")
# What ONNX Runtime itself leaves among temporary files: the number of its session.
RUNTIMES = ".ses"
# These commands say that they write where they are told, or into the run that they are given.
INTO_RUN = ("bench", "evaluate", "build")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int, nargs="?")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", default=",".join(cases.MAKERS), help="kinds, with commas")
    parser.add_argument(
        "--seeds", type=Path, help="seeds that are there already, or are left there"
    )
    chosen = parser.parse_args()
    _import_all()
    with tempfile.TemporaryDirectory(prefix="qconvert-fuzz-") as work:
        root = Path(os.path.realpath(work))
        made = chosen.seeds or root / "seeds"
        if not made.exists():
            _made(made)
        alone = chosen.end is None
        numbers = range(chosen.first, chosen.first + 1 if alone else chosen.end)
        return _all(_only(numbers, chosen.only), made, root, chosen.keep, alone)


def _only(numbers: range, kinds: str) -> Sequence[int]:
    return [number for number in numbers if cases.kind_of(number) in kinds.split(",")]


def _all(numbers: Sequence[int], seeds: Path, root: Path, keep: Path | None, alone: bool) -> int:
    failed, codes = 0, collections.Counter[str]()
    slowest, largest = (0.0, -1), (0, -1)
    for number in numbers:
        folder = root / f"{number}"
        case = cases.make(number, seeds, folder)
        ended, wrong = _tried(case, folder)
        codes[f"{case.kind} {ended.code}"] += 1
        slowest, largest = (
            max(slowest, (ended.seconds, number)),
            max(largest, (ended.peak_bytes, number)),
        )
        if wrong or alone:
            failed += bool(wrong)
            _tell(case, ended, wrong, alone)
            if keep:
                shutil.rmtree(keep / str(number), ignore_errors=True)
                shutil.copytree(folder, keep / str(number), symlinks=True)
        shutil.rmtree(folder)
    _say("ended: " + ", ".join(f"{name}: {count}" for name, count in sorted(codes.items())))
    _say(f"slowest: {slowest[0]:.1f} s in case {slowest[1]}")
    _say(f"largest: {largest[0] / 2**20:.0f} MiB in case {largest[1]}")
    _say(f"{len(numbers)} cases, {failed} failed")
    return int(failed > 0)


def _tried(case: cases.Case, folder: Path) -> tuple[child.Ended, list[str]]:
    writable = [*WRITABLE]
    if case.kind == "run" and case.arguments[0] in INTO_RUN:
        writable.append("run")
    before = judge.tree(folder, writable)
    ended = child.run(case.arguments, folder, writable)
    wrong = judge.faults(case.arguments, ended, before, judge.tree(folder, writable))
    if left := sorted(path.name for path in (folder / "tmp").iterdir() if path.name != RUNTIMES):
        wrong += [f"it left `{name}` among the temporary files" for name in left]
    return ended, wrong


def _tell(case: cases.Case, ended: child.Ended, wrong: list[str], alone: bool) -> None:
    _say(f"case {case.number} ({case.kind}): qconvert {' '.join(case.arguments)}")
    for each in wrong:
        _say(f"  {each}")
    _say(f"  code {ended.code}, {ended.seconds:.1f} s, {ended.peak_bytes / 2**20:.0f} MiB")
    text = ended.out + ended.err if alone else ended.err[-1500:]
    for line in text.splitlines():
        _say(f"  | {line}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _made(root: Path) -> None:
    """Make the seeds in a process of their own, so that this one has no threads to copy."""
    process = os.fork()
    if process == 0:
        from tests.fuzz import seeds

        code, nothing = 1, os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        try:
            seeds.make(root)
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise SystemExit("the seeds could not be made")


def _import_all() -> None:
    """Import what any case may need, once for all of them."""
    import qconvert

    for found in pkgutil.walk_packages(qconvert.__path__, "qconvert."):
        if not found.name.startswith(("qconvert.sources.torch", "qconvert.__main__")):
            importlib.import_module(found.name)
    for name in ("tensorrt_rtx", "tests.fuzz.seeds", "onnxslim", "rich.table", "matplotlib.figure"):
        importlib.import_module(name)
    warnings.resetwarnings()


if __name__ == "__main__":
    sys.exit(main())

"""Run cases by number, and print which of them break a rule.

    python -m tests.fuzz 0 5000             all cases of a range
    python -m tests.fuzz 1234               one case with all its output
    python -m tests.fuzz 0 5000 --keep DIR  keep the folders of failed cases in DIR

The last line counts the cases and the failures.
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

from tests.fuzz import cases, process, rules

WRITABLE = ("out", "store", "tmp")
# ONNX Runtime leaves this file, with the number of its session.
ORT_SESSION_FILE = ".ses"
# Commands that write into the run they get.
WRITES_INTO_RUN = ("bench", "evaluate", "build")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first", type=int)
    parser.add_argument("end", type=int, nargs="?")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--only", default=",".join(cases.CASES), help="kinds, with commas")
    parser.add_argument(
        "--seeds", type=Path, help="existing seeds, or a folder to keep new ones in"
    )
    options = parser.parse_args()
    _import_run_all()
    with tempfile.TemporaryDirectory(prefix="qconvert-fuzz-") as work:
        root = Path(os.path.realpath(work))
        seeds = options.seeds or root / "seeds"
        if not seeds.exists():
            _make_seeds(seeds)
        alone = options.end is None
        numbers = range(options.first, options.first + 1 if alone else options.end)
        return _run_all(_of_kinds(numbers, options.only), seeds, root, options.keep, alone)


def _of_kinds(numbers: range, kinds: str) -> Sequence[int]:
    return [number for number in numbers if cases.kind_of(number) in kinds.split(",")]


def _run_all(
    numbers: Sequence[int], seeds: Path, root: Path, keep: Path | None, alone: bool
) -> int:
    failed, codes = 0, collections.Counter[str]()
    slowest, largest = (0.0, -1), (0, -1)
    for number in numbers:
        folder = root / f"{number}"
        case = cases.make(number, seeds, folder)
        ended, problems = _run_case(case, folder)
        codes[f"{case.kind} {ended.code}"] += 1
        slowest, largest = (
            max(slowest, (ended.seconds, number)),
            max(largest, (ended.peak_bytes, number)),
        )
        if problems or alone:
            failed += bool(problems)
            _print_case(case, ended, problems, alone)
            if keep:
                shutil.rmtree(keep / str(number), ignore_errors=True)
                shutil.copytree(folder, keep / str(number), symlinks=True)
        shutil.rmtree(folder)
    _print("ended: " + ", ".join(f"{name}: {count}" for name, count in sorted(codes.items())))
    _print(f"slowest: {slowest[0]:.1f} s in case {slowest[1]}")
    _print(f"largest: {largest[0] / 2**20:.0f} MiB in case {largest[1]}")
    _print(f"{len(numbers)} cases, {failed} failed")
    return int(failed > 0)


def _run_case(case: cases.Case, folder: Path) -> tuple[process.Ended, list[str]]:
    writable = [*WRITABLE]
    if case.kind == "run" and case.arguments[0] in WRITES_INTO_RUN:
        writable.append("run")
    before = rules.tree(folder, writable)
    ended = process.run(case.arguments, folder, writable)
    problems = rules.broken_rules(case.arguments, ended, before, rules.tree(folder, writable))
    if left := sorted(
        path.name for path in (folder / "tmp").iterdir() if path.name != ORT_SESSION_FILE
    ):
        problems += [f"it left `{name}` among the temporary files" for name in left]
    return ended, problems


def _print_case(case: cases.Case, ended: process.Ended, problems: list[str], alone: bool) -> None:
    _print(f"case {case.number} ({case.kind}): qconvert {' '.join(case.arguments)}")
    for problem in problems:
        _print(f"  {problem}")
    _print(f"  code {ended.code}, {ended.seconds:.1f} s, {ended.peak_bytes / 2**20:.0f} MiB")
    text = ended.out + ended.err if alone else ended.err[-1500:]
    for line in text.splitlines():
        _print(f"  | {line}")


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _make_seeds(root: Path) -> None:
    """Make the seeds in a subprocess, so that this one has no threads when it forks."""
    process = os.fork()
    if process == 0:
        from tests.fuzz import seeds

        code, null = 1, os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        try:
            seeds.make(root)
            code = 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(process, 0)[1]:
        raise SystemExit("the seeds could not be made")


def _import_run_all() -> None:
    """Import everything that a case may need, once."""
    import qconvert

    for module in pkgutil.walk_packages(qconvert.__path__, "qconvert."):
        if not module.name.startswith(("qconvert.sources.torch", "qconvert.__main__")):
            importlib.import_module(module.name)
    for name in ("tensorrt_rtx", "tests.fuzz.seeds", "onnxslim", "rich.table", "matplotlib.figure"):
        importlib.import_module(name)
    warnings.resetwarnings()


if __name__ == "__main__":
    sys.exit(main())

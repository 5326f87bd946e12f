"""Run the zoo, each network in a process of its own, and write its table.

    python -m benchmarks.zoo                       # what is not in the results yet
    python -m benchmarks.zoo NAME NAME             # these, again
    python -m benchmarks.zoo --write               # only the table, from the results there are
    python -m benchmarks.zoo --list

Results are one line of JSON a network, in WORK/results.jsonl, written as soon as it is through.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.zoo import page
from benchmarks.zoo.catalogue import catalogue
from benchmarks.zoo.trial import trial

SECONDS = 600


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo")
    parser.add_argument("names", nargs="*", help="networks; default: those without a result")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "qconvert-zoo")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="limit of one network")
    parser.add_argument("--effort", default="none", help="none, quick, default or thorough")
    parser.add_argument("--family", help="only these: timm, transformers, graphs, packages")
    parser.add_argument("--keep", action="store_true", help="keep what was made")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--write", action="store_true", help="only write the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    entries = catalogue(given.work)
    if given.one:
        effort = ("--effort", given.effort, *entries[given.one].options)
        print(
            json.dumps(
                trial(
                    given.one, replace(entries[given.one], options=effort), given.work / given.one
                )
            )
        )
        return 0
    if given.list:
        print("\n".join(f"{each.family:14}{name}" for name, each in entries.items()))
        return 0
    results = given.work / "results.jsonl"
    known = read(results)
    wanted = given.names or [name for name in entries if name not in known]
    wanted = [n for n in wanted if given.family in (None, entries[n].family) and not given.write]
    for number, name in enumerate(wanted):
        print(f"{number + 1}/{len(wanted)} {name}", flush=True)
        found = tried(name, given)
        with results.open("a") as file:
            file.write(json.dumps(found) + "\n")
        print(f"    {shown(found)}", flush=True)
    if not given.names and not given.family:
        page.write(read(results), list(entries))
        print(f"{page.PAGE} written from {results}")
    return 0


def tried(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """Run one network in a process of its own; what takes too long is ended, with its children."""
    folder = given.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    asked = ["--work", str(given.work), "--one", name, "--effort", given.effort]
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.zoo", *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=given.seconds)
        found: dict[str, Any] = json.loads(out.splitlines()[-1])
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        found = {"name": name, "died": f"took more than {given.seconds} s"}
    except (IndexError, ValueError):
        found = {"name": name, "died": f"code {child.returncode}: {err[-300:]}"}
    found.setdefault("seconds", round(time.monotonic() - started, 1))
    if not given.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return found


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Return the last result of every network."""
    lines = results.read_text().splitlines() if results.is_file() else []
    return {found["name"]: found for found in map(json.loads, lines)}


def shown(found: dict[str, Any]) -> str:
    """Return a result in a line."""
    if "died" in found:
        return f"died: {found['died']}"
    wrong = {step: each for step, each in found["steps"].items() if each["code"]}
    parts = [f"{found['seconds']:.0f} s"]
    for name, each in found["variants"].items():
        sqnr = each["sqnr_db"]
        parts.append(f"{name} {'=' if sqnr is None else f'{sqnr:.1f}'}")
    parts += [f"\n    {step}: {each['code']} {each['said']}" for step, each in wrong.items()]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())

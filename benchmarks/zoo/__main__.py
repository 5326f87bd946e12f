"""Run the zoo, each network in its own process, and write its table.

    python -m benchmarks.zoo                       # all networks without a result
    python -m benchmarks.zoo NAME NAME             # these networks, again
    python -m benchmarks.zoo --write               # only the table, from existing results
    python -m benchmarks.zoo --list

Each network appends one line of JSON to WORK/results.jsonl as soon as it finishes.
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
    parser.add_argument("--keep", action="store_true", help="keep the folders of networks")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--write", action="store_true", help="only write the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    entries = catalogue(arguments.work)
    if arguments.one:
        effort = ("--effort", arguments.effort, *entries[arguments.one].options)
        entry = replace(entries[arguments.one], options=effort)
        print(json.dumps(trial(arguments.one, entry, arguments.work / arguments.one)))
        return 0
    if arguments.list:
        print("\n".join(f"{entry.family:14}{name}" for name, entry in entries.items()))
        return 0
    results = arguments.work / "results.jsonl"
    finished = read(results)
    names = arguments.names or [name for name in entries if name not in finished]
    names = [
        n for n in names if arguments.family in (None, entries[n].family) and not arguments.write
    ]
    for number, name in enumerate(names):
        print(f"{number + 1}/{len(names)} {name}", flush=True)
        result = run_in_process(name, arguments)
        with results.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(f"    {format_result(result)}", flush=True)
    if not arguments.names and not arguments.family:
        page.write(read(results), list(entries))
        print(f"{page.PAGE} written from {results}")
    return 0


def run_in_process(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one network in its own process; after the time limit, kill it with its children."""
    folder = arguments.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    started = time.monotonic()
    words = ["--work", str(arguments.work), "--one", name, "--effort", arguments.effort]
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.zoo", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = child.communicate(timeout=arguments.seconds)
        result: dict[str, Any] = json.loads(out.splitlines()[-1])
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        result = {"name": name, "failure": f"took more than {arguments.seconds} s"}
    except (IndexError, ValueError):
        result = {"name": name, "failure": f"code {child.returncode}: {err[-300:]}"}
    result.setdefault("seconds", round(time.monotonic() - started, 1))
    if not arguments.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return result


def read(results: Path) -> dict[str, dict[str, Any]]:
    """Return the last result of every network."""
    lines = results.read_text().splitlines() if results.is_file() else []
    return {result["name"]: result for result in map(json.loads, lines)}


def format_result(result: dict[str, Any]) -> str:
    """Return a result as one line."""
    if "failure" in result:
        return f"died: {result['failure']}"
    failed = {step: outcome for step, outcome in result["steps"].items() if outcome["code"]}
    parts = [f"{result['seconds']:.0f} s"]
    for name, outcome in result["variants"].items():
        sqnr = outcome["sqnr_db"]
        parts.append(f"{name} {'=' if sqnr is None else f'{sqnr:.1f}'}")
    parts += [
        f"\n    {step}: {outcome['code']} {outcome['error']}" for step, outcome in failed.items()
    ]
    return ", ".join(parts)


if __name__ == "__main__":
    sys.exit(main())

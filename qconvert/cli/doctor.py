"""`qconvert doctor`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from qconvert.cli import console, options
from qconvert.cli.console import Column, Table

if TYPE_CHECKING:
    from qconvert.backends.base import Availability
    from qconvert.backends.installed import Installed

EXAMPLES = """\b
Examples:
  qconvert doctor
  qconvert doctor --json"""


@click.command(epilog=EXAMPLES)
@options.as_json
@options.talk
def command(as_json: bool) -> None:
    """Show which backends build and run here, why not, and the command that mends it."""
    from qconvert.backends import BACKENDS, installed, probe

    here = installed.look()
    found = {name: probe(name, here) for name in BACKENDS}
    if as_json:
        console.data_json(_as_json(here, found))
        return
    console.data_table(_table(found))
    console.data("")
    for line in _also(here):
        console.data(line)
    cures = [f"  {name:<13}{each.cure}" for name, each in found.items() if each.cure]
    if cures:
        console.data("\nto mend:")
        console.data("\n".join(cures))


def _table(found: Mapping[str, "Availability"]) -> Table:
    columns = [
        Column("backend"),
        Column("builds"),
        Column("runs"),
        Column("version", wrap=True),
        Column("why not", wrap=True),
    ]
    rows = [
        [name, _yes(each.builds), _yes(each.runs), each.version, each.reason]
        for name, each in found.items()
    ]
    return Table(columns, rows)


def _also(here: "Installed") -> list[str]:
    """Say what decides more than one backend."""
    torch = (
        here.version("torch")
        or 'not installed; only export needs it: pip install "qconvert[torch]"'
    )
    lines = [f"torch          {torch}"]
    for gpu in here.gpus:
        lines.append(
            f"GPU            {gpu.name}, compute capability {gpu.capability[0]}.{gpu.capability[1]}"
        )
    if len(here.runtimes) > 1:
        names = " and ".join(here.runtimes)
        lines += [
            f"conflict       {names} are both installed; they write the same files",
            f"               pip uninstall -y {' '.join(here.runtimes)}",
            '               pip install "qconvert[cpu]"   # or [cuda], or [tensorrt]',
        ]
    return lines


def _yes(works: bool) -> str:
    return "yes" if works else "no"


def _as_json(here: "Installed", found: Mapping[str, "Availability"]) -> dict[str, object]:
    from dataclasses import asdict

    return {
        "backends": {name: asdict(each) for name, each in found.items()},
        "torch": here.version("torch") or None,
        "gpus": [asdict(gpu) for gpu in here.gpus],
        "conflicts": list(here.runtimes) if len(here.runtimes) > 1 else [],
    }

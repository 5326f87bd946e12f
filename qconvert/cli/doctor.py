"""`qconvert doctor`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from qconvert.cli import console, options
from qconvert.report.table import TextColumn, TextTable

if TYPE_CHECKING:
    from qconvert.backends.base import Availability
    from qconvert.backends.system_probe import Installed

EXAMPLES = """\b
Examples:
  qconvert doctor
  qconvert doctor --json"""


@click.command(epilog=EXAMPLES)
@options.json_option
@options.verbosity_options
def command(as_json: bool) -> None:
    """Show which backends build and run here, why not, and the command that mends it."""
    from qconvert.backends import BACKENDS, probe, system_probe

    here = system_probe.detect()
    found = {name: probe(name, here) for name in BACKENDS}
    if as_json:
        console.write_json(_as_json(here, found))
        return
    console.write_table(_table(found))
    console.write("")
    for line in _also(here):
        console.write(line)
    cures = [f"  {name:<13}{each.cure}" for name, each in found.items() if each.cure]
    if cures:
        console.write("\nto mend:")
        console.write("\n".join(cures))


def _table(found: Mapping[str, "Availability"]) -> TextTable:
    columns = [
        TextColumn("backend"),
        TextColumn("builds"),
        TextColumn("runs"),
        TextColumn("version", wrap=True),
        TextColumn("why not", wrap=True),
    ]
    rows = [
        [name, _yes(each.builds), _yes(each.runs), each.version, each.reason]
        for name, each in found.items()
    ]
    return TextTable(columns, rows)


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

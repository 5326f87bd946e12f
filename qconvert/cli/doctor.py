"""`qconvert doctor`."""

from collections.abc import Mapping
from dataclasses import asdict
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
    """Show which backends build and run here, why not, and the command that fixes it."""
    from qconvert.backends import BACKENDS, probe, system_probe

    system = system_probe.detect()
    backends = {name: probe(name, system) for name in BACKENDS}
    if as_json:
        console.write_json(
            {
                "backends": {name: asdict(state) for name, state in backends.items()},
                "torch": system.packages.get("torch"),
                "gpus": [asdict(gpu) for gpu in system.gpus],
                "conflicts": list(system.runtimes) if len(system.runtimes) > 1 else [],
            }
        )
        return
    _show_backends(backends)
    console.write("")
    for line in _system_lines(system):
        console.write(line)
    fixes = [f"  {name:<13}{state.cure}" for name, state in backends.items() if state.cure]
    if fixes:
        console.write("\n".join(["\nto fix:", *fixes]))


def _show_backends(backends: Mapping[str, "Availability"]) -> None:
    columns = [
        *map(TextColumn, ("backend", "builds", "runs")),
        TextColumn("version", wrap=True),
        TextColumn("why not", wrap=True),
    ]
    answer = {True: "yes", False: "no"}
    rows = [
        [name, answer[state.builds], answer[state.runs], state.version, state.reason]
        for name, state in backends.items()
    ]
    console.write_table(TextTable(columns, rows))


def _system_lines(system: "Installed") -> list[str]:
    """Describe what concerns more than one backend: PyTorch, GPUs, conflicting packages."""
    missing = 'not installed; only export needs it: pip install "qconvert[torch]"'
    lines = [f"torch          {system.packages.get('torch', missing)}"]
    for gpu in system.gpus:
        major, minor = gpu.capability
        lines.append(f"GPU            {gpu.name}, compute capability {major}.{minor}")
    if len(system.runtimes) > 1:
        names = " and ".join(system.runtimes)
        lines += [
            f"conflict       {names} are both installed; they write the same files",
            f"               pip uninstall -y {' '.join(system.runtimes)}",
            '               pip install "qconvert[cpu]"   # or [cuda], or [tensorrt]',
        ]
    return lines

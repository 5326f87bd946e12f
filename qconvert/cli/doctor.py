"""`qconvert doctor`."""

from dataclasses import asdict

from qconvert.cli import console, options
from qconvert.core.pip_command import pip_install
from qconvert.report.table import TextTable, text_columns


@options.command("qconvert doctor", "qconvert doctor --json")
@options.json_option
def command(as_json: bool) -> None:
    """Show which backends build and run here, why not, and the command that fixes it."""
    from qconvert.backends import BACKENDS, probe, system_probe

    system = system_probe.detect()
    backends = {name: probe(name, system) for name in BACKENDS}
    conflicts = list(system.runtimes) if len(system.runtimes) > 1 else []
    if as_json:
        console.write_json(
            {
                "backends": {name: asdict(state) for name, state in backends.items()},
                "torch": system.packages.get("torch"),
                "gpus": [asdict(gpu) for gpu in system.gpus],
                "conflicts": conflicts,
            }
        )
        return
    columns = [
        *text_columns("backend", "builds", "runs"),
        *text_columns("version", "why not", wrap=True),
    ]
    yes_no = {True: "yes", False: "no"}
    rows = [
        [name, yes_no[state.builds], yes_no[state.runs], state.version, state.reason]
        for name, state in backends.items()
    ]
    console.write_table(TextTable(columns, rows))
    missing = f"not installed; only export needs it: {pip_install('torch')}"
    lines = ["", f"torch          {system.packages.get('torch', missing)}"]
    for gpu in system.gpus:
        major, minor = gpu.capability
        lines.append(f"GPU            {gpu.name}, compute capability {major}.{minor}")
    if conflicts:
        names = " and ".join(conflicts)
        lines += [
            f"conflict       {names} are both installed; they write the same files",
            f"               pip uninstall -y {' '.join(conflicts)}",
            f"               {pip_install('cpu')}   # or [cuda], or [tensorrt]",
        ]
    fixes = [f"  {name:<13}{state.cure}" for name, state in backends.items() if state.cure]
    if fixes:
        lines += ["", "to fix:", *fixes]
    console.write("\n".join(lines))

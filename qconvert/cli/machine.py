"""Commands on this machine: `doctor` and `cache`."""

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qconvert.cli import console, options
from qconvert.core.errors import GateFailed, UsageError, did_you_mean
from qconvert.core.pip_command import pip_install
from qconvert.report.table import MISSING, TextTable, make_columns, optional_cell

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qconvert.backends.base import Availability
    from qconvert.backends.system_probe import Installed
    from qconvert.demo.proof import Proof


@options.command("qconvert doctor", "qconvert doctor --json", "qconvert doctor --prove")
@options.flag(
    "--prove", "Build, time and score the demo network in each precision on each backend."
)
@options.repeated("--backend", "chosen", "NAME", "Prove only these backends.")
@options.output(
    "Folder for what --prove makes.", options.FOLDER, default="qconvert-proof", show_default=True
)
@options.json_option
def doctor_command(prove: bool, chosen: tuple[str, ...], output: Path, *, as_json: bool) -> None:
    """Show which backends build and run here, why not, and the command that fixes it.

    With --prove, every engine is built, timed and compared with FP32 on 250 images, each in a
    process of its own, and FOLDER/proof.zip holds versions, logs and reports to attach to a
    report of a problem. It holds nothing of yours: the network and its images come with qconvert.
    """
    from qconvert.backends import BACKENDS, int8_class, probe, system_probe

    if unknown := [name for name in chosen if name not in BACKENDS]:
        raise click.UsageError(f"there is no backend `{unknown[0]}`: {', '.join(BACKENDS)}")
    system = system_probe.detect()
    backends = {name: probe(name, system) for name in BACKENDS}
    conflicts = list(system.runtimes) if len(system.runtimes) > 1 else []
    if not as_json:
        _show_backends(backends, system, conflicts)
    proofs = []
    if prove:
        from qconvert.core import cache
        from qconvert.demo import demo_files, proof

        to_prove = {name: backends[name] for name in chosen or BACKENDS}
        store, images = cache.open_default(), demo_files.PROOF_IMAGES
        demo_files.prepare_demo(output / "demo", store, console.PROGRESS.update, images)
        show = console.info if as_json else console.write
        titles = f"{'p50 ms':>8}{'top-1':>8}{'agrees':>8}{'time':>8}"
        show(f"\n{'backend':<14}{'':<6}{'result':<11}{titles}")
        for item in proof.prove(to_prove, output):
            show("\n".join(_proof_lines(item)))
            proofs.append(item)
        bundle = proof.write_bundle(output, system, to_prove, proofs)
        size = f"{bundle.stat().st_size / 1000:.0f} KB"
        show(f"\nbundle: {bundle}, {size}; nothing of yours is in it")
    if as_json:
        console.write_json(
            {
                "backends": {name: asdict(state) for name, state in backends.items()},
                "torch": system.packages.get("torch"),
                "int8": asdict(int8_class.int8_class()),
                "gpus": [asdict(gpu) for gpu in system.gpus],
                "conflicts": conflicts,
                "proofs": [asdict(item) for item in proofs],
            }
        )
    bad = [item for item in proofs if item.result in ("wrong", "failed")]
    if bad:
        names = ", ".join(f"{item.backend}-{item.precision}" for item in bad)
        raise GateFailed(
            f"{len(bad)} of {len(proofs)} engines failed: {names}",
            hint="attach the bundle to a report of the problem; its `logs` say more",
        )


def _show_backends(
    backends: "Mapping[str, Availability]", system: "Installed", conflicts: "Sequence[str]"
) -> None:
    from qconvert.backends import int8_class

    columns = make_columns("l l l w w", "backend", "builds", "runs", "version", "why not")
    rows = []
    for name, state in backends.items():
        works = ("yes" if works else "no" for works in (state.builds, state.runs))
        rows.append([name, *works, state.version, state.reason])
    console.write_table(TextTable(columns, rows))
    missing = f"not installed; only export needs it: {pip_install('torch')}"
    lines = ["", f"torch          {system.packages.get('torch', missing)}"]
    lines.append(f"INT8 on CPU    {int8_class.int8_class()}")
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
    console.write(*lines)


def _proof_lines(proof: "Proof") -> list[str]:
    """Return the row of an engine, and below it why it is not right and what to do."""
    figures = (proof.median_ms, proof.top1, proof.agreement)
    cells = [optional_cell(figure, "{:.2f}".format, MISSING) for figure in figures]
    cells.append(optional_cell(proof.seconds, "{:.0f} s".format))
    row = f"{proof.backend:<14}{proof.precision:<6}{proof.result:<11}"
    row += "".join(f"{cell:>8}" for cell in cells)
    indent = " " * 20
    lines = textwrap.wrap(proof.detail, 80, initial_indent=indent, subsequent_indent=indent)
    # A command stays on one line, so that it can be copied.
    return [row, *lines, *([f"{indent}to fix: {proof.cure}"] if proof.cure else [])]


@options.command("qconvert cache", "qconvert cache --clear prepare")
@options.flag("--clear", "Delete cached results: all, or those of STEP.")
@click.argument("step", required=False)
@options.json_option
def cache_command(clear: bool, step: str | None, as_json: bool) -> None:
    """List cached results, all or those of STEP, with origin, size and age; or delete them.

    Finished runs do not need the cache; QCONVERT_CACHE_DIR sets its location.
    """
    from qconvert.core import cache

    store = cache.open_default()
    entries = list(store.entries())
    steps = sorted({entry.step for entry in entries})
    if step and entries and step not in steps:
        raise UsageError(
            f"no results of step `{step}` are cached{did_you_mean(step, steps)}",
            hint="cached steps: " + ", ".join(steps),
        )
    if clear:
        entries = list(store.clear(step))
    elif step:
        entries = [entry for entry in entries if entry.step == step]
    if as_json:
        listing = [{**asdict(entry), "path": str(entry.path)} for entry in entries]
        console.write_json({"root": str(store.root), "cleared": clear, "entries": listing})
        return
    total = f"{len(entries)} results, {sum(entry.size_bytes for entry in entries) / 1e6:.1f} MB"
    if clear:
        console.info(f"cleared {total} from {store.root}")
        return
    rows = []
    for entry in entries:
        age = f"{entry.age_seconds:.0f} s"
        for size, unit in ((60, "min"), (3600, "h"), (86400, "d")):
            if entry.age_seconds >= size:
                age = f"{entry.age_seconds / size:.0f} {unit}"
        name, model = entry.recipe.get("name", "?"), entry.recipe.get("model", "")[:8]
        source = f"{name} ({model})" if model else name
        rows.append([entry.step, f"{entry.size_bytes / 1e6:.1f}", age, source])
    if rows:
        columns = make_columns("l r r l", "step", "MB", "age", "made from")
        console.write_table(TextTable(columns, rows))
    console.info(f"{total}, in {store.root}")

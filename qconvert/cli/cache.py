"""`qconvert cache`."""

from dataclasses import asdict

import click

from qconvert.cli import console, options
from qconvert.report.table import TextColumn, TextTable, number_columns

EXAMPLES = """\b
Examples:
  qconvert cache
  qconvert cache --clear prepare"""


@click.command(epilog=EXAMPLES)
@click.option("--clear", is_flag=True, help="Delete cached results: all, or those of STEP.")
@click.argument("step", required=False)
@options.json_option
@options.verbosity_options
def command(clear: bool, step: str | None, as_json: bool) -> None:
    """List cached results, all or those of STEP, with origin, size and age; or delete them.

    No finished run needs the cache; QCONVERT_CACHE_DIR sets its place.
    """
    from qconvert.core import cache
    from qconvert.core.errors import UsageError, did_you_mean

    store = cache.open_default()
    entries = list(store.entries())
    steps = sorted({entry.step for entry in entries})
    if step and entries and step not in steps:
        raise UsageError(
            f"no result of a step `{step}` is cached{did_you_mean(step, steps)}",
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
        console.info(f"cleared {total}, from {store.root}")
        return
    if entries:
        columns = [TextColumn("step"), *number_columns("MB", "age"), TextColumn("made from")]
        rows = [
            [row.step, f"{row.size_bytes / 1e6:.1f}", _age(row.age_seconds), _source(row.recipe)]
            for row in entries
        ]
        console.write_table(TextTable(columns, rows))
    console.info(f"{total}, in {store.root}")


def _source(recipe: dict[str, str]) -> str:
    name, model = recipe.get("name", "?"), recipe.get("model", "")[:8]
    return f"{name} ({model})" if model else name


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

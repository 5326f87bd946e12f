"""`qconvert cache`."""

from dataclasses import asdict

import click

from qconvert.cli import console, options
from qconvert.report.table import TextTable, number_columns, text_columns


@options.command("qconvert cache", "qconvert cache --clear prepare")
@options.flag("--clear", "Delete cached results: all, or those of STEP.")
@click.argument("step", required=False)
@options.json_option
def command(clear: bool, step: str | None, as_json: bool) -> None:
    """List cached results, all or those of STEP, with origin, size and age; or delete them.

    Finished runs do not need the cache; QCONVERT_CACHE_DIR sets its location.
    """
    from qconvert.core import cache
    from qconvert.core.errors import UsageError, did_you_mean

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
        columns = [*text_columns("step"), *number_columns("MB", "age"), *text_columns("made from")]
        console.write_table(TextTable(columns, rows))
    console.info(f"{total}, in {store.root}")

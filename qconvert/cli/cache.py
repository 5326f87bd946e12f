"""`qconvert cache`."""

import click

from qconvert.cli import console, options
from qconvert.report.table import TextColumn, TextTable

EXAMPLES = """\b
Examples:
  qconvert cache
  qconvert cache --clear prepare"""


@click.command(epilog=EXAMPLES)
@click.option("--clear", is_flag=True, help="Delete stored results: all, or those of STEP.")
@click.argument("step", required=False)
@options.json_option
@options.verbosity_options
def command(clear: bool, step: str | None, as_json: bool) -> None:
    """List stored results, all or those of STEP: what made them, size and age; or clear them.

    Nothing in the store is needed by a finished run; QCONVERT_CACHE_DIR says where it is.
    """
    from qconvert.core import cache
    from qconvert.core.errors import UsageError, did_you_mean

    here = cache.open_default()
    entries = list(here.entries())
    steps = sorted({entry.step for entry in entries})
    if step and entries and step not in steps:
        raise UsageError(
            f"nothing of a step `{step}` is stored{did_you_mean(step, steps)}",
            hint="stored: " + ", ".join(steps),
        )
    chosen = here.clear(step) if clear else [each for each in entries if step in (None, each.step)]
    if as_json:
        console.write_json(
            {"root": str(here.root), "cleared": clear, "entries": list(map(_row, chosen))}
        )
        return
    total = sum(entry.size_bytes for entry in chosen)
    if clear:
        console.info(f"cleared {len(chosen)} results, {total / 1e6:.1f} MB, from {here.root}")
        return
    columns = [
        TextColumn("step"),
        TextColumn("MB", "right"),
        TextColumn("age", "right"),
        TextColumn("made from"),
    ]
    rows = [
        [each.step, f"{each.size_bytes / 1e6:.1f}", _age(each.age_seconds), _maker(each.recipe)]
        for each in chosen
    ]
    if rows:
        console.write_table(TextTable(columns, rows))
    console.info(f"{len(chosen)} results, {total / 1e6:.1f} MB, in {here.root}")


def _row(entry: object) -> dict[str, object]:
    from dataclasses import asdict

    from qconvert.core.cache import CacheEntry

    assert isinstance(entry, CacheEntry)
    return {**asdict(entry), "path": str(entry.path)}


def _maker(recipe: dict[str, str]) -> str:
    name, model = recipe.get("name", "?"), recipe.get("model", "")[:8]
    return f"{name} ({model})" if model else name


def _age(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"

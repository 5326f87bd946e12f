"""The report as Markdown, for pull requests and `$GITHUB_STEP_SUMMARY`."""

import re
from collections.abc import Iterable, Iterator, Mapping

from qconvert.core import number_format
from qconvert.core.sanitize import sanitize_text
from qconvert.report import tables
from qconvert.report.model import Report
from qconvert.report.table import TextTable

HASH_DIGITS = 12


def render_markdown(report: Report) -> str:
    """Return the whole report: verdict, gates, the three tables, notes, how it was made."""
    parts = [
        f"# {escape_text(report.model)}",
        f"**{escape_text(report.verdict)}.**" if report.verdict else "",
    ]
    if report.gates:
        parts.append(section(tables.gate_table(report)))
    parts += [
        section(each(report))
        for each in (tables.size_table, tables.latency_table, tables.accuracy_table)
    ]
    if report.notes:
        parts += ["## Notes", bullets(report.notes)]
    parts += [section(sheet) for sheet in tables.search_tables(report)]
    if report.variants:
        parts.append(section(tables.placement_table(report)))
    unquantized = tables.unquantized_table(report)
    parts += [section(unquantized)] if unquantized.rows else []
    parts += _provenance(report)
    return "\n\n".join(part for part in parts if part) + "\n"


def section(sheet: TextTable) -> str:
    """Draw a table under its title, its footnotes below."""
    return "\n\n".join([f"## {escape_text(sheet.title)}", table_markdown(sheet)])


def table_markdown(sheet: TextTable) -> str:
    """Draw a table and its footnotes."""
    lines = [
        _row(column.title for column in sheet.columns),
        _row("---:" if column.justify == "right" else "---" for column in sheet.columns),
        *(_row(escape_cell(each) for each in row) for row in sheet.rows),
    ]
    footnotes = "  \n".join(escape_text(each) for each in sheet.footnotes)
    return "\n".join(lines) + (f"\n\n{footnotes}" if footnotes else "")


def bullets(sentences: Iterable[str]) -> str:
    """Draw a list, each of its sentences with a capital and a full stop."""
    return "\n".join(
        f"- {escape_text(each[:1].upper() + each[1:]).removesuffix('.')}." for each in sentences
    )


def code_block(code: str, language: str = "") -> str:
    """Draw a block of code behind a fence that nothing inside can close."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{sanitize_text(code.strip())}\n{fence}"


def escape_cell(words: str) -> str:
    """Escape what would end a cell, in code too; no backslash there may undo that."""
    parts = words.split("`")
    code = [part.replace("\\|", "\\ |") for part in parts]
    safe = (code[at] if at % 2 else part for at, part in enumerate(parts))
    return escape_text("`".join(safe)).replace("|", "\\|")


def escape_text(words: str) -> str:
    """Escape what Markdown and HTML would act on; what stands between backticks is code.

    Several backticks in a row, which only a name can hold, would pair up with others like them.
    """
    single = re.sub("`{2,}", lambda run: "'" * len(run[0]), sanitize_text(" ".join(words.split())))
    parts = single.split("`")
    if len(parts) % 2 == 0:
        return _escape("`".join(parts)).replace("`", "\\`")
    return "`".join(part if index % 2 else _escape(part) for index, part in enumerate(parts))


def fact_table(pairs: Mapping[str, str]) -> str:
    """Draw names and values as a table without more."""
    rows = [_row((escape_cell(name), escape_cell(value))) for name, value in pairs.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _escape(words: str) -> str:
    return re.sub(r"([\\*_<\[\]])", r"\\\1", words)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _provenance(report: Report) -> Iterator[str]:
    """Yield the parts that let someone make it again."""
    yield "## How it was made"
    yield code_block(report.command, "sh")
    machine = dict(report.machine)
    for name, images in (("calibration", report.calibration), ("evaluation", report.evaluation)):
        if images is not None:
            listed = f", list {images.sha256[:HASH_DIGITS]}" if images.sha256 else ""
            machine[name] = (
                f"{number_format.count(images.count, 'image')} of `{images.path}`{listed}"
            )
    yield fact_table({"tool": report.tool, "made": report.created, **machine})
    engines = [
        _row(
            (
                escape_cell(variant.name),
                escape_cell(f"`{variant.engine.path}`"),
                escape_cell(variant.engine.sha256[:HASH_DIGITS]),
                "stored" if variant.engine.stored else f"{variant.engine.build_seconds:.1f} s",
            )
        )
        for variant in report.variants
        if variant.engine is not None
    ]
    if engines:
        head = [_row(("engine", "path", "sha256", "built in")), "| --- | --- | --- | ---: |"]
        yield "\n".join([*head, *engines])
    if report.seconds:
        yield (
            "Seconds: "
            + ", ".join(f"{escape_text(n)} {s:.1f}" for n, s in report.seconds.items())
            + "."
        )

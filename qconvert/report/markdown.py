"""The report as Markdown, for pull requests and `$GITHUB_STEP_SUMMARY`."""

import re
from collections.abc import Iterable

from qconvert.core.sanitize import sanitize_text
from qconvert.report import tables
from qconvert.report.model import Report
from qconvert.report.table import TextTable


def render_markdown(report: Report) -> str:
    """Return the whole report: verdict, gates, tables, notes, and how to repeat the run."""
    optional = [tables.placement_table(report), tables.unquantized_table(report)]
    engines = tables.engine_table(report)
    facts = [_row(map(escape_cell, fact)) for fact in tables.provenance(report).items()]
    parts = [
        f"# {escape_text(report.model)}",
        f"**{escape_text(report.verdict)}.**" if report.verdict else "",
        section(tables.gate_table(report)) if report.gates else "",
        section(tables.size_table(report)),
        section(tables.latency_table(report)),
        section(tables.accuracy_table(report)),
        f"## Notes\n\n{bullets(report.notes)}" if report.notes else "",
        *(section(table) for table in tables.search_tables(report)),
        *(section(table) for table in optional if table.rows),
        "## How it was made",
        code_block(report.command, "sh"),
        "\n".join(["| | |", "| --- | --- |", *facts]),
        table_markdown(engines) if engines.rows else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def section(table: TextTable) -> str:
    """Return a table under its title, with its footnotes below."""
    return f"## {escape_text(table.title)}\n\n{table_markdown(table)}"


def table_markdown(table: TextTable) -> str:
    """Return a table and its footnotes."""
    lines = [
        _row(column.title for column in table.columns),
        _row("---:" if column.justify == "right" else "---" for column in table.columns),
        *(_row(map(escape_cell, row)) for row in table.rows),
    ]
    footnotes = "  \n".join(map(escape_text, table.footnotes))
    return "\n".join(lines) + (f"\n\n{footnotes}" if footnotes else "")


def bullets(sentences: Iterable[str]) -> str:
    """Return a list of sentences, each with a capital and a full stop."""
    return "\n".join(
        f"- {escape_text(sentence[:1].upper() + sentence[1:]).removesuffix('.')}."
        for sentence in sentences
    )


def code_block(code: str, language: str = "") -> str:
    """Return a block of code behind a fence that nothing inside can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{fence}{language}\n{sanitize_text(code.strip())}\n{fence}"


def escape_cell(text: str) -> str:
    """Escape what would end a cell, in code too; no backslash there may undo that."""
    parts = text.split("`")
    parts[1::2] = [code.replace("\\|", "\\ |") for code in parts[1::2]]
    return escape_text("`".join(parts)).replace("|", "\\|")


def escape_text(text: str) -> str:
    """Escape what Markdown and HTML would act on, except in code between backticks.

    Several backticks in a row, which only a hostile name has, would pair up with others like them.
    """
    single = re.sub("`{2,}", lambda run: "'" * len(run[0]), sanitize_text(" ".join(text.split())))
    parts = single.split("`")
    if len(parts) % 2 == 0:
        return re.sub(r"([\\*_<\[\]`])", r"\\\1", single)
    parts[::2] = (re.sub(r"([\\*_<\[\]])", r"\\\1", text) for text in parts[::2])
    return "`".join(parts)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"

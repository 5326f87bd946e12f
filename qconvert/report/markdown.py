"""The report as Markdown, for pull requests and `$GITHUB_STEP_SUMMARY`."""

import re
from collections.abc import Iterable, Iterator, Mapping

from qconvert.plain import plain
from qconvert.report import mixing, numerals, overview, placement, tables
from qconvert.report.model import Report
from qconvert.report.sheet import Sheet

HASH_DIGITS = 12


def markdown(report: Report) -> str:
    """Return the whole report: verdict, gates, the three tables, notes, how it was made."""
    parts = [f"# {text(report.model)}", f"**{text(report.verdict)}.**" if report.verdict else ""]
    if report.gates:
        parts.append(section(overview.limits(report)))
    parts += [section(each(report)) for each in (tables.size, tables.latency, tables.accuracy)]
    if report.notes:
        parts += ["## Notes", bullets(report.notes)]
    parts += [section(sheet) for sheet in mixing.sheets(report)]
    if report.variants:
        parts.append(section(placement.placement(report)))
    unquantized = placement.left(report)
    parts += [section(unquantized)] if unquantized.rows else []
    parts += _made(report)
    return "\n\n".join(part for part in parts if part) + "\n"


def section(sheet: Sheet) -> str:
    """Draw a table under its title, its footnotes below."""
    return "\n\n".join([f"## {text(sheet.title)}", drawn(sheet)])


def drawn(sheet: Sheet) -> str:
    """Draw a table and its footnotes."""
    lines = [
        _row(column.title for column in sheet.columns),
        _row("---:" if column.justify == "right" else "---" for column in sheet.columns),
        *(_row(cell(each) for each in row) for row in sheet.rows),
    ]
    footnotes = "  \n".join(text(each) for each in sheet.footnotes)
    return "\n".join(lines) + (f"\n\n{footnotes}" if footnotes else "")


def bullets(sentences: Iterable[str]) -> str:
    """Draw a list, each of its sentences with a capital and a full stop."""
    return "\n".join(
        f"- {text(each[:1].upper() + each[1:]).removesuffix('.')}." for each in sentences
    )


def fenced(code: str, language: str = "") -> str:
    """Draw a block of code behind a fence that nothing inside can close."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{plain(code.strip())}\n{fence}"


def cell(words: str) -> str:
    """Escape what would end a cell, in code too; no backslash there may undo that."""
    parts = words.split("`")
    code = [part.replace("\\|", "\\ |") for part in parts]
    safe = (code[at] if at % 2 else part for at, part in enumerate(parts))
    return text("`".join(safe)).replace("|", "\\|")


def text(words: str) -> str:
    """Escape what Markdown and HTML would act on; what stands between backticks is code.

    Several backticks in a row, which only a name can hold, would pair up with others like them.
    """
    single = re.sub("`{2,}", lambda run: "'" * len(run[0]), plain(" ".join(words.split())))
    parts = single.split("`")
    if len(parts) % 2 == 0:
        return _escaped("`".join(parts)).replace("`", "\\`")
    return "`".join(part if index % 2 else _escaped(part) for index, part in enumerate(parts))


def facts(pairs: Mapping[str, str]) -> str:
    """Draw names and values as a table without more."""
    rows = [_row((cell(name), cell(value))) for name, value in pairs.items()]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _escaped(words: str) -> str:
    return re.sub(r"([\\*_<\[\]])", r"\\\1", words)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _made(report: Report) -> Iterator[str]:
    """Yield the parts that let someone make it again."""
    yield "## How it was made"
    yield fenced(report.command, "sh")
    machine = dict(report.machine)
    for name, images in (("calibration", report.calibration), ("evaluation", report.evaluation)):
        if images is not None:
            listed = f", list {images.sha256[:HASH_DIGITS]}" if images.sha256 else ""
            machine[name] = f"{numerals.count(images.count, 'image')} of `{images.path}`{listed}"
    yield facts({"tool": report.tool, "made": report.created, **machine})
    engines = [
        _row(
            (
                cell(variant.name),
                cell(f"`{variant.engine.path}`"),
                cell(variant.engine.sha256[:HASH_DIGITS]),
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
        yield "Seconds: " + ", ".join(f"{text(n)} {s:.1f}" for n, s in report.seconds.items()) + "."

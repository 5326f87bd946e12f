"""A CSV file with named columns, read strictly."""

import csv
from collections.abc import Sequence
from pathlib import Path

from qconvert.errors import UsageError, reason

Row = dict[str, str]

FORM = "its first line is `file,label`, and every other names a file and its class"


def read_table(path: Path, needed: Sequence[str]) -> list[Row]:
    """Return the rows by column; every needed column must be there and, in each row, `file`."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _require(path, header, needed)
            rows = [_row(path, header, cells, reader.line_num) for cells in reader if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"`{path}` cannot be read as CSV: {reason(error)}", hint=FORM) from None
    return rows


def _require(path: Path, header: Sequence[str], needed: Sequence[str]) -> None:
    for name in needed:
        if name not in header:
            raise UsageError(
                f"`{path}` has no column `{name}`; its columns: {', '.join(header) or 'none'}",
                hint="its first line must be `file,label`",
            )


def _row(path: Path, header: Sequence[str], cells: Sequence[str], line: int) -> Row:
    if len(cells) != len(header):
        raise UsageError(
            f"`{path}`, line {line}: {len(cells)} cells under {len(header)} columns", hint=FORM
        )
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
    if not row["file"] or "\0" in row["file"]:
        raise UsageError(f"`{path}`, line {line}: no file is named", hint=FORM)
    return row | {"line": str(line)}

"""Where a result goes, looked at before any long work."""

import tempfile
from pathlib import Path

from qconvert.errors import QConvertError, UsageError


def require_place(out: Path) -> None:
    """Refuse a place that cannot be written."""
    if out.is_dir():
        raise UsageError(f"`{out}` is a folder", hint=f"name the file: `-o {out / 'NAME'}`")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise QConvertError(
            f"`{there}` cannot be written: {error.strerror}",
            hint="choose another place with `-o`",
        ) from None

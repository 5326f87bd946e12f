"""Where a result goes, looked at before any long work."""

from pathlib import Path

from qconvert.errors import QConvertError, UsageError


def require_place(out: Path) -> None:
    """Refuse a place that cannot be written."""
    if out.is_dir():
        raise UsageError(f"`{out}` is a folder", hint=f"name the file: `-o {out / 'NAME'}`")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        probe = out.parent / f".{out.name}.writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise QConvertError(
            f"`{out.parent}` cannot be written: {error.strerror}",
            hint="choose another place with `-o`",
        ) from None

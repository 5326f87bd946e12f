"""Where a result goes, looked at before any long work."""

import tempfile
from pathlib import Path

from qconvert import drafts
from qconvert.config import Config
from qconvert.errors import QConvertError, UsageError
from qconvert.pipeline.run_folder import SETTINGS, RunFolder, require_folder, require_same


def require_place(out: Path, *others: Path) -> None:
    """Refuse a place that cannot be written, and what the command reads or writes besides."""
    if out.is_dir():
        raise UsageError(f"`{out}` is a folder", hint=f"name the file: `-o {out / 'NAME'}`")
    if out.exists() and not out.is_file():
        # What is written takes the place of what was there, be it the `/dev/null` of everybody.
        raise UsageError(f"`{out}` is a device or a pipe", hint="name a file")
    if out.resolve() in [each.resolve() for each in others]:
        raise UsageError(f"`{out}` is named twice in this command", hint="choose another name")
    there = next(folder for folder in out.absolute().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise QConvertError(
            f"`{there}` cannot be written: {error.strerror}",
            hint="choose another place with `-o`",
        ) from None


def require_run(root: Path, config: Config) -> None:
    """Refuse a folder where no run with these settings can begin or go on; nothing is written."""
    require_folder(root)
    run = RunFolder(root)
    if (root / SETTINGS).is_file():
        if run.has_results():
            require_same(run, config)
        return
    if root.is_dir() and any(not each.name.startswith(drafts.DRAFT) for each in root.iterdir()):
        raise UsageError(
            f"`{root}` holds other files",
            hint="choose another folder: `-o RUN`, or delete this one",
        )


def require_there(config: Config) -> None:
    """Refuse images and labels that are not there, before any work."""
    for option, path in (
        ("--images", config.calibration.images),
        ("--eval", config.evaluate.images),
        ("--labels", config.evaluate.labels),
    ):
        if path is not None and not path.exists():
            raise UsageError(f"`{path}` does not exist", hint=f"check the path given to `{option}`")

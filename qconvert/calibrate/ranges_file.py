"""The calibration file: a plain `.npz` that holds a `Calibration`, whole or in part.

The same calibration gives the same bytes. What is read is checked number by number, and nothing
that a file says is executed or taken as a size to allocate.
"""

import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from qconvert import drafts, npz
from qconvert.calibrate import packed
from qconvert.calibrate.calibration import Calibration
from qconvert.calibrate.collect import Collector
from qconvert.errors import QConvertError, UsageError, located, reason

SAVE_SECONDS = 10.0


def save(calibration: Calibration, path: Path) -> None:
    """Write the file; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with located(path), drafts.draft(path.parent) as folder:
        draft = folder / path.name
        draft.write_bytes(packed.pack(calibration))
        draft.replace(path)


def load(path: Path) -> Calibration:
    """Read a file that `save` wrote; refuse any other with the reason."""
    if not path.is_file():
        raise UsageError(
            f"`{path}` does not exist", hint="`qconvert calibrate MODEL --images PATH` makes one"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return packed.unpack(archive)
    except npz.DAMAGED as error:
        raise QConvertError(
            f"`{path}` is not a calibration file, or is damaged: {reason(error)}",
            hint="calibrate again, or copy the file again; a copy cut short says the same",
        ) from None


def saving(
    path: Path, seconds: float = SAVE_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Callable[[Collector], None]:
    """Return what `collect` calls after each batch, to keep its state in a file every few seconds.

    A process that is killed loses what came after the last time; the file is always whole.
    """
    last = clock()

    def after(collector: Collector) -> None:
        nonlocal last
        if clock() - last >= seconds:
            save(collector.calibration(), path)
            last = clock()

    return after

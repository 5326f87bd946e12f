"""Where a run is made: its settings, its folder, the store, and who hears of it."""

from dataclasses import dataclass

from qconvert.config import Config
from qconvert.pipeline.progress import Tell
from qconvert.pipeline.run_folder import RunFolder
from qconvert.store import Store


@dataclass(frozen=True)
class Workshop:
    """What every step of a run needs; `trust` lets a checkpoint run the code it brings."""

    config: Config
    run: RunFolder
    store: Store
    tell: Tell
    trust: bool = False

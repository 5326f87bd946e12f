"""How long engines take, in turns, so that what drifts hits all of them alike."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Latency:
    """Every sample of one engine at one batch size, in milliseconds a run.

    `where` is `host` for the whole call with its copies, `device` for inputs that lie on the
    device already. `notes` tell what makes the figures doubtful.
    """

    batch: int
    where: Literal["host", "device"]
    samples_ms: tuple[float, ...]
    notes: tuple[str, ...] = ()

"""How far a TensorRT build is, from the phases and steps it reports, and the way to stop it."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from qconvert.backends.base import Heard

T = TypeVar("T")
LOOK_SECONDS = 0.05


@dataclass
class _Phase:
    """A phase that fills one step of its parent, from `start`; each of its steps takes `share`."""

    start: float
    share: float
    done: int = 0

    @property
    def reached(self) -> float:
        return self.start + self.done * self.share


@dataclass
class Progress:
    """What the builder's threads report; `stopped` asks them to give up at their next step."""

    stopped: bool = False
    doing: str = ""
    fraction: float = 0.0
    _phases: dict[str, _Phase] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def begin(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps starts, as one step of its parent."""
        with self._lock:
            above = self._phases.get(parent or "")
            start, share = (above.reached, above.share) if above else (0.0, 1.0)
            self._phases[name] = _Phase(start, share / max(steps, 1))
            self.doing = name

    def step(self, name: str) -> bool:
        """A step of a phase is done; say whether the build shall go on."""
        with self._lock:
            if phase := self._phases.get(name):
                phase.done += 1
                # A parent may start several phases within one step: the bar does not go back.
                self.fraction = min(1.0, max(self.fraction, phase.reached))
            return not self.stopped

    def end(self, name: str) -> None:
        """A phase is over."""
        with self._lock:
            self._phases.pop(name, None)


def watched(work: Callable[[], T], progress: Progress, heard: Heard) -> T:
    """Do the work in a thread, tell how far it is, and stop it cleanly when interrupted.

    The builder reports from its own thread, in which no Ctrl-C arrives: it is waited for here.
    """
    told = ("", -1.0)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        try:
            while not wait([future], timeout=LOOK_SECONDS).done:
                if (now := (progress.doing, progress.fraction)) != told:
                    heard(*now)
                    told = now
        except BaseException:
            progress.stopped = True  # leaving the block waits for the thread
            raise
        return future.result()

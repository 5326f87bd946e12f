"""What every step of a job needs: the settings, the cache, and who hears of the progress."""

from dataclasses import dataclass, field

from qconvert.core import cache
from qconvert.core.cache import Cache
from qconvert.core.config import Config
from qconvert.core.progress import ProgressCallback, ignore_progress
from qconvert.run.run_folder import RunFolder


@dataclass(frozen=True)
class JobContext:
    """The surroundings of a job; `trust` allows a checkpoint to run the code it contains."""

    config: Config
    cache: Cache
    progress: ProgressCallback = ignore_progress
    trust: bool = field(default=False, kw_only=True)

    def in_run(self, folder: RunFolder) -> "RunContext":
        """Return the same surroundings for work in the folder of a run."""
        return RunContext(self.config, self.cache, self.progress, trust=self.trust, folder=folder)


@dataclass(frozen=True)
class RunContext(JobContext):
    """The surroundings of a job that works in the folder of a run."""

    folder: RunFolder = field(kw_only=True)


def open_context(
    config: Config,
    progress: ProgressCallback = ignore_progress,
    *,
    trust: bool = False,
    fresh: bool = False,
) -> JobContext:
    """Return the surroundings of a job with the user's cache; `fresh` computes everything anew."""
    return JobContext(config, cache.open_default(fresh=fresh), progress, trust=trust)

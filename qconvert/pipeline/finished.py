"""A run that is there: its folder, its report, and the engine to ship."""

from dataclasses import dataclass
from pathlib import Path

from qconvert.errors import UsageError
from qconvert.pipeline.opened import OpenEngine, open_engine
from qconvert.pipeline.run_folder import REPORT, RunFolder
from qconvert.report import as_json, gates
from qconvert.report.model import Report


@dataclass(frozen=True)
class Run:
    """The folder of a run and its report; it stands for the folder wherever a path is wanted.

    From Python the folder is absolute: a run stays what it is where the program goes elsewhere.
    """

    folder: Path
    report: Report

    def __fspath__(self) -> str:
        return str(self.folder)

    def chosen(self, name: str = "") -> str:
        """Return the name of an engine that is there: the one named, else that of the verdict."""
        there = RunFolder(self.folder).engines()
        wanted = name or self.report.best
        if wanted in there:
            return wanted
        hint = f"it has {', '.join(f'`{each}`' for each in there) or 'none'}"
        if wanted:
            raise UsageError(f"`{self.folder}` has no engine `{wanted}`", hint=hint)
        raise UsageError(
            f"no engine of `{self.folder}` came out best, so one must be named", hint=hint
        )

    def path(self, name: str = "") -> Path:
        """Return the folder of an engine: the one named, else that of the verdict."""
        return RunFolder(self.folder).engine(self.chosen(name))

    def engine(self, name: str = "") -> OpenEngine:
        """Load an engine: the one named, else that of the verdict."""
        return open_engine(self.path(name))

    def require_gates(self) -> None:
        """Raise `GateFailed` where a gate failed."""
        gates.require(self.report)


def finished(folder: Path) -> Run:
    """Return the run that lies in a folder."""
    RunFolder(folder).settings()
    return Run(folder, as_json.load(folder / REPORT))

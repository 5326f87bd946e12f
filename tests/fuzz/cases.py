"""A case: good files, one of them spoiled, and a command. Its number says all of it."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import data_cases, model_cases, place_cases

Make = Callable[[random.Random, Path], list[str]]


@dataclass(frozen=True)
class Case:
    """What was made in a folder, and what qconvert is given there."""

    number: int
    kind: str
    arguments: tuple[str, ...]


MAKERS: dict[str, Make] = {
    "model": model_cases.model,
    "picture": data_cases.picture,
    "array": data_cases.array,
    "calibration": data_cases.calibration,
    "plan": data_cases.plan,
    "labels": data_cases.labels,
    "run": place_cases.run,
    "settings": place_cases.settings,
    "store": place_cases.store,
}
# In the shares in which they are drawn.
KINDS = (
    ["model"] * 9 + ["picture"] * 2 + ["array"] + ["calibration"] * 2 + ["plan"] + ["run"] * 3
    + ["settings"] + ["labels"] + ["store"]
)  # fmt: skip


def kind_of(number: int) -> str:
    """Return what is spoiled in a case."""
    return random.Random(number).choice(KINDS)


def make(number: int, seeds: Path, folder: Path) -> Case:
    """Make the files of a case in a new folder."""
    chance = random.Random(number)
    kind = chance.choice(KINDS)
    passed_over = {"model": ("run", "store"), "run": (), "settings": ()}.get(kind, ("run",))
    shutil.copytree(seeds, folder, ignore=shutil.ignore_patterns(*passed_over))
    (folder / "out").mkdir()
    (folder / "tmp").mkdir()
    arguments = MAKERS[kind](chance, folder)
    return Case(number, kind, tuple(arguments))

"""A plan on disk, and beside it the weights that were learned with it."""

from dataclasses import dataclass, field
from pathlib import Path

from qconvert.errors import UsageError
from qconvert.quantize import learned, plan
from qconvert.quantize.learned import Weights
from qconvert.quantize.plan import Plan


@dataclass(frozen=True)
class Planned:
    """A plan with the weights that belong to it."""

    plan: Plan
    weights: Weights = field(default_factory=dict)


def beside(path: Path) -> Path:
    """Return where the weights of a plan file lie."""
    return path.with_suffix(".learned.npz")


def save(planned: Planned, path: Path) -> None:
    """Write a plan, and its weights if it has any."""
    path.write_text(plan.dumps(planned.plan), encoding="utf-8")
    if planned.weights:
        learned.save(planned.weights, beside(path))
    else:
        beside(path).unlink(missing_ok=True)


def load(path: Path) -> Planned:
    """Read a plan; refuse one whose weights are not beside it."""
    found = plan.load(path)
    if not found.learned:
        return Planned(found)
    if not beside(path).is_file():
        raise UsageError(
            f"`{path}` was made with learned weights, and `{beside(path)}` is not there",
            hint='copy that file too, or delete the line "learned" from the plan',
        )
    weights = learned.load(beside(path))
    learned.require(weights, found.learned)
    return Planned(found, weights)

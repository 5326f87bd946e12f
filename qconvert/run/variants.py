"""Which engines a run makes: every backend asked for in every precision that makes sense there."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qconvert import backends
from qconvert.backends import system_probe
from qconvert.backends.base import Availability, EngineVariant
from qconvert.core.config import BuildConfig, Config
from qconvert.core.errors import Unavailable, UsageError
from qconvert.optimize.calibration_set import CalibrationSet
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.sources import LoadedModel

# The best first: what is taken where nobody chose.
BACKENDS_BY_PREFERENCE = ("tensorrt", "tensorrt-rtx", "cuda", "cpu")


@dataclass(frozen=True)
class ChosenVariants:
    """The engines of a run, what each backend says of this machine, and what was left out."""

    variants: tuple[EngineVariant, ...]
    available: dict[str, Availability]
    notes: tuple[str, ...]


def choose_variants(wanted: BuildConfig, *, plan_only: bool) -> ChosenVariants:
    """Return the engines to make; refuse a backend that does not build here, with its reason."""
    names: list[str] = list(dict.fromkeys(wanted.backends)) or [_best_backend()]
    here = system_probe.detect()
    available = {name: backends.probe(name, here) for name in names}
    if not plan_only:
        for name, found in available.items():
            _require_buildable(name, found)
    variants: list[EngineVariant] = []
    notes = []
    for name in names:
        refused = backends.requirements(name).unsupported
        for precision in dict.fromkeys(wanted.precisions):
            if why := refused.get("int8" if precision == "mixed" else precision):
                notes.append(f"no {precision} for `{name}`: {why}")
            else:
                variants.append(EngineVariant(name, precision))
    if not variants:
        raise UsageError(notes[0], details=notes[1:], hint="choose others: `--precision fp16`")
    return ChosenVariants(tuple(variants), available, tuple(notes))


def _best_backend() -> str:
    here = system_probe.detect()
    return next((name for name in BACKENDS_BY_PREFERENCE if backends.probe(name, here).runs), "cpu")


def _require_buildable(name: str, found: Availability) -> None:
    if not found.builds:
        cure = f"{found.cure}; " if found.cure else ""
        raise Unavailable(
            f"the backend `{name}` does not work here: {found.reason}",
            hint=f"{cure}or go as far as this machine can: `--plan-only`",
        )


@dataclass(frozen=True)
class BuildInputs:
    """What all graphs of a run are made from; `found` is None where no image was looked at.

    `plans` has the plans that lie in a run already.
    """

    loaded: LoadedModel
    config: Config
    calibration: CalibrationSet | None
    plans: Mapping[str, PlanWithWeights] = field(default_factory=dict)

"""The engines of a run: every backend of the settings in every precision that makes sense there."""

from dataclasses import dataclass

from qconvert import backends
from qconvert.backends import system_probe
from qconvert.backends.base import Availability, EngineVariant
from qconvert.core.config import BuildConfig
from qconvert.core.errors import Unavailable, UsageError

# The default backend is the first of these that runs here.
BACKENDS_BY_PREFERENCE = ("tensorrt", "tensorrt-rtx", "cuda", "cpu")


@dataclass(frozen=True)
class ChosenVariants:
    """The engines of a run, the availability of each backend, and notes on what is left out."""

    variants: tuple[EngineVariant, ...]
    available: dict[str, Availability]
    notes: tuple[str, ...]


def choose_variants(settings: BuildConfig, *, plan_only: bool) -> ChosenVariants:
    """Return the engines to make; raise for a backend that cannot build here."""
    system = system_probe.detect()
    names: list[str] = list(dict.fromkeys(settings.backends))
    if not names:
        runs = (name for name in BACKENDS_BY_PREFERENCE if backends.probe(name, system).runs)
        names = [next(runs, "cpu")]
    available = {name: backends.probe(name, system) for name in names}
    for name, availability in available.items():
        if not plan_only and not availability.builds:
            cure = f"{availability.cure}; " if availability.cure else ""
            raise Unavailable(
                f"the backend `{name}` does not work here: {availability.reason}",
                hint=f"{cure}or go as far as this machine can: `--plan-only`",
            )
    variants: list[EngineVariant] = []
    notes = []
    for name in names:
        unsupported = backends.requirements(name).unsupported
        for precision in dict.fromkeys(settings.precisions):
            if why := unsupported.get("int8" if precision == "mixed" else precision):
                notes.append(f"no {precision} for `{name}`: {why}")
            else:
                variants.append(EngineVariant(name, precision))
    if not variants:
        raise UsageError(notes[0], details=notes[1:], hint="choose others: `--precision fp16`")
    return ChosenVariants(tuple(variants), available, tuple(notes))

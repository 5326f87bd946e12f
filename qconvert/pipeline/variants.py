"""Which engines a run makes: every backend asked for in every precision that makes sense there."""

from dataclasses import dataclass

from qconvert import backends
from qconvert.backends import installed
from qconvert.backends.base import Availability, Precision
from qconvert.config import Build
from qconvert.errors import Unavailable, UsageError

# The best first: what is taken where nobody chose.
PREFERRED = ("tensorrt", "tensorrt-rtx", "cuda", "cpu")


@dataclass(frozen=True)
class Variant:
    """One engine of a run."""

    backend: str
    precision: Precision

    @property
    def name(self) -> str:
        """What its folder is called."""
        return f"{self.backend}-{self.precision}"


@dataclass(frozen=True)
class Chosen:
    """The engines of a run, what each backend says of this machine, and what was left out."""

    variants: tuple[Variant, ...]
    available: dict[str, Availability]
    notes: tuple[str, ...]


def choose(wanted: Build, *, plan_only: bool) -> Chosen:
    """Return the engines to make; refuse a backend that does not build here, with its reason."""
    names: list[str] = list(dict.fromkeys(wanted.backends)) or [_best()]
    here = installed.look()
    available = {name: backends.probe(name, here) for name in names}
    if not plan_only:
        for name, found in available.items():
            _require(name, found)
    variants: list[Variant] = []
    notes = []
    for name in names:
        refused = backends.wants(name).refused
        for precision in dict.fromkeys(wanted.precisions):
            if why := refused.get("int8" if precision == "mixed" else precision):
                notes.append(f"no {precision} for `{name}`: {why}")
            else:
                variants.append(Variant(name, precision))
    if not variants:
        raise UsageError(notes[0], details=notes[1:], hint="choose others: `--precision fp16`")
    return Chosen(tuple(variants), available, tuple(notes))


def _best() -> str:
    here = installed.look()
    return next((name for name in PREFERRED if backends.probe(name, here).runs), "cpu")


def _require(name: str, found: Availability) -> None:
    if not found.builds:
        cure = f"{found.cure}; " if found.cure else ""
        raise Unavailable(
            f"the backend `{name}` does not work here: {found.reason}",
            hint=f"{cure}or go as far as this machine can: `--plan-only`",
        )

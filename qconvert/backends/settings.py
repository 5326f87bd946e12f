"""The settings of a backend: a dataclass with defaults, read strictly from a build's options."""

from dataclasses import fields
from typing import Any, TypeVar

from qconvert.backends.base import BuildSpec
from qconvert.errors import UsageError, reason

T = TypeVar("T")


def settings(kind: type[T], spec: BuildSpec, backend: str) -> T:
    """Return a backend's settings as the build has them; refuse names and values it does not know.

    `weight_stripped` of the dataclass is called `weight-stripped` by users.
    """
    known = {_spelled(each.name): each for each in fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for name, value in spec.options.items():
        if name not in known:
            names = ", ".join(f"`{each}`" for each in sorted(known))
            raise UsageError(
                f"the backend {backend} has no setting `{name}`", hint=f"its settings: {names}"
            )
        if type(value) is not type(known[name].default):
            wanted = type(known[name].default).__name__
            raise UsageError(
                f"`{backend}.{name}` must be of type {wanted}, got {value!r}",
                hint=f"its default is {known[name].default!r}",
            )
        values[known[name].name] = value
    try:
        return kind(**values)
    except ValueError as error:
        raise UsageError(
            f"`{backend}`: {reason(error)}", hint="leave the setting out to take its default"
        ) from None


def told(chosen: object, *leave_out: str) -> dict[str, str]:
    """Return settings as texts by the names users know, for recipes."""
    return {
        _spelled(each.name): str(getattr(chosen, each.name))
        for each in fields(chosen)  # type: ignore[arg-type]
        if each.name not in leave_out
    }


def _spelled(name: str) -> str:
    return name.replace("_", "-")

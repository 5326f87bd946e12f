"""Settings that must be more than of the right type, refused before any work."""

import math
from typing import Annotated

import pydantic

from qconvert.config_errors import near

METHODS = ("auto", "answers", "mse", "minmax", "moving-average", "entropy")
PERCENTILE = "percentile:"


def _method(name: str) -> str:
    """Refuse what is no range method, before any image is read."""
    if name in METHODS:
        return name
    if not name.startswith(PERCENTILE):
        known = (*METHODS, f"{PERCENTILE}99.99")
        raise ValueError(f"there is no range method `{name}`{near(name, known)}")
    try:
        percent = float(name.removeprefix(PERCENTILE))
    except ValueError:
        percent = 0.0
    if not 50 < percent <= 100:
        raise ValueError(f"`{name}` needs a number above 50 and up to 100")
    return name


def _channels(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"1 or 3 numbers are needed, for grey or for colours, not {len(numbers)}")
    return numbers


def _deviations(numbers: tuple[float, ...]) -> tuple[float, ...]:
    if min(_channels(numbers)) <= 0:
        raise ValueError("pixels are divided by it: all numbers are above 0")
    return numbers


def _nameable(text: str) -> str:
    if "\0" in text:
        raise ValueError("no file has a name with a zero byte")
    return text


Channels = Annotated[tuple[float, ...], pydantic.AfterValidator(_channels)]
Deviations = Annotated[tuple[float, ...], pydantic.AfterValidator(_deviations)]
Nameable = Annotated[str, pydantic.AfterValidator(_nameable)]
Method = Annotated[str, pydantic.AfterValidator(_method)]

"""Limits and checks of single settings, with which `config` annotates their types."""

import math
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from qconvert.core.errors import did_you_mean

RANGE_METHODS = ("auto", "answers", "mse", "minmax", "moving-average", "entropy")


class Limits:
    """Annotates a number or switch with its limits; other types are never converted to it."""

    def __init__(self, **limits: float) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), "strict": True, **self.limits}


class Check:
    """Annotates a value with a function that returns it, or raises ValueError."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self.function = function

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.function, handler(source))


def check_method(name: str) -> str:
    """Return the name of a range method."""
    if name in RANGE_METHODS:
        return name
    if not name.startswith("percentile:"):
        names = (*RANGE_METHODS, "percentile:99.99")
        raise ValueError(f"there is no range method `{name}`{did_you_mean(name, names)}")
    with suppress(ValueError):
        if 50 < float(name.removeprefix("percentile:")) <= 100:
            return name
    raise ValueError(f"`{name}` needs a number above 50 and up to 100")


def check_bits(bits: int) -> int:
    """Return the number of bits of a grid that keeps most answers."""
    if bits < 4:
        raise ValueError(
            "4 bits are the fewest: with 3-bit weights EfficientNet-Lite0 gives fewer than half of "
            "its answers"
        )
    return bits


# ONNX Runtime has kernels for more, with scales of their own that take more bytes or lose more.
GROUPS = (32, 64, 128)


def check_group(size: int) -> int:
    """Return how many inputs share a scale, a number for which runtimes have kernels."""
    if size not in GROUPS:
        raise ValueError(f"kernels have groups of {', '.join(map(str, GROUPS))}, or of a `channel`")
    return size


def check_channels(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Return one finite number, or one for each of three channels."""
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise ValueError(f"1 or 3 numbers are required (grey or colour), not {len(numbers)}")
    return numbers


def check_resize_rule(text: str) -> str:
    """Return a rule for the size of images, as `letterbox:WxH` if it has a size."""
    match = re.fullmatch(r"fit|none|letterbox(?::([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?)?", text)
    if match is None:
        raise ValueError(f"`{text[:20]}` is none of fit, none, letterbox, letterbox:640x480")
    width, height = match.groups()
    return f"letterbox:{width}x{height or width}" if width else text


def check_deviations(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """Return standard deviations, which are above zero."""
    if min(check_channels(numbers)) <= 0:
        raise ValueError("pixels are divided by these numbers: all must be above 0")
    return numbers


def check_model_name(text: str) -> str:
    """Return the name of a model, which the system accepts as a path."""
    if "\0" in text:
        raise ValueError("a file name cannot contain a zero byte")
    return text

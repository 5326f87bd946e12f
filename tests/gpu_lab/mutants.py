"""Mistakes that qconvert once made, made again: the tests of this folder must notice each.

`python -m tests.gpu_lab.mutants NAME FOLDER JOB...` patches the backends and does the jobs.
"""

import sys
from collections.abc import Callable
from typing import Any

from qconvert.backends import ort, tensorrt
from qconvert.backends.base import Engine
from qconvert.cli.error_boundary import run_guarded
from tests.gpu_lab import engines


def spell_switches_as_numbers() -> None:
    """Give the provider `1` in place of `True`."""
    right = tensorrt.build_options

    def wrong(*args: Any) -> dict[str, str]:
        return {name: value.replace("True", "1") for name, value in right(*args).items()}

    tensorrt.build_options = wrong  # type: ignore[assignment]


def load_with_an_unknown_option() -> None:
    """Give the provider an option that it refuses when a session is created."""
    tensorrt.load_options = lambda engine: {"trt_no_such_option": "True"}


def fall_back_to_the_cpu() -> None:
    """Leave out `enable_fallback=0`, where it matters."""
    load_with_an_unknown_option()
    right = ort.runtime.InferenceSession

    def wrong(*args: Any, enable_fallback: int = 1, **kwargs: Any) -> Any:
        return right(*args, **kwargs)

    ort.runtime.InferenceSession = wrong


def forget_flags_at_load() -> None:
    """Load engines without the precisions of their build."""
    right = tensorrt.load_options

    def wrong(engine: Engine) -> dict[str, str]:
        options = right(engine)
        return {name: value for name, value in options.items() if name != "trt_int8_enable"}

    def load_spec(engine: Engine) -> Any:
        return tensorrt._load_spec(engine, wrong(engine))

    tensorrt.load_spec = load_spec


MUTANTS: dict[str, Callable[[], None]] = {
    "spelling": spell_switches_as_numbers,
    "unknown": load_with_an_unknown_option,
    "fallback": fall_back_to_the_cpu,
    "flags": forget_flags_at_load,
}

if __name__ == "__main__":
    MUTANTS[sys.argv[1]]()
    sys.exit(run_guarded(engines.main, sys.argv[2:]))

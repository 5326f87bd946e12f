"""How an engine is loaded by other programs than this one: with ONNX Runtime, or by Triton."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Loading:
    """How ONNX Runtime loads an engine; this tool itself loads it just so.

    `providers` take the nodes in this order, each with its options, and `entries` are settings of
    the session. With `plugin`, a module, the first provider comes from there. `packages` are what
    to install, `modules` what to import before. `integers` says that the CPU multiplies bytes, and
    must do so without overflow; `optimized` that ONNX Runtime may rewrite the graph; `captured`
    that runs are replays of the first one, on the same memory.
    """

    providers: tuple[tuple[str, Mapping[str, str]], ...]
    packages: tuple[str, ...]
    entries: Mapping[str, str] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    plugin: str = ""
    threads: int = 0
    integers: bool = False
    optimized: bool = True
    captured: bool = False

    @property
    def listed(self) -> list[Any]:
        """The providers as ONNX Runtime wants them."""
        return [(name, dict(options)) for name, options in self.providers]


@dataclass(frozen=True)
class Served:
    """How Triton serves an engine.

    `file` of the engine's folder is loaded as `model.onnx` or `model.plan`. `profile` are the
    least, the best and the most images that it takes, None for any number. `parameters` are for
    Triton's ONNX Runtime. `notes` tell what must be so at the server, and cannot be set.
    """

    platform: Literal["onnxruntime_onnx", "tensorrt_plan"]
    file: str
    device: Literal["CPU", "GPU"]
    profile: tuple[int, int, int] | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

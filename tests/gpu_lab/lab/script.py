"""What a test lets the simulated machine be and do."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

Step = Literal["parse", "build", "load", "run"]


@dataclass(frozen=True)
class Script:
    """The answers of the fake libraries; texts hold no quotes.

    `gpus` are compute capabilities. `cuda` is the newest CUDA of the driver, `cu_init` its error,
    `throttled` NVML's bit mask of reasons. TensorRT refuses the operators of `refuses`.

    The rest strikes graphs with the input `strikes` alone, so that probes run: TensorRT fails to
    parse or build them with a reason, or crashes or hangs in a step. `fill` is the number that
    their engines answer with, in place of the right ones; loading one takes `engine_mb`.
    """

    gpus: tuple[str, ...] = ("8.6",)
    memory_mb: int = 8192
    driver: str = "580.65.06"
    cuda: int = 13000
    cu_init: int = 0
    throttled: int = 0
    mig: int = 0
    refuses: tuple[str, ...] = ()
    strikes: str = "image"
    parse_error: str = ""
    build_error: str = ""
    crash: Step | None = None
    hang: Literal["build"] | None = None
    fill: float | None = None
    engine_mb: int = 0

    def text(self) -> str:
        """Return the script as the libraries read it: flat, without what is not set."""
        values = {key: value for key, value in asdict(self).items() if value not in (None, "")}
        capabilities = [capability.replace(".", "") for capability in self.gpus]
        values |= {f"capability{index}": int(text) for index, text in enumerate(capabilities)}
        return json.dumps(values | {"gpus": len(self.gpus)})

"""Wrap TensorRT for RTX, whose real builder works: engines carry what the simulated GPU runs.

Behind the bytes of an engine stand its profiles and the ONNX file, as in simulated engines.
"""

import json
from pathlib import Path
from typing import Any

from tensorrt_rtx_bindings import *  # type: ignore[import-untyped]  # noqa: F403
from tensorrt_rtx_bindings import Builder, OnnxParser, __version__  # noqa: F401

_parsed: list[str] = []
_parse, _build = OnnxParser.parse_from_file, Builder.build_serialized_network


def _remember(self: Any, path: str, *args: Any) -> Any:
    _parsed.append(path)
    return _parse(self, path, *args)


def _extend(self: Any, network: Any, config: Any) -> Any:
    engine = _build(self, network, config)
    if engine is None:
        return None
    options = {"hardware": 1, "profiles": [{}] * config.num_optimization_profiles}
    header = f"SIMULATED TENSORRT ENGINE {json.dumps(options)}\n".encode()
    return bytes(engine) + header + Path(_parsed[-1]).read_bytes()


OnnxParser.parse_from_file, Builder.build_serialized_network = _remember, _extend

"""A rewritten model is looked at, signed with how it was made, and written."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from qconvert import onnx_io
from qconvert.backends.ort import open_cpu
from qconvert.errors import QConvertError
from qconvert.feeds import Feeds, answer, draw
from qconvert.pipeline.prepared import Prepared, megabytes
from qconvert.pipeline.progress import Progress, Tell
from qconvert.quantize.found import PLAN
from qconvert.quantize.plan import Plan, to_json
from qconvert.store import digest

ISLANDS = "qconvert.islands"


def signed(model: ir.Model, plan: Plan | None, islands: Mapping[str, str]) -> ir.Model:
    """Return the model with its plan and its float32 islands written into its metadata."""
    model = model.clone()
    if plan is not None:
        model.metadata_props[PLAN] = json.dumps(to_json(plan), ensure_ascii=False)
    if islands:
        model.metadata_props[ISLANDS] = json.dumps(dict(islands), ensure_ascii=False)
    return model


def require_sound(model: ir.Model, ready: Prepared) -> None:
    """Refuse a model that is not valid ONNX, does not run, or no longer answers with numbers."""
    onnx_io.require_valid(model)
    before = open_cpu(ready.model)(draw(ready.source.inputs, 1, seed=0))
    after = open_cpu(model)(draw(onnx_io.inputs(model), 1, seed=0))
    broken = [name for name in before if _finite(before, name) and not _finite(after, name)]
    if broken:
        raise QConvertError(
            f"the rewritten model answers `{broken[0]}` with infinite values or NaN",
            hint="it overflows: give `--images`, so that it is known where, or `--rest fp32`",
        )


def write(model: ir.Model, out: Path, before: int, tell: Tell) -> None:
    """Write the model and say how large it is, beside the `before` bytes of its float weights."""
    started = time.perf_counter()
    onnx_io.save(model, out)
    size = sum(file.stat().st_size for file in onnx_io.files(out))
    share = f", {size / before:.0%} of {megabytes(before)}" if before else ""
    text = f"{out}, {megabytes(size)}{share}, sha256 {digest(out)[:12]}"
    tell(Progress("write", text, time.perf_counter() - started))


def _finite(answers: Feeds, name: str) -> bool:
    array = answer(answers, name)
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())

"""For every tensor the range method whose rounding moves the answers of the model least.

Each tensor is rounded alone, in the range of one method after another, and the float model runs on
from there. What a range does to its own tensor does not tell: a few large values may be all that
the layers behind care for, or nothing to them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from qconvert.feeds import Feeds, Run
from qconvert.quantize.plan import Rest
from qconvert.quantize.stretches import Open, Stretches
from qconvert.scales import Grid, Range, around, rounded

# Another method must bring the error down to this share of that of the usual one.
WORTH_IT = 0.8
# Ranges that differ by less are the same range.
ALIKE = 0.05


@dataclass(frozen=True)
class Rounding:
    """How a tensor is rounded within a range."""

    grid: Grid
    rest: Rest


@dataclass(frozen=True)
class Trial:
    """Images in parts that the model takes as a batch, and what opens a model."""

    parts: Sequence[Feeds]
    open_model: Open


def methods(
    model: ir.Model,
    ranges: Mapping[str, Mapping[str, Range]],
    rounding: Rounding,
    trial: Trial,
) -> Iterator[tuple[str, str]]:
    """Yield each tensor with its method; `ranges` has those of every method, the usual one first.

    Tensors that all methods give about the same range are left out.
    """
    usual = next(iter(ranges))
    walk = Stretches(model, trial.open_model, trial.parts)
    run = trial.open_model(model)
    wanted = [run(part) for part in trial.parts]
    for value in tensors(model, ranges):
        name = str(value.name)
        producer = value.producer()
        if producer is not None:
            walk.run_to(str(producer.name), name, beyond=True)
        rest = walk.rest()
        alike = _apart({method: each[name] for method, each in ranges.items()})
        errors = _errors(name, alike, rounding, _From(walk.held, rest, wanted))
        best = min(errors, key=lambda method: errors[method])
        yield name, best if errors[best] < WORTH_IT * errors[usual] else usual


def tensors(model: ir.Model, ranges: Mapping[str, Mapping[str, Range]]) -> list[ir.Value]:
    """Return the tensors about whose range the methods differ, in the order of the graph."""
    made = (*model.graph.inputs, *(value for node in model.graph for value in node.outputs))
    named = [value for value in made if all(value.name in each for each in ranges.values())]
    return [
        value
        for value in named
        if value.uses()
        and len(_apart({method: each[str(value.name)] for method, each in ranges.items()})) > 1
    ]


@dataclass(frozen=True)
class _From:
    """What is there of each part, what runs on from there, and what it should answer."""

    held: Sequence[Feeds]
    rest: Run
    wanted: Sequence[Feeds]


def _apart(ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Return the ranges that differ from all before them."""
    found: dict[str, Range] = {}
    for method, each in ranges.items():
        if not any(_alike(each, other) for other in found.values()):
            found[method] = each
    return found


def _alike(a: Range, b: Range) -> bool:
    most = ALIKE * max(a.high - a.low, b.high - b.low)
    return abs(a.low - b.low) <= most and abs(a.high - b.high) <= most


def _errors(
    name: str, ranges: Mapping[str, Range], rounding: Rounding, start: _From
) -> dict[str, float]:
    """Return the error of the answers for each range, over all parts."""
    errors = dict.fromkeys(ranges, 0.0)
    for part, wanted in zip(start.held, start.wanted, strict=True):
        for method, each in ranges.items():
            scale = around(each, rounding.grid, rounding.rest)
            got = start.rest({**part, name: rounded(np.asarray(part[name]), scale)})
            errors[method] += _error(wanted, {**part, **got})
    return errors


def _error(wanted: Feeds, got: Feeds) -> float:
    """Return the squared error of the real answers, each as a share of its power."""
    error = 0.0
    for name, answer in wanted.items():
        a, b = np.asarray(answer), np.asarray(got[name])
        if a.dtype.kind != "f":
            continue
        if a.shape != b.shape:
            return np.inf
        off = np.square(a.astype(np.float64) - b).sum()
        error += float(off / (np.square(a.astype(np.float64)).sum() or 1.0))
    return error if np.isfinite(error) else np.inf

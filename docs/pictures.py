"""Draw the pictures of the concept pages with qconvert's own arithmetic, on the demo's network.

`python docs/pictures.py` writes all of them. Counts of values differ a little between processors.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
import onnx_ir as ir
from matplotlib.figure import Figure
from numpy.typing import NDArray

import qconvert
from qconvert.calibrate import methods
from qconvert.calibrate.calibration_file import load
from qconvert.calibrate.histogram import build_histogram, equal_width_counts
from qconvert.calibrate.methods import squared_errors
from qconvert.calibrate.summary import Summary
from qconvert.core import onnx_io
from qconvert.core.scales import (
    Grid,
    Range,
    choose_qparams,
    choose_qparams_for_bounds,
    fake_quantize,
)
from qconvert.demo.demo_files import NETWORK
from qconvert.graph.patterns import constant_array
from qconvert.quantize import weights

PLACE = Path(__file__).parent / "pictures"
PICTURES = Path(__file__).parent.parent / "calib_data"
BLUE, ORANGE, GREEN, RED, GRAY = "#3987c9", "#e07a1f", "#3a9d5d", "#c23b5a", "#9aa4ae"
SIGNED, UNSIGNED = Grid(8), Grid(8, symmetric=False, signed=False)
THINNED = 4  # of so many channels one is drawn
ONE_SIDED, TAILED = "Clip", "Conv"
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qconvert",
    "font.size": 10,
    "font.sans-serif": ["DejaVu Sans"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e6e9ec",
    "legend.frameon": False,
}


def round_off() -> Figure:
    """Draw what eight levels make of each value, and what they lose."""
    scale = choose_qparams(Range(-1.0, 2.5), Grid(3, symmetric=False, signed=False))
    values = np.linspace(-2.0, 3.5, 1101, dtype=np.float32)
    kept = fake_quantize(values, scale)
    figure = Figure(figsize=(7, 4))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(values, values, color=GRAY, linewidth=1, label="x")
    above.plot(values, kept, color=BLUE, linewidth=1.6, label="rounded to 3 bits, range −1 … 2.5")
    above.legend(loc="upper left")
    below.plot(values, kept - values, color=RED, linewidth=1.4)
    below.set(xlabel="x", ylabel="error")
    step = float(scale.steps)
    below.axhspan(-step / 2, step / 2, color=RED, alpha=0.12, linewidth=0)
    return figure


def symmetric(seen: Mapping[str, Summary], model: ir.Model) -> Figure:
    """Draw both kinds of grid, of 4 bits to be seen, under the values behind a ReLU6."""
    name = _widest(seen, model, ONE_SIDED)
    figure = Figure(figsize=(7, 3.4))
    top, *rows = figure.subplots(3, 1, sharex=True, height_ratios=(4, 1, 1))
    edges = np.linspace(seen[name].low, seen[name].high, 81)
    top.stairs(_shares(seen[name]), edges, fill=True, color=GRAY)
    top.set(yscale="log", ylabel="share of values", title=f"{name}: behind a ReLU6")
    kinds = (("symmetric", Grid(4), SIGNED, ORANGE), ("with a zero point",
             Grid(4, symmetric=False, signed=False), UNSIGNED, BLUE))  # fmt: skip
    for row, (title, few, grid, colour) in zip(rows, kinds, strict=True):
        scale = choose_qparams(Range(seen[name].low, seen[name].high), few)
        levels = (np.arange(few.lowest, few.highest + 1) - scale.zeros) * scale.steps
        row.eventplot([levels], colors=colour, linelengths=0.8)
        row.set(yticks=[], xlim=(-7, 6.4))
        text = f"{title}: 4 bits drawn; with 8 bits {_sqnr(seen[name], grid):.1f} dB"
        row.set_title(text, fontsize=9, loc="left", color=colour, pad=2)
        row.grid(visible=False)
    return figure


def granularity(model: ir.Model) -> Figure:
    """Draw how near each channel's weights are with a scale each, and with one for all."""
    node = max((each for each in model.graph if _is_depthwise(each)), key=_unevenness)
    array = _weight(node)
    one = choose_qparams_for_bounds(np.float32(array.min()), np.float32(array.max()), SIGNED, None)
    each = weights.minmax_scale(array, SIGNED, 0)
    order = np.argsort(-np.abs(array).reshape(len(array), -1).max(axis=1))
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    for scale, colour, text in ((each, BLUE, "a scale for each channel"),
                                (one, ORANGE, "one scale for the tensor")):  # fmt: skip
        lost = np.square(fake_quantize(array, scale) - array).reshape(len(array), -1).sum(axis=1)
        power = np.square(array).reshape(len(array), -1).sum(axis=1)
        near = 10 * np.log10(power / lost)[order][::THINNED]
        places = np.arange(near.size) * THINNED
        axes.plot(places, near, ".", markersize=5, color=colour, label=text)
    axes.set(xlabel="channel, the one with the largest weight first", ylabel="SQNR, dB")
    axes.set_title(f"{node.name}: weights of a depthwise convolution, 8 bits", fontsize=10)
    axes.legend(loc="best")
    return figure


def ranges(seen: Mapping[str, Summary], model: ir.Model) -> Figure:
    """Draw the values of a tensor with long tails, and the ranges that methods keep of it."""
    name = _widest(seen, model, TAILED)
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    axes.stairs(_shares(seen[name]), np.linspace(seen[name].low, seen[name].high, 81),
                fill=True, color="#d5dbe1")  # fmt: skip
    colours = (GRAY, GREEN, RED, BLUE)
    for method, colour in zip(("minmax", "percentile:99.99", "entropy", "mse"), colours,
                              strict=True):  # fmt: skip
        kept = methods.find_method(method)(seen[name], UNSIGNED)
        text = f"{method}\n{kept.low:.2f} … {kept.high:.2f}".replace("-", "−")
        axes.axvline(kept.low, color=colour, linewidth=1.4, label=text)
        axes.axvline(kept.high, color=colour, linewidth=1.4)
    axes.set(yscale="log", xlabel="value", ylabel="share of values", title=name)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _widest(seen: Mapping[str, Summary], model: ir.Model, op: str) -> str:
    """Return the tensor with the longest tail: furthest from what 99 % of its values reach."""
    names = [
        value.name or ""
        for node in model.graph
        if node.op_type == op
        for value in node.outputs
        if (value.name or "") in seen and (op != TAILED or not _is_depthwise(node))
    ]

    def tail(name: str) -> float:
        inner = methods.percentile(seen[name], UNSIGNED, 99.0)
        return (seen[name].high - seen[name].low) / ((inner.high - inner.low) or 1.0)

    return max(names, key=tail)


def _sqnr(seen: Summary, grid: Grid) -> float:
    low, high = np.array([seen.low]), np.array([seen.high])
    values = build_histogram(seen)
    power = values.moments(np.array([values.reach]))[2]
    return float(10 * np.log10(power / squared_errors(values, low, high, grid))[0])


def _shares(seen: Summary) -> NDArray[np.float64]:
    found = equal_width_counts(seen, 80)
    shares: NDArray[np.float64] = found / found.sum()
    return shares


def _is_depthwise(node: ir.Node) -> bool:
    group = node.attributes.get("group")
    return node.op_type == "Conv" and group is not None and group.as_int() > 1


def _weight(node: ir.Node) -> NDArray[np.float32]:
    array = constant_array(node.inputs[1])
    assert array is not None
    return array.astype(np.float32)


def _unevenness(node: ir.Node) -> float:
    array = _weight(node)
    largest = np.abs(array).reshape(len(array), -1).max(axis=1)
    return float(largest.max() / np.median(largest))


def draw() -> Mapping[str, Callable[[], Figure]]:
    """Return what draws each picture, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calibration.npz"
        qconvert.calibrate(NETWORK, images=PICTURES, output=file)
        seen = load(file).summaries
    model = onnx_io.load(NETWORK)
    return {
        "round-off": round_off,
        "symmetric": lambda: symmetric(seen, model),
        "granularity": lambda: granularity(model),
        "ranges": lambda: ranges(seen, model),
    }


def write() -> int:
    """Write every picture beside the pages."""
    PLACE.mkdir(exist_ok=True)
    for name, make in draw().items():
        with mpl.rc_context(STYLE):
            figure = make()
            figure.tight_layout()
            figure.savefig(PLACE / f"{name}.svg", metadata={"Date": None})
    print(f"docs/pictures: {', '.join(sorted(each.name for each in PLACE.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(write())

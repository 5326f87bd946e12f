"""Draw the figures of the concept pages with qconvert's own arithmetic, on the demo's network.

`python docs/pictures.py` writes all of them. Counts of values differ slightly between processors.
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
from qconvert.calibrate.calibration import load_calibration
from qconvert.calibrate.methods import squared_errors
from qconvert.calibrate.summary import Summary, build_histogram, equal_width_counts
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

FIGURES = Path(__file__).parent / "pictures"
IMAGES = Path(__file__).parent.parent / "calib_data"
BLUE, ORANGE, GREEN, RED, GRAY = "#3987c9", "#e07a1f", "#3a9d5d", "#c23b5a", "#9aa4ae"
SIGNED, UNSIGNED = Grid(8), Grid(8, symmetric=False, signed=False)
CHANNEL_STRIDE = 4  # every fourth channel is drawn
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
    """Draw values quantized to eight levels, and their error."""
    qparams = choose_qparams(Range(-1.0, 2.5), Grid(3, symmetric=False, signed=False))
    values = np.linspace(-2.0, 3.5, 1101, dtype=np.float32)
    quantized = fake_quantize(values, qparams)
    figure = Figure(figsize=(7, 4))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    above.plot(values, values, color=GRAY, linewidth=1, label="x")
    above.plot(values, quantized, color=BLUE, linewidth=1.6, label="3-bit levels, range −1 … 2.5")
    above.legend(loc="upper left")
    below.plot(values, quantized - values, color=RED, linewidth=1.4)
    below.set(xlabel="x", ylabel="error")
    step = float(qparams.scale)
    below.axhspan(-step / 2, step / 2, color=RED, alpha=0.12, linewidth=0)
    return figure


def symmetric(summaries: Mapping[str, Summary], model: ir.Model) -> Figure:
    """Draw the values after a ReLU6 over both kinds of grid, with 4 bits to keep levels visible."""
    name = _widest(summaries, model, ONE_SIDED)
    figure = Figure(figsize=(7, 3.4))
    top, *rows = figure.subplots(3, 1, sharex=True, height_ratios=(4, 1, 1))
    edges = np.linspace(summaries[name].low, summaries[name].high, 81)
    top.stairs(_shares(summaries[name]), edges, fill=True, color=GRAY)
    top.set(yscale="log", ylabel="share of values", title=f"{name}: behind a ReLU6")
    kinds = (("symmetric", Grid(4), SIGNED, ORANGE), ("with a zero point",
             Grid(4, symmetric=False, signed=False), UNSIGNED, BLUE))  # fmt: skip
    for row, (title, few, grid, colour) in zip(rows, kinds, strict=True):
        qparams = choose_qparams(Range(summaries[name].low, summaries[name].high), few)
        levels = (np.arange(few.quant_min, few.quant_max + 1) - qparams.zero_point) * qparams.scale
        row.eventplot([levels], colors=colour, linelengths=0.8)
        row.set(yticks=[], xlim=(-7, 6.4))
        text = f"{title}: 4 bits drawn; with 8 bits {_sqnr(summaries[name], grid):.1f} dB"
        row.set_title(text, fontsize=9, loc="left", color=colour, pad=2)
        row.grid(visible=False)
    return figure


def granularity(model: ir.Model) -> Figure:
    """Draw the SQNR of the weights of each channel, with a scale per channel and per tensor."""
    node = max(filter(_is_depthwise, model.graph), key=_channel_imbalance)
    array = _weight(node)
    per_tensor = choose_qparams_for_bounds(
        np.float32(array.min()), np.float32(array.max()), SIGNED, None
    )
    per_channel = weights.minmax_qparams(array, SIGNED, 0)
    order = np.argsort(-np.abs(array).reshape(len(array), -1).max(axis=1))
    figure = Figure(figsize=(7, 3))
    axes = figure.subplots()
    for qparams, colour, text in ((per_channel, BLUE, "a scale for each channel"),
                                (per_tensor, ORANGE, "one scale for the tensor")):  # fmt: skip
        noise = np.square(fake_quantize(array, qparams) - array).reshape(len(array), -1).sum(axis=1)
        power = np.square(array).reshape(len(array), -1).sum(axis=1)
        sqnr = 10 * np.log10(power / noise)[order][::CHANNEL_STRIDE]
        channels = np.arange(sqnr.size) * CHANNEL_STRIDE
        axes.plot(channels, sqnr, ".", markersize=5, color=colour, label=text)
    axes.set(xlabel="channel, the one with the largest weight first", ylabel="SQNR, dB")
    axes.set_title(f"{node.name}: weights of a depthwise convolution, 8 bits", fontsize=10)
    axes.legend(loc="best")
    return figure


def ranges(summaries: Mapping[str, Summary], model: ir.Model) -> Figure:
    """Draw the values of a tensor with long tails, and the range of each method."""
    name = _widest(summaries, model, TAILED)
    figure = Figure(figsize=(7, 3.4))
    axes = figure.subplots()
    edges = np.linspace(summaries[name].low, summaries[name].high, 81)
    axes.stairs(_shares(summaries[name]), edges, fill=True, color="#d5dbe1")
    colours = (GRAY, GREEN, RED, BLUE)
    for method, colour in zip(("minmax", "percentile:99.99", "entropy", "mse"), colours,
                              strict=True):  # fmt: skip
        clipping = methods.find_method(method)(summaries[name], UNSIGNED)
        text = f"{method}\n{clipping.low:.2f} … {clipping.high:.2f}".replace("-", "−")
        axes.axvline(clipping.low, color=colour, linewidth=1.4, label=text)
        axes.axvline(clipping.high, color=colour, linewidth=1.4)
    axes.set(yscale="log", xlabel="value", ylabel="share of values", title=name)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _widest(summaries: Mapping[str, Summary], model: ir.Model, op: str) -> str:
    """Return the tensor with the longest tail: the largest ratio of its range to the 99 % range."""
    names = [
        value.name or ""
        for node in model.graph
        if node.op_type == op
        for value in node.outputs
        if (value.name or "") in summaries and (op != TAILED or not _is_depthwise(node))
    ]

    def tail(name: str) -> float:
        inner = methods.percentile(summaries[name], UNSIGNED, 99.0)
        return (summaries[name].high - summaries[name].low) / ((inner.high - inner.low) or 1.0)

    return max(names, key=tail)


def _sqnr(summary: Summary, grid: Grid) -> float:
    low, high = np.array([summary.low]), np.array([summary.high])
    histogram = build_histogram(summary)
    power = histogram.moments(np.array([histogram.bound]))[2]
    return float(10 * np.log10(power / squared_errors(histogram, low, high, grid))[0])


def _shares(summary: Summary) -> NDArray[np.float64]:
    counts = equal_width_counts(summary, 80)
    shares: NDArray[np.float64] = counts / counts.sum()
    return shares


def _is_depthwise(node: ir.Node) -> bool:
    group = node.attributes.get("group")
    return node.op_type == "Conv" and group is not None and group.as_int() > 1


def _weight(node: ir.Node) -> NDArray[np.float32]:
    array = constant_array(node.inputs[1])
    assert array is not None
    return array.astype(np.float32)


def _channel_imbalance(node: ir.Node) -> float:
    array = _weight(node)
    largest = np.abs(array).reshape(len(array), -1).max(axis=1)
    return float(largest.max() / np.median(largest))


def draw() -> Mapping[str, Callable[[], Figure]]:
    """Return the functions that draw the figures, by name."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calibration.npz"
        qconvert.calibrate(NETWORK, images=IMAGES, output=file)
        summaries = load_calibration(file).summaries
    model = onnx_io.load(NETWORK)
    return {
        "round-off": round_off,
        "symmetric": lambda: symmetric(summaries, model),
        "granularity": lambda: granularity(model),
        "ranges": lambda: ranges(summaries, model),
    }


def write() -> int:
    """Write every figure beside the pages."""
    FIGURES.mkdir(exist_ok=True)
    for name, make in draw().items():
        with mpl.rc_context(STYLE):
            figure = make()
            figure.tight_layout()
            figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
    print(f"docs/pictures: {', '.join(sorted(path.name for path in FIGURES.iterdir()))}")
    return 0


if __name__ == "__main__":
    sys.exit(write())

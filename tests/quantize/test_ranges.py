"""Ranges are clipped only where that is harmless, and merged where one scale is required."""

from dataclasses import replace
from functools import cache

import numpy as np
import onnx_ir as ir
import pytest

from qconvert.calibrate.summary import Summary
from qconvert.core.scales import Grid, Range
from qconvert.graph.passes import infer_shapes
from qconvert.graph.taps import find_observed_tensors
from qconvert.quantize.placement import choose_ranges, share_ranges
from qconvert.quantize.plan import LayerPlan
from tests.calibrate.activations import summary_of
from tests.models import floats, from_text

SHIFTED = Grid(8, symmetric=False)
CUTTING = ("mse", "percentile:99", "entropy")
CONCAT = frozenset({"Concat"})


@cache
def observed_summary() -> Summary:
    """Return the summary of a tensor whose few large values all methods but `minmax` clip."""
    values = np.random.default_rng(0).standard_t(4, (40, 2000)).astype(np.float32)
    return summary_of(values)


def net(body: str, outputs: str = "float[] y") -> ir.Model:
    weights = {"w": floats(4, 4, 1, 1)} if " w)" in body else {}
    text = '<ir_version: 10, opset_import: ["": 20]>\n'
    text += f"net (float[N, 4, 8, 8] x) => ({outputs}) {{ {body} }}"
    return infer_shapes(from_text(text, **weights))[0]


def cut(model: ir.Model, method: str = "mse", grid: Grid = SHIFTED) -> set[str]:
    """Return the tensors whose range is narrower than their observed values."""
    observed = find_observed_tensors(model)
    summaries = dict.fromkeys(observed.quantizable, observed_summary())
    ranges = choose_ranges(model.graph, observed, summaries, grid, method)
    assert set(ranges) == {*observed.quantizable, *observed.aliases}
    whole = Range(observed_summary().low, observed_summary().high)
    return {name for name, chosen in ranges.items() if chosen != whole}


@pytest.mark.parametrize("method", CUTTING)
@pytest.mark.parametrize("grid", [SHIFTED, Grid(8)])
def test_graph_outputs_are_never_clipped(method: str, grid: Grid) -> None:
    model = net("a = Conv (x, w) b = Conv (a, w) y = Conv (b, w)", "float[] y, float[] a")
    assert cut(model, method, grid) == {"x", "b"}


def test_minmax_clips_nothing() -> None:
    assert cut(net("a = Conv (x, w) y = Conv (a, w)"), "minmax") == set()


SATURATING = ("Sigmoid", "HardSigmoid", "Tanh", "Softmax <axis: int = 1>", "LogSoftmax")
GATES = [
    f"a = Conv (x, w) s = {gate} (a) m = {product} y = Conv (m, w)"
    for gate in ("Sigmoid", "HardSigmoid")
    for product in ("Mul (a, s)", "Mul (s, a)")
]
ALL_BUT_OUTPUT = {"x", "a", "s", "m"}


@pytest.mark.parametrize(
    ("body", "outputs", "clipped"),
    [
        *[(f"a = Conv (x, w) b = {op} (a) y = Conv (b, w)", "", {"x", "b"}) for op in SATURATING],
        ("a = Conv (x, w) b = Conv (a, w) y = ArgMax <axis: int = 1> (b)", "int64[] y", {"x", "a"}),
        # A gate only scales its input, unless the gate has another reader or reads another gate.
        *[(body, "", ALL_BUT_OUTPUT) for body in GATES],
        (
            "a = Conv (x, w) b = Conv (a, w) s = Sigmoid (b) m = Mul (a, s) y = Conv (m, w)",
            *("", ALL_BUT_OUTPUT),
        ),
        (GATES[0], "float[] y, float[] s", {"x", "m"}),
        (f"{GATES[0]} z = Conv (s, w)", "float[] y, float[] z", {"x", "s", "m"}),
        # Nodes that move values pass them on unchanged.
        ("b = Conv (x, w) a = Conv (b, w) y = Flatten (a)", "", {"x", "b"}),
        (
            "b = Conv (x, w) a = Conv (b, w) y = MaxPool <kernel_shape: ints = [2, 2]> (a)",
            *("", {"x", "b"}),
        ),
        ("a = Conv (x, w) t = Flatten (a) s = Sigmoid (t) y = Relu (s)", "", {"x", "s"}),
    ],
)
def test_tensor_with_extremes_that_decide_output_is_not_clipped(
    body: str, outputs: str, clipped: set[str]
) -> None:
    assert cut(net(body, outputs or "float[] y")) == clipped


def test_moved_tensor_has_the_range_of_its_source() -> None:
    model = net(
        "a = Conv (x, w) p = MaxPool <kernel_shape: ints = [2, 2]> (a) "
        "t = Transpose <perm: ints = [0, 1, 3, 2]> (p) y = Conv (t, w)"
    )
    observed = find_observed_tensors(model)
    summaries = {name: summary_of(floats(9, 50, seed=len(name))) for name in observed.quantizable}
    summaries["a"] = observed_summary()
    ranges = choose_ranges(model.graph, observed, summaries, SHIFTED, "mse")
    assert ranges["p"] == ranges["t"] == ranges["a"] != ranges["x"]


@pytest.mark.parametrize(
    ("activation", "low"),
    [
        ("h = HardSwish (a)", -3.0),
        ("s = Sigmoid (a) h = Mul (a, s)", -8.0),
        ("s = Sigmoid (a) h = Mul (s, s)", -20.0),
        ("s = Sigmoid (a) b = Mul (a, s) h = Add (b, a)", -20.0),
        ("s = HardSwish (a) h = Add (s, a)", -20.0),
        ("h = Elu (a)", -20.0),
    ],
)
def test_range_leaves_out_what_its_reader_turns_into_zeros(activation: str, low: float) -> None:
    model = net(f"a = Conv (x, w) {activation} y = Conv (h, w)")
    observed = find_observed_tensors(model)
    wide = summary_of(np.linspace(-20, 15, 400, dtype=np.float32).reshape(8, 50))
    summaries = dict.fromkeys(observed.quantizable, wide)
    ranges = choose_ranges(model.graph, observed, summaries, SHIFTED, "minmax")
    assert ranges["a"] == Range(low, 15.0)
    assert ranges["x"] == Range(-20.0, 15.0)


def test_range_below_all_that_an_activation_passes_stays_whole() -> None:
    model = net("a = Conv (x, w) h = HardSwish (a) y = Conv (h, w)")
    observed = find_observed_tensors(model)
    negative = summary_of(np.linspace(-9, -4, 400, dtype=np.float32).reshape(8, 50))
    summaries = dict.fromkeys(observed.quantizable, negative)
    ranges = choose_ranges(model.graph, observed, summaries, SHIFTED, "minmax")
    assert ranges["a"].low == -9.0


def test_range_only_tensors_get_no_range() -> None:
    model = net("a = Conv (x, w) p = MaxPool <kernel_shape: ints = [2, 2]> (a) y = Conv (p, w)")
    observed = find_observed_tensors(model)
    summaries = dict.fromkeys(observed.quantizable, observed_summary()) | {
        "a": replace(observed_summary(), size=0)
    }
    assert set(choose_ranges(model.graph, observed, summaries, SHIFTED, "mse")) == {"x", "y"}


def test_methods_choose_each_range_from_its_summary() -> None:
    model = net("a = Conv (x, w) b = Conv (a, w) y = Conv (b, w)")
    observed = find_observed_tensors(model)
    summaries = {name: summary_of(floats(9, 50, seed=ord(name))) for name in observed.quantizable}
    ranges = choose_ranges(model.graph, observed, summaries, SHIFTED, "minmax")
    assert ranges == {name: Range(summary.low, summary.high) for name, summary in summaries.items()}


# The first tensor has the larger maximum, the second the smaller minimum.
RANGES = {name: Range(-1.0 - place, 9.0 - place) for place, name in enumerate("abcdefuvz")}


def shared(body: str, left: tuple[str, ...] = ()) -> dict[str, Range]:
    """Return the shared ranges of a graph of Concats; those that make `left` stay in float."""
    sources = " ".join(f"{name} = Relu (x)" for name in "abcdef")
    model = net(f"{sources} {body}", "float[] z")
    layers = {}
    for node in model.graph:
        output = str(node.outputs[0].name)
        node.name = f"node of {output}"
        layers[node.name] = LayerPlan(node.op_type, left="as requested" if output in left else "")
    before = dict(RANGES)
    ranges = share_ranges(model.graph, layers, before, CONCAT)
    assert before == RANGES
    return ranges


def groups(*members: str) -> dict[str, Range]:
    """Return the ranges with those of each group widened until all have the same."""
    expected = dict(RANGES)
    for names in members:
        ends = [RANGES[name] for name in names]
        widest = Range(min(end.low for end in ends), max(end.high for end in ends))
        expected |= dict.fromkeys(names, widest)
    return expected


U = "u = Concat <axis: int = 1> (a, b)"


@pytest.mark.parametrize(
    ("body", "left", "members"),
    [
        ("z = Relu (u)", "", ["abu"]),
        ("z = Concat <axis: int = 1> (u, c)", "", ["abucz"]),
        ("z = Concat <axis: int = 1> (b, c)", "", ["abucz"]),
        (
            "v = Concat <axis: int = 1> (c, d) z = Concat <axis: int = 1> (e, b, d)",
            *("", ["abucdvez"]),
        ),
        ("v = Concat <axis: int = 1> (c, d) z = Relu (v)", "", ["abu", "cdv"]),
        ("z = Concat <axis: int = 1> (u, c)", "z", ["abu"]),
        ("z = Concat <axis: int = 1> (u, c)", "u", ["ucz"]),
    ],
)
def test_quantized_concats_that_touch_share_the_widest_range(
    body: str, left: str, members: list[str]
) -> None:
    assert shared(f"{U} {body}", left=tuple(left)) == groups(*members)


def test_tensor_without_a_range_is_not_shared() -> None:
    model = net(f"a = Relu (x) b = Relu (x) {U} z = Relu (u)", "float[] z")
    for node in model.graph:
        node.name = f"node of {node.outputs[0].name}"
    layers = {str(node.name): LayerPlan(node.op_type) for node in model.graph}
    pair = {"a": Range(-1.0, 1.0), "u": Range(0.0, 2.0)}
    assert share_ranges(model.graph, layers, pair, CONCAT) == dict.fromkeys("au", Range(-1.0, 2.0))
    narrow = {"a": Range(-1.0, 1.0), "u": Range(0.0, 3.0)}
    assert share_ranges(model.graph, layers, narrow, CONCAT) == {
        "a": Range(-1.0, 1.0),
        "u": Range(-1.0, 3.0),
    }
    assert share_ranges(model.graph, layers, {}, CONCAT) == {}
    assert share_ranges(model.graph, layers, pair, frozenset()) == pair

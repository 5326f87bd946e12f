"""Users select float nodes by name or operator, and patterns without a match are errors."""

import onnx_ir as ir
import pytest

from qconvert import backends
from qconvert.core.errors import UsageError
from qconvert.graph.passes import infer_shapes
from qconvert.graph.taps import find_observed_tensors
from qconvert.quantize.placement import Selection, find_excluded_nodes, place_quantizers
from tests.models import floats, from_text

# Two stems join in `sum`; after `middle` the graph splits into two heads.
NET = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 3, 8, 8] left, float[N, 3, 8, 8] right) => (float[N, 4, 8, 8] mask, float[N, 5] box) {
    a = Conv (left, w1)
    b = Conv (right, w2)
    c = Add (a, b)
    d = Sigmoid (c)
    e = Conv (d, w3)
    f = Sigmoid (e)
    mask = ConvTranspose (f, w4)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    box = MatMul (h, w5)
}
"""
NAMES = (
    "stem/left", "stem/right", "sum", "gate_1", "middle", "gate_2",
    "head/mask", "pool", "flatten", "head[0]/box",
)  # fmt: skip
OPERATORS = frozenset({"Conv", "ConvTranspose", "MatMul", "Add", "Sigmoid", "GlobalAveragePool"})
EVERY = {name for name in NAMES if name != "flatten"}


def net() -> ir.Model:
    kernel = floats(4, 4, 1, 1)
    weights = {"w1": floats(4, 3, 1, 1), "w2": floats(4, 3, 1, 1), "w3": kernel, "w4": kernel}
    model = from_text(NET, **weights, w5=floats(4, 5))
    for node, name in zip(model.graph, NAMES, strict=True):
        node.name = name
    return infer_shapes(model)[0]


def reasons(
    exclude: tuple[str, ...] = (), only: tuple[str, ...] = (), keep: tuple[str, ...] = ()
) -> dict[str, str]:
    return find_excluded_nodes(net().graph, Selection(exclude, only, keep), OPERATORS)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("middle", {"middle"}),
        ("stem/*", {"stem/left", "stem/right"}),
        ("gate_?", {"gate_1", "gate_2"}),
        ("gate_[2-9]", {"gate_2"}),
        ("gate_[!2]", {"gate_1"}),
        ("*/*t", {"stem/left", "stem/right"}),
        ("Conv", {"stem/left", "stem/right", "middle"}),
        ("Conv*", {"stem/left", "stem/right", "middle", "head/mask"}),
        ("*", EVERY),
    ],
)
def test_pattern_matches_whole_names_or_operators(pattern: str, names: set[str]) -> None:
    assert reasons(exclude=(pattern,)) == dict.fromkeys(names, f"excluded by `{pattern}`")
    assert reasons(only=(pattern,)) == dict.fromkeys(EVERY - names, "`--only` does not name it")


def test_several_patterns_are_combined() -> None:
    both = ("middle", "Sigmoid")
    assert set(reasons(exclude=both)) == {"middle", "gate_1", "gate_2"}
    assert set(reasons(only=both)) == EVERY - {"middle", "gate_1", "gate_2"}


def test_empty_selection_excludes_nothing() -> None:
    assert reasons() == {}


def test_exclude_wins_over_only() -> None:
    excluded = reasons(only=("Conv",), exclude=("stem/*",))
    assert set(excluded) == EVERY - {"middle"}
    assert excluded["stem/left"] == "excluded by `stem/*`"
    assert excluded["sum"] == "`--only` does not name it"


def test_keep_first_and_last_cover_every_stem_and_head() -> None:
    first = {"stem/left", "stem/right"}
    last = {"head/mask", "head[0]/box"}
    assert set(reasons(keep=("first",))) == first
    assert set(reasons(keep=("last",))) == last
    both = reasons(keep=("first", "last"))
    assert set(both) == first | last
    assert both["stem/left"] == "it is first, kept by `--keep first`"
    assert both["head/mask"] == "it is last, kept by `--keep last`"


def test_layer_beside_a_longer_branch_is_neither_first_nor_last() -> None:
    body = "a = Conv (x, w) b = Conv (a, w) c = Add (a, b) y = Conv (c, w)"
    model = from_text(
        '<ir_version: 10, opset_import: ["": 20]>\n'
        f"net (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y) {{ {body} }}",
        w=floats(4, 4, 1, 1),
    )
    for node in model.graph:
        node.name = node.outputs[0].name
    ends = {
        end: set(find_excluded_nodes(model.graph, Selection(keep=(end,)), OPERATORS))
        for end in ("first", "last")
    }
    assert ends == {"first": {"a"}, "last": {"y"}}


@pytest.mark.parametrize("option", ["exclude", "only"])
@pytest.mark.parametrize(
    ("pattern", "near"), [("midle", "`middle`"), ("conv", "`Conv`"), ("stem/lefd*", "`stem/left`")]
)
def test_pattern_without_a_match_is_rejected_with_similar_names(
    option: str, pattern: str, near: str
) -> None:
    with pytest.raises(UsageError, match="matches no node") as raised:
        reasons(**{option: ("Sigmoid", pattern)})
    assert f"`--{option} {pattern}`" in str(raised.value)
    assert "similar names: " in raised.value.hint
    assert near in raised.value.hint
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("pattern", ["flatten", "Flatten", "iddl", "MIDDLE", "zzzzzzzz"])
def test_pattern_matches_only_quantizable_nodes(pattern: str) -> None:
    with pytest.raises(UsageError, match="that could be quantized") as raised:
        reasons(exclude=(pattern,))
    assert "qconvert inspect" in raised.value.hint


def test_name_with_brackets_matches_itself() -> None:
    assert set(reasons(exclude=("head[0]/box",))) == {"head[0]/box"}


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
@pytest.mark.parametrize("pattern", ["Conv", "middle"])
def test_convolution_selected_by_only_is_quantized(backend: str, pattern: str) -> None:
    scheme = backends.requirements(backend).schemes.get("int8")
    assert scheme is not None
    model = wide()
    layers = place_quantizers(
        model, scheme, find_observed_tensors(model), Selection(only=(pattern,))
    )
    assert layers["middle"].left == ""
    assert layers["after"].left == "`--only` does not name it"


def wide() -> ir.Model:
    """Return a convolution with its Relu, of enough channels for every backend, and a product."""
    model = from_text(
        '<ir_version: 10, opset_import: ["": 20]>\n'
        "net (float[N, 32, 8, 8] x) => (float[N, 8, 8, 32] y) { a = Conv (x, w) b = Relu (a) "
        "c = Transpose <perm: ints = [0, 2, 3, 1]> (b) y = MatMul (c, v) }",
        w=floats(32, 32, 1, 1),
        v=floats(32, 32),
    )
    for node, name in zip(model.graph, ("middle", "relu", "turn", "after"), strict=True):
        node.name = name
    return infer_shapes(model)[0]

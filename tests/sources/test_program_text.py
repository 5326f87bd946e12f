"""Text in an exported program: what torch writes passes, what would run code does not."""

import json
from typing import Any

import pytest

from qconvert.sources.program_text import (
    is_expression,
    is_guard,
    is_operator,
    is_structure,
    suspicious,
)

LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}


@pytest.mark.parametrize(
    "text",
    [
        "s77",
        "8*s39",
        "Symbol('s77', positive=True, integer=True)",
        "Add(Integer(-1), Mul(Integer(2), Symbol('s0', integer=True)))",
        "FloorDiv(Float('0.5', precision=53), Integer(2))",
        "Equality(Max(Integer(1), Symbol('u0')), Integer(3))",
    ],
)
def test_arithmetic_on_sizes_is_an_expression(text: str) -> None:
    assert is_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch pwned')",
        "Symbol('s0').__class__",
        "Symbol('__import__(1)')",
        "Integer('__import__(1)')",
        "Mul('__import__(1)', 2)",
        "eval(1)",
        "Symbol(*[1])",
        "Symbol('s0', integer=exit())",
        "[s0 for s0 in s1]",
        "s0; s1",
        "",
    ],
)
def test_anything_else_is_no_expression(text: str) -> None:
    assert not is_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "L['image'].size()[2] >= 3",
        "((-2) + L['image'].size()[3]) != 1",
        "L['xs'][0]['q'].stride()[1] % 8 == 0 and L['n'] is None or L['k'] == 3",
        "max(1, L['x'].size()[0] // 4)*Max(1, 2) < math.floor(2.5)",
        "L['scale'] == math.inf or L['mode'] == 'bilinear'",
    ],
)
def test_conditions_on_inputs_are_guards(text: str) -> None:
    assert is_guard(text) == ("is None" not in text)
    assert is_guard(text.replace("is None", "== None"))


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch pwned')",
        "L['x'].__class__.__mro__[1] == 1",
        "L['x'].size(exit())[0] == 1",
        "math.__loader__.load_module('os') == 1",
        "L['a\"); exit()#'].size()[0] == 1",
        "L['x'].size()[0] == 1 # , )",
        "(lambda: 1)() == 1",
        "L['x'].size()[exit()] == 1",
        "globals() == 1",
        "(x := 1) == 1",
    ],
)
def test_anything_else_is_no_guard(text: str) -> None:
    assert not is_guard(text)


def test_only_operators_of_torch_are_operators() -> None:
    for text in (
        "torch.ops.aten._to_copy.default",
        "torch.ops.higher_order.cond",
        "torch.sym_max",
        "_operator.mul",
        "math.trunc",
    ):
        assert is_operator(text)
    for text in (
        "torch.os.system",
        "torch.ops.load_library",
        "torch.ops.aten.__class__",
        "torch.ops.aten.add.__init__",
        "torch.ops.aten.from_file.default",
        "torch.ops.os.system.x",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "math.__loader__.load_module",
        "torch.hub.load",
        "#ns:op",
    ):
        assert not is_operator(text)


def test_the_structure_of_arguments_imports_nothing() -> None:
    def spec(kind: str | None, context: object) -> str:
        node = {"type": kind, "context": json.dumps(context), "children_spec": [LEAF]}
        return json.dumps([1, node])

    assert is_structure(json.dumps([1, LEAF]))
    assert is_structure(spec("builtins.tuple", None))
    assert is_structure(spec("builtins.dict", ["image", 3]))
    assert not is_structure(spec("builtins.dict", [{"__enum__": True, "fqn": "antigravity:x"}]))
    assert not is_structure(spec("builtins.dict", ["a'); exit()"]))
    assert not is_structure(spec("collections.defaultdict", {"default_factory_module": "os"}))
    assert not is_structure("[1, 2, 3]")
    assert not is_structure("no json")


def test_every_text_is_looked_at_wherever_it_stands() -> None:
    """A tensor may be called like a field that holds free text; what it holds stays checked."""
    evil = {"as_expr": {"expr_str": "exit()"}}
    assert suspicious({"metadata": {"stack_trace": 'File "a.py", line 3'}}) is None
    documents: tuple[Any, ...] = (
        {"tensor_values": {"metadata": {"sizes": [evil]}}},
        {"tensor_values": {"stack_trace": {"sizes": [evil]}}},
        {"as_string": {"x": evil}},
        {"tensor_values": {"exit()": {}}},
        [{"name": "x); exit("}],
        {"metadata": {"as_operator": "torch.os.system"}},
    )
    for content in documents:
        assert suspicious(content)

"""The text in an exported program: torch turns parts of it into Python, so each must be harmless.

Names become variables in generated code, expressions go through `sympify`, guards through `exec`,
operators are looked up by attribute, and the structure of arguments may import modules. Each kind
is held against what `torch.export.save` writes; all else is named, and left to the user's trust.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Text = tuple[str, str]

WORD = re.compile(r"[\w.@/+-]*")
SYMBOL = re.compile(r"[A-Za-z]\w*")
NUMBER = re.compile(r"-?[\d.]+(e[+-]?\d+)?")

# Texts that torch keeps as they are: values handed to operators, versions, and a node's history.
FREE = (
    *("as_string", "as_strings", "torch_version"),
    *("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "custom", "from_node"),
)

LIBRARIES = "aten|prims|torchvision|quantized_decomposed"
CONTROL = (
    "cond|while_loop|map_impl|scan|associative_scan|wrap_with_set_grad_enabled|wrap_with_autocast"
)
ARITHMETIC = (
    "abs|add|sub|mul|floordiv|truediv|mod|neg|pos|pow|eq|ne|lt|le|gt|ge|and_|or_|not_|xor|getitem"
    "|lshift|rshift|invert|index"
)
OPERATOR = re.compile(
    rf"torch\.ops\.({LIBRARIES})\.(?!__|from_file)\w+(\.(?!__)\w+)?"
    rf"|torch\.ops\.higher_order\.({CONTROL})"
    rf"|_operator\.({ARITHMETIC})|math\.[a-z]\w*|torch\._?sym_\w+"
)

# What `sympy.srepr` and torch's own functions are called.
FUNCTIONS = frozenset(
    (
        *("Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Max", "Min", "Mod"),
        *("Abs", "floor", "ceiling", "Not", "And", "Or", "Equality", "Unequality"),
        *("StrictLessThan", "LessThan", "StrictGreaterThan", "GreaterThan"),
        *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "BooleanTrue", "BooleanFalse"),
        *("FloorDiv", "CeilDiv", "CleanDiv", "IntTrueDiv", "FloatTrueDiv", "PythonMod"),
        *("ModularIndexing", "Where", "LShift", "RShift", "PowByNatural", "FloatPow"),
        *("CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "RoundDecimal"),
        *("ToFloat", "TruncToFloat", "Identity", "IsNonOverlappingAndDenseIndicator"),
    )
)
BUILTINS = ("max", "min", "abs", "int", "float", "bool", "round")
MEASURES = ("size", "stride", "storage_offset", "numel", "dim")
NUMBERS = ("inf", "math.inf", "math.nan", "math.pi", "math.e")

COMPUTES = (
    ast.Expression,
    ast.Load,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.Eq,
    ast.NotEq,
    ast.Lt,
    ast.LtE,
    ast.Gt,
    ast.GtE,
)
STRUCTURES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")


def suspicious(content: Any) -> str | None:
    """Return the first text in a JSON document that might run as code, None where there is none."""
    return next((text for key, text in _texts(content, "") if not _harmless(key, text)), None)


def _texts(value: Any, key: str) -> Iterator[Text]:
    """Yield every text with the key it stands under; keys are texts, too."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, key)
    elif isinstance(value, dict):
        for name, each in value.items():
            # What is known of a size stands under the size, which may be a product of others.
            yield "expr_str" if key == "range_constraints" else "", name
            yield from _texts(each, name)


def _harmless(key: str, text: str) -> bool:
    if key in FREE:
        return True
    check = CHECKS.get(key)
    return bool(WORD.fullmatch(text)) if check is None else check(text)


def is_operator(text: str) -> bool:
    """Whether a name is an operator of torch's, not just anything that can be reached from it."""
    return OPERATOR.fullmatch(text) is not None


def is_expression(text: str) -> bool:
    """Whether a text is arithmetic on symbols and numbers."""
    return _parses(text, _in_expression)


def is_guard(text: str) -> bool:
    """Whether a text is a condition on the sizes of inputs."""
    return _parses(text, _in_guard)


def is_structure(text: str) -> bool:
    """Whether a text describes tuples, lists and dicts, whose keys are words."""
    try:
        version, content = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    return isinstance(version, int) and _is_node(content)


def _is_node(node: Any) -> bool:
    if not isinstance(node, dict) or node.keys() != {"type", "context", "children_spec"}:
        return False
    if not _is_one_of(node["type"]) or not _is_context(node["context"]):
        return False
    return isinstance(node["children_spec"], list) and all(map(_is_node, node["children_spec"]))


def _is_one_of(kind: Any) -> bool:
    return kind is None or (isinstance(kind, str) and kind in STRUCTURES)


def _is_context(context: Any) -> bool:
    """A dict has its keys as context, written as JSON inside the JSON."""
    if context is None:
        return True
    try:
        keys = json.loads(context)
    except (ValueError, TypeError, RecursionError):
        return False
    return keys is None or (isinstance(keys, list) and all(map(_is_key, keys)))


def _is_key(key: Any) -> bool:
    return isinstance(key, int) or (isinstance(key, str) and WORD.fullmatch(key) is not None)


def _parses(text: str, allows: Callable[[ast.AST], bool]) -> bool:
    # The text is pasted into a line of generated code, where a comment would hide the rest.
    if "\n" in text or "#" in text:
        return False
    try:
        return allows(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _in_expression(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))]):
            return SYMBOL.fullmatch(name) is not None and _plain_keywords(node)
        case ast.Call(func=ast.Name(id="Float"), args=[ast.Constant(value=str(number))]):
            return NUMBER.fullmatch(number) is not None and _plain_keywords(node)
        case ast.Call(func=ast.Name(id=name)):
            return (
                name in FUNCTIONS and _plain_keywords(node) and all(map(_in_expression, node.args))
            )
        case ast.Name(id=name):
            return SYMBOL.fullmatch(name) is not None
        case ast.Constant(value=value):
            return isinstance(value, (int, float))
    return isinstance(node, COMPUTES) and all(map(_in_expression, ast.iter_child_nodes(node)))


def _in_guard(node: ast.AST) -> bool:
    match node:
        case ast.Call():
            return _is_measured(node) and not node.keywords and all(map(_in_guard, node.args))
        case ast.Name() | ast.Attribute():
            return ast.unparse(node) in NUMBERS
        case ast.Subscript(value=ast.Call() as of, slice=ast.Constant(value=int())):
            return _in_guard(of)
        case ast.Subscript():
            return _is_input(node)
        case ast.Constant(value=value):
            return _is_value(value)
    return isinstance(node, COMPUTES) and all(map(_in_guard, ast.iter_child_nodes(node)))


def _is_measured(call: ast.Call) -> bool:
    """Whether a call asks an input for its size, or is a function of Python's own."""
    match call.func:
        case ast.Attribute(value=ast.Name(id="math")):
            return True
        case ast.Attribute(value=of, attr=name):
            return name in MEASURES and _is_input(of)
        case ast.Name(id=name):
            return name in FUNCTIONS or name in BUILTINS
    return False


def _is_input(node: ast.AST) -> bool:
    """Whether this is `L['name'][0]['key']`: an input, however deep it lies."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        return _is_value(node.slice.value) and _is_input(node.value)
    return isinstance(node, ast.Name) and node.id == "L"


def _is_value(value: object) -> bool:
    if isinstance(value, str):
        return WORD.fullmatch(value) is not None
    return value is None or isinstance(value, (int, float))


def _plain_keywords(call: ast.Call) -> bool:
    return all(
        keyword.arg is not None
        and isinstance(keyword.value, ast.Constant)
        and isinstance(keyword.value.value, (bool, int, type(None)))
        for keyword in call.keywords
    )


CHECKS: dict[str, Callable[[str], bool]] = {
    "expr_str": is_expression,
    "guards_code": is_guard,
    "target": is_operator,
    "as_operator": is_operator,
    "in_spec": is_structure,
    "out_spec": is_structure,
}

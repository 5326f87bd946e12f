"""A rewritten network that compares itself with the one it was made from, tensor by tensor.

It is fed with the tensors of the reference besides its own inputs. Beside the network stands its
shadow: every layer once more, reading the reference's tensors in place of what the layer before
made. What the network itself is off at a tensor is the error that arrives there; what the shadow is
off is the error that this layer makes alone. All that comes out are sums.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from qconvert.graph.answers import as_read, by_name, kept_range
from qconvert.graph.literal import holds_graphs, literal
from qconvert.graph.sum_taps import FLOAT, Taps

HALVES = {ir.DataType.FLOAT16: "fp16", ir.DataType.BFLOAT16: "bf16"}
FED = "qconvert.reference."


@dataclass(frozen=True)
class Point:
    """What is known of one tensor; the fields after `precision` are names of outputs.

    Each is a sum over all values: of squares of the reference (`signal`), of this network
    (`power`), of the error that arrives and of the one made here, and how many values saturate or
    are clipped. None is what does not apply. `precision` is that of the layer that makes it here.
    """

    tensor: str
    precision: str
    signal: str
    power: str
    arriving: str
    made: str | None = None
    saturated: str | None = None
    clipped: str | None = None


@dataclass(frozen=True)
class Shadowed:
    """A network with its shadow; it is fed with the tensor of each point under `FED` too."""

    model: ir.Model
    points: tuple[Point, ...]


def shadowed(model: ir.Model, tensors: Sequence[str]) -> Shadowed:
    """Return the network that compares itself at these tensors; `model` stays as it is."""
    model = literal(model)
    known = by_name(model.graph)
    read = {name: as_read(known[name]) for name in tensors}
    # An input that nobody rounds has no error, and no layer.
    here = {name: value for name, value in read.items() if value.producer() is not None}
    taps = Taps.of(model.graph)
    fed = {name: taps.input(FED + name, known[name]) for name in here}
    shadow = _Shadow(model.graph, {here[name]: fed[name] for name in here})
    points = tuple(_point(name, here[name], fed[name], (taps, shadow)) for name in here)
    model.graph.outputs[:] = taps.outputs
    return Shadowed(model, points)


def _point(name: str, here: ir.Value, fed: ir.Value, tools: tuple[Taps, "_Shadow"]) -> Point:
    taps, shadow = tools
    cone = shadow.cone(here)
    apart = taps.node("Sub", taps.floats(here), fed)
    made = None
    if cone is not None:
        alone = taps.node("Sub", taps.floats(shadow.copy(here, cone)), fed)
        made = taps.squares(alone, f"made.{name}")
    saturated = clipped = None
    if kept := kept_range(here):
        saturated = taps.count_equal(kept.integers, kept.ends, f"saturated.{name}")
        clipped = taps.count_beyond(fed, kept.middle, kept.reach, f"clipped.{name}")
    return Point(
        name,
        _precision(here, cone),
        signal=taps.squares(fed, f"signal.{name}"),
        power=taps.squares(taps.floats(here), f"power.{name}"),
        arriving=taps.squares(apart, f"arriving.{name}"),
        made=made,
        saturated=saturated,
        clipped=clipped,
    )


def _precision(value: ir.Value, cone: Sequence[ir.Node] | None) -> str:
    """Return what a layer computes in: integers where anything of it came from integers."""
    nodes = [*(cone or ()), *([made] if (made := value.producer()) is not None else [])]
    around = [each.producer() for node in nodes for each in node.inputs if each is not None]
    if any(node is not None and node.op_type == "DequantizeLinear" for node in (*nodes, *around)):
        return "int8"
    kinds = [HALVES.get(each.dtype) for node in nodes for each in node.outputs if each.dtype]
    return next((kind for kind in kinds if kind), "fp32")


class _Shadow:
    """Copies layers so that they read the reference."""

    def __init__(self, graph: ir.Graph, fed: Mapping[ir.Value, ir.Value]) -> None:
        self._graph, self._fed = graph, fed
        self._place = {node: place for place, node in enumerate(graph)}
        self._live = _live(graph)

    def cone(self, value: ir.Value) -> list[ir.Node] | None:
        """Return the nodes between the tensors of the reference and this one, in their order.

        None where one of them holds a graph of its own, which may read anything.
        """
        found: set[ir.Node] = set()
        waiting = [value.producer()]
        while waiting:
            node = waiting.pop()
            if node is None or node in found or not self._live.intersection(node.outputs):
                continue
            if holds_graphs(node):
                return None
            found.add(node)
            waiting += [
                each.producer()
                for each in node.inputs
                if each is not None and each not in self._fed
            ]
        return sorted(found, key=self._place.__getitem__)

    def copy(self, value: ir.Value, cone: Sequence[ir.Node]) -> ir.Value:
        """Return the tensor as it is when all before the layer is exact."""
        made: dict[ir.Value, ir.Value] = {}
        for node in cone:
            inputs = [self._read(each, made) for each in node.inputs]
            again = ir.Node(
                node.domain,
                node.op_type,
                inputs,
                list(node.attributes.values()),
                overload=node.overload,
                num_outputs=len(node.outputs),
            )
            for old, new in zip(node.outputs, again.outputs, strict=True):
                new.type, new.shape = old.type, old.shape
            made.update(zip(node.outputs, again.outputs, strict=True))
            self._graph.append(again)
        return made.get(value, value)

    def _read(self, value: ir.Value | None, made: dict[ir.Value, ir.Value]) -> ir.Value | None:
        if value is None or value in made:
            return made[value] if value is not None else None
        fed = self._fed.get(value)
        if fed is None or value.dtype is FLOAT:
            return value if fed is None else fed
        cast = ir.node("Cast", [fed], {"to": value.dtype})
        self._graph.append(cast)
        return made.setdefault(value, cast.outputs[0])


def _live(graph: ir.Graph) -> set[ir.Value]:
    """Return the tensors that change with the image."""
    found = {value for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        if holds_graphs(node) or found.intersection(each for each in node.inputs if each):
            found.update(node.outputs)
    return found

"""Weights whose integers were chosen on images: kept as they are, and checked by what they hold."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core import npz
from qconvert.core.errors import QConvertError, UsageError, attach_path, first_line
from qconvert.core.scales import FloatArray
from qconvert.graph.names import UniqueNames
from qconvert.graph.patterns import find_matmul_bias
from qconvert.quantize.plan import Plan, WeightSlot

BIAS_SLOT = 2
INTEGERS_KEY, STEPS_KEY, BIAS_KEY = "integers", "steps", "bias"
WEIGHTS_HINT = "it lies beside its plan, as `quantize --plan-out` and `build` write it"


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """The integers of a weight in its own shape, a step for each channel, and the float bias.

    `bias` is what the operator adds, or an Add right behind it, and None where nothing does.
    """

    integers: NDArray[np.int8]
    steps: FloatArray
    bias: FloatArray | None


RoundedWeights = Mapping[str, RoundedWeight]
NO_ROUNDED_WEIGHTS: RoundedWeights = MappingProxyType({})


def digest(weights: RoundedWeights) -> str:
    """Return the sha256 of all that was learned, empty where nothing was."""
    if not weights:
        return ""
    found = hashlib.sha256()
    for name in sorted(weights):
        found.update(name.encode())
        for array in _arrays(weights[name]).values():
            found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def save(weights: RoundedWeights, path: Path) -> None:
    """Write what was learned of each node; the same weights, the same bytes."""
    with attach_path(path), zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in sorted(weights):
            for key, array in _arrays(weights[name]).items():
                member = zipfile.ZipInfo(f"{name}/{key}.npy")
                member.compress_type = zipfile.ZIP_DEFLATED
                with file.open(member, "w") as place:
                    np.lib.format.write_array(place, array, allow_pickle=False)


def load(path: Path) -> dict[str, RoundedWeight]:
    """Read what `save` wrote."""
    found: dict[str, dict[str, NDArray[np.generic]]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            npz.require_within_limit(members)
            for member in members:
                name, key = member.filename.removesuffix(".npy").rsplit("/", 1)
                found.setdefault(name, {})[key] = npz.read_array(archive, member)
        return {name: _parse_arrays(arrays) for name, arrays in found.items()}
    except npz.CORRUPT_ERRORS as error:
        why = first_line(error)
        raise QConvertError(
            f"`{path}` holds no learned weights: {why}", hint=WEIGHTS_HINT
        ) from None


def with_digest(plan: Plan, weights: RoundedWeights) -> Plan:
    """Return a plan that says which weights were learned with it."""
    return replace(plan, learned=digest(weights))


def require_match(weights: RoundedWeights, wanted: str) -> None:
    """Refuse learned weights other than those a plan was made with."""
    if digest(weights) != wanted:
        what = "other learned weights than those given" if weights else "learned weights"
        raise UsageError(f"the plan was made with {what}", hint=WEIGHTS_HINT)


def set_weight(
    node: ir.Node, weight: WeightSlot | None, learned: RoundedWeight, names: UniqueNames
) -> None:
    """Give a node the float weight that its integers stand for, and its bias.

    `names` are those of its graph, where a bias that it did not have needs one.
    """
    value = node.inputs[weight.slot] if weight is not None else None
    if weight is None or value is None:
        return
    shape = [-1 if axis == weight.axis else 1 for axis in range(learned.integers.ndim)]
    set_constant(value, learned.integers * learned.steps.reshape(shape))
    if learned.bias is not None:
        set_constant(_find_or_add_bias(node, names), learned.bias)


def set_constant(value: ir.Value, array: FloatArray) -> None:
    """Let a constant be another one."""
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)


def _find_or_add_bias(node: ir.Node, names: UniqueNames) -> ir.Value:
    """Return the bias of a node, or what is added behind it; one is made where it has none."""
    held = node.inputs[BIAS_SLOT] if len(node.inputs) > BIAS_SLOT else find_matmul_bias(node)
    if held is not None:
        return held
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    kind = ir.TensorType(ir.DataType.FLOAT)
    name = names.reserve(f"{node.name}.bias")
    made = ir.Value(name=name, type=kind, const_value=ir.tensor(np.zeros(1, np.float32), name=name))
    graph.register_initializer(made)
    node.resize_inputs(BIAS_SLOT + 1)
    node.replace_input_with(BIAS_SLOT, made)
    return made


def _arrays(learned: RoundedWeight) -> dict[str, NDArray[np.generic]]:
    arrays: dict[str, NDArray[np.generic]] = {
        INTEGERS_KEY: learned.integers,
        STEPS_KEY: learned.steps,
    }
    return arrays if learned.bias is None else {**arrays, BIAS_KEY: learned.bias}


def _parse_arrays(arrays: Mapping[str, NDArray[np.generic]]) -> RoundedWeight:
    integers, steps, bias = arrays[INTEGERS_KEY], arrays[STEPS_KEY], arrays.get(BIAS_KEY)
    kinds = [np.int8, np.float32] + ([np.float32] if bias is not None else [])
    found = [integers, steps] + ([bias] if bias is not None else [])
    if any(array.dtype != kind for array, kind in zip(found, kinds, strict=True)):
        raise ValueError("an array is not of the type that was written")
    return RoundedWeight(
        integers.astype(np.int8),
        steps.astype(np.float32),
        None if bias is None else bias.astype(np.float32),
    )

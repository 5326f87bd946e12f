"""Weights whose integers were learned on images: their file, their digest, and their graph."""

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from qconvert.core import atomic, npz
from qconvert.core.errors import QConvertError, UsageError, first_line
from qconvert.core.scales import FloatArray
from qconvert.graph.patterns import UniqueNames, find_matmul_bias, set_constant_input
from qconvert.quantize.plan import WeightSlot

BIAS_SLOT = 2
WEIGHTS_HINT = "it must be beside its plan, as `quantize --plan-out` and `build` write it"


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """The integers of a weight in its own shape, a step for each channel, and the float bias.

    `bias` is that of the operator, or what an Add right behind it adds, None if there is neither.
    """

    integers: NDArray[np.int8]
    steps: FloatArray
    bias: FloatArray | None

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays by name, without a bias that there is not."""
        arrays: dict[str, NDArray[np.generic]] = {"integers": self.integers, "steps": self.steps}
        return arrays if self.bias is None else {**arrays, "bias": self.bias}


RoundedWeights = Mapping[str, RoundedWeight]
NO_ROUNDED_WEIGHTS: RoundedWeights = MappingProxyType({})


def digest(weights: RoundedWeights) -> str:
    """Return the sha256 of all learned weights, empty if there are none."""
    if not weights:
        return ""
    sha256 = hashlib.sha256()
    for name in sorted(weights):
        sha256.update(name.encode())
        for array in weights[name].arrays().values():
            sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def save(weights: RoundedWeights, path: Path) -> None:
    """Write the learned weights of each node; the same weights give the same bytes."""
    arrays = {
        f"{name}/{key}": array
        for name, weight in weights.items()
        for key, array in weight.arrays().items()
    }
    atomic.write_bytes(path, npz.pack(arrays))


def load(path: Path) -> dict[str, RoundedWeight]:
    """Read the weights that `save` wrote."""
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    types = {"integers": np.int8, "steps": np.float32, "bias": np.float32}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            npz.require_within_limit(members)
            for member in members:
                name, key = member.filename.removesuffix(".npy").rsplit("/", 1)
                array = npz.read_array(archive, member)
                if array.dtype != types.get(key, array.dtype):
                    raise ValueError("an array has another type than it was written with")
                arrays.setdefault(name, {})[key] = array
        return {
            name: RoundedWeight(row["integers"], row["steps"], row.get("bias"))
            for name, row in arrays.items()
        }
    except npz.CORRUPT_ERRORS as error:
        reason = first_line(error)
        raise QConvertError(
            f"`{path}` has no learned weights: {reason}", hint=WEIGHTS_HINT
        ) from None


def require_match(weights: RoundedWeights, expected: str) -> None:
    """Refuse weights that were not learned with the plan."""
    if digest(weights) != expected:
        reason = "other learned weights than these" if weights else "learned weights"
        raise UsageError(f"the plan was written with {reason}", hint=WEIGHTS_HINT)


def set_weight(
    node: ir.Node, slot: WeightSlot | None, learned: RoundedWeight, names: UniqueNames
) -> None:
    """Give a node the float weight of its integers, and its bias; a new bias has an unused name."""
    value = node.inputs[slot.slot] if slot is not None else None
    if slot is None or value is None:
        return
    shape = [-1 if axis == slot.axis else 1 for axis in range(learned.integers.ndim)]
    set_constant(value, learned.integers * learned.steps.reshape(shape))
    if learned.bias is None:
        return
    # The bias of the node, or what is added behind it; a new one if there is neither.
    bias = node.inputs[BIAS_SLOT] if len(node.inputs) > BIAS_SLOT else find_matmul_bias(node)[1]
    if bias is not None:
        set_constant(bias, learned.bias)
    else:
        set_constant_input(node, BIAS_SLOT, names.reserve(f"{node.name}.bias"), learned.bias)


def set_constant(value: ir.Value, array: FloatArray) -> None:
    """Replace the array of a constant."""
    value.const_value = ir.tensor(array, name=value.name)
    value.shape = ir.Shape(array.shape)

"""The inputs and outputs of a network: named arrays, and the specs that they must match."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError, UsageError

Tensors = dict[str, NDArray[Any]]
RunModel = Callable[[Tensors], Tensors]

MAX_ELEMENTS = 2**31
_SPEC = re.compile(r"(?:(?P<name>.+):)?(?P<shape>\d{1,18}(?:x\d{1,18})*)(?::(?P<dtype>[a-z]+\d*))?")
_DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input or output; a dimension is a number or a name.

    An empty name stands for an unknown dimension. `has_dtype` is False if a user named a shape
    without a type; `dtype` is then the most likely one.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str, ...]
    has_dtype: bool = field(default=True, compare=False, repr=False)

    def __str__(self) -> str:
        dimensions = ", ".join(str(size) if size != "" else "?" for size in self.shape)
        return f"{self.name}: {self.dtype}[{dimensions}]"

    @property
    def has_dynamic_shape(self) -> bool:
        """Whether a dimension other than the first, the batch, has no size."""
        return any(not isinstance(size, int) for size in self.shape[1:])


@dataclass(frozen=True)
class TensorTap:
    """The names of the outputs that hold the statistics of one tensor; their first axis is images.

    `low`, `high` and `mean` hold one value per channel, or a single one if `channel_axis` is None.
    `sample` holds values drawn from each image; None if only the extremes of the tensor matter.
    `size` is the number of values of an image.
    """

    tensor: str
    channel_axis: int | None
    low: str
    high: str
    mean: str
    size: str
    sample: str | None


def parse_spec(text: str) -> TensorSpec:
    """Read `NAME:1x3x224x224[:float32]`; a model with one input needs no name."""
    match = _SPEC.fullmatch(text.strip())
    dtype = (match["dtype"] or "float32") if match else ""
    sizes = [int(size) for size in match["shape"].split("x")] if match else []
    if match is None or dtype not in _DTYPES or 0 in sizes:
        raise UsageError(
            f"`--input {text}` is not NAME:SHAPE[:TYPE]",
            hint="for example `--input image:1x3x224x224` or `--input tokens:1x77:int64`",
        )
    return TensorSpec(
        match["name"] or "", np.dtype(dtype), tuple(sizes), has_dtype=match["dtype"] is not None
    )


def resolve_specs(
    specs: Sequence[TensorSpec], user_specs: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """Set the dynamic dimensions of a model's inputs, except the batch, to those of the user."""
    by_name: dict[str, TensorSpec] = {}
    for spec in user_specs:
        name = specs[0].name if len(specs) == 1 and not spec.name else spec.name
        if name in by_name:
            raise UsageError(
                f"`--input` names `{name or spec}` twice", hint="keep one `--input` for each input"
            )
        by_name[name] = spec
    if unknown := [name for name in by_name if name not in {spec.name for spec in specs}]:
        raise UsageError(
            f"the model has no input `{unknown[0]}`",
            hint="its inputs: " + ", ".join(f"`{spec.name}`" for spec in specs),
        )
    return tuple(
        _resolve_spec(spec, by_name[spec.name]) if spec.name in by_name else spec for spec in specs
    )


def fixed_batch(specs: Sequence[TensorSpec]) -> int | None:
    """Return the batch size that the first input requires; None if it is dynamic."""
    size = specs[0].shape[0] if specs and specs[0].shape else 1
    return size if isinstance(size, int) else None


def batch_size(tensors: Tensors) -> int:
    """Return the number of images in a batch."""
    return len(next(iter(tensors.values())))


def output_array(outputs: Tensors, name: str) -> NDArray[Any]:
    """Return an output as an array; ONNX Runtime may return a sequence of tensors."""
    try:
        return np.asarray(outputs[name])
    except ValueError:
        raise QConvertError(
            f"`{name}` is a sequence of tensors of different shapes, which cannot be compared",
            hint="remove this output from the model",
        ) from None


def pad_batch(tensors: Tensors, size: int) -> Tensors:
    """Repeat the rows of a batch until it has `size` of them."""
    if batch_size(tensors) == size:
        return tensors
    return {name: np.resize(array, (size, *array.shape[1:])) for name, array in tensors.items()}


def unpad_batch(outputs: Tensors, count: int, size: int) -> Tensors:
    """Return the outputs of the first `count` images of a batch that was padded to `size`."""
    if count == size:
        return outputs
    return {
        name: np.asarray(array)[:count] if np.shape(array)[:1] == (size,) else array
        for name, array in outputs.items()
    }


def random_inputs(specs: Sequence[TensorSpec], batch: int, seed: int) -> Tensors:
    """Return random arrays that match the specs; equal seeds give equal arrays.

    A dynamic first dimension becomes `batch`. Integers are 0 or 1: valid as a token, a mask or an
    index.
    """
    generator = np.random.default_rng(seed)
    inputs: Tensors = {}
    for spec in specs:
        if spec.has_dynamic_shape:
            raise UsageError(
                f"the size of input `{spec}` is not known",
                hint=f"set it with `--input {spec.name}:{_example_shape(spec)}`",
            )
        shape = tuple(size if isinstance(size, int) else batch for size in spec.shape)
        if math.prod(shape) > MAX_ELEMENTS:
            raise QConvertError(
                f"one run of the model takes {math.prod(shape):,} numbers for `{spec.name}`",
                hint=f"the limit is {MAX_ELEMENTS:,}; export the model for smaller inputs",
            )
        if spec.dtype.kind in "iub":
            inputs[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
        else:
            inputs[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return inputs


def _resolve_spec(spec: TensorSpec, user_spec: TensorSpec) -> TensorSpec:
    if user_spec.has_dtype and user_spec.dtype != spec.dtype:
        raise UsageError(
            f"`--input {spec.name}` says {user_spec.dtype}, the model takes {spec.dtype}",
            hint="leave out the type; it does not change the model",
        )
    if not _matches_shape(user_spec.shape[1:], spec.shape[1:]):
        raise UsageError(
            f"`--input {user_spec}` does not match the model's input `{spec}`",
            hint="give a size for each `?` or name, and leave the numbers as they are",
        )
    if not _matches_shape(user_spec.shape[:1], spec.shape[:1]):
        raise UsageError(
            f"`--input {spec.name}` says a batch of {user_spec.shape[0]}, "
            f"the model has {spec.shape[0]}",
            hint=f"`--batch {user_spec.shape[0]}` sets it",
        )
    return replace(spec, shape=(*spec.shape[:1], *user_spec.shape[1:]))


def _matches_shape(sizes: tuple[int | str, ...], shape: tuple[int | str, ...]) -> bool:
    """Whether the sizes are those of the shape wherever it is not dynamic."""
    return len(sizes) == len(shape) and all(
        size == fixed for size, fixed in zip(sizes, shape, strict=True) if isinstance(fixed, int)
    )


def _example_shape(spec: TensorSpec) -> str:
    return "x".join(
        str(size) if isinstance(size, int) else ("1" if axis == 0 else "224")
        for axis, size in enumerate(spec.shape)
    )

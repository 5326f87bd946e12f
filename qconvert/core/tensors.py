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
DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output; a dimension is a number or a name, which is empty where it is unknown.

    `has_dtype` is False if a user named no type; `dtype` is then the most likely one.
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


def tap_name(statistic: str, tensor: str) -> str:
    """Return the name of the output that holds a statistic of a tensor; its first axis is images.

    `low`, `high` and `mean` hold a value per channel, or a single one if there are no channels.
    `sample` holds values drawn from each image, if more than the extremes of the tensor matter.
    `size` is the number of values of an image.
    """
    return f"qconvert.{statistic}.{tensor}"


def parse_spec(text: str) -> TensorSpec:
    """Read `NAME:1x3x224x224[:float32]`; a model with one input needs no name."""
    match = _SPEC.fullmatch(text.strip())
    dtype = (match["dtype"] or "float32") if match else ""
    sizes = [int(size) for size in match["shape"].split("x")] if match else []
    if match is None or dtype not in DTYPES or 0 in sizes:
        raise UsageError(
            f"`--input {text}` is not NAME:SHAPE[:TYPE]",
            hint="for example `--input image:1x3x224x224` or `--input tokens:1x77:int64`",
        )
    has_dtype = match["dtype"] is not None
    return TensorSpec(match["name"] or "", np.dtype(dtype), tuple(sizes), has_dtype)


def resolve_specs(
    specs: Sequence[TensorSpec], user_specs: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """Set the dynamic dimensions of a model's inputs, except the batch, to those of the user."""
    resolved = {spec.name: spec for spec in specs}
    named: set[str] = set()
    for user_spec in user_specs:
        name = specs[0].name if len(specs) == 1 and not user_spec.name else user_spec.name
        if name in named:
            raise UsageError(
                f"`--input` names `{name or user_spec}` twice",
                hint="keep one `--input` for each input",
            )
        named.add(name)
        if name not in resolved:
            raise UsageError(
                f"the model has no input `{name}`",
                hint="its inputs: " + ", ".join(f"`{spec.name}`" for spec in specs),
            )
        spec = resolved[name]
        if user_spec.has_dtype and user_spec.dtype != spec.dtype:
            raise UsageError(
                f"`--input {spec.name}` gives {user_spec.dtype}, but the model takes {spec.dtype}",
                hint="leave out the type; it does not change the model",
            )
        pairs = zip(spec.shape, user_spec.shape, strict=False)
        fits = [size == user_size or isinstance(size, str) for size, user_size in pairs]
        if len(spec.shape) != len(user_spec.shape) or not all(fits[1:]):
            raise UsageError(
                f"`--input {user_spec}` does not match the model's input `{spec}`",
                hint="give a size for each `?` or name, and leave the numbers as they are",
            )
        if not all(fits):
            raise UsageError(
                f"`--input {spec.name}` gives a batch of {user_spec.shape[0]}, "
                f"but the model has {spec.shape[0]}",
                hint=f"`--batch {user_spec.shape[0]}` sets it",
            )
        resolved[name] = replace(spec, shape=(*spec.shape[:1], *user_spec.shape[1:]))
    return tuple(resolved.values())


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


def run_padded(run: RunModel, feeds: Tensors, size: int | None) -> Tensors:
    """Run a batch, padded if the model fixes a larger one, and return all outputs as they are."""
    return run(feeds if size is None else pad_batch(feeds, size))


def rows_of_images(outputs: Tensors, count: int, size: int | None) -> Tensors:
    """Return outputs of `run_padded` with a row for each of `count` images, where they have one.

    Lists of objects have none, unless the model takes a single image, to which all then belongs.
    """
    if size is None:
        return outputs
    if size > 1:
        return unpad_batch(outputs, count, size)
    arrays = {name: output_array(outputs, name) for name in outputs}
    return {
        name: array if array.shape[:1] == (1,) else array[np.newaxis]
        for name, array in arrays.items()
    }


def random_inputs(specs: Sequence[TensorSpec], batch: int, seed: int) -> Tensors:
    """Return random arrays that match the specs; a dynamic first dimension becomes `batch`.

    Equal seeds give equal arrays. Integers are 0 or 1: valid as a token, a mask or an index.
    """
    generator = np.random.default_rng(seed)
    inputs: Tensors = {}
    for spec in specs:
        shape = tuple(size if isinstance(size, int) else batch for size in spec.shape)
        if spec.has_dynamic_shape:
            example = [
                str(size if isinstance(size, int) else 224 if axis else 1)
                for axis, size in enumerate(spec.shape)
            ]
            raise UsageError(
                f"the size of input `{spec}` is not known",
                hint=f"set it with `--input {spec.name}:{'x'.join(example)}`",
            )
        if math.prod(shape) > MAX_ELEMENTS:
            raise QConvertError(
                f"one run of the model needs {math.prod(shape):,} numbers for `{spec.name}`",
                hint=f"the limit is {MAX_ELEMENTS:,}; export the model for smaller inputs",
            )
        if spec.dtype.kind in "iub":
            inputs[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
        else:
            inputs[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return inputs

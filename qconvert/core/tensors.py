"""What goes into a network and comes out of it: named arrays, and what they must look like."""

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
_SPEC_PATTERN = re.compile(
    r"(?:(?P<name>.+):)?(?P<shape>\d{1,18}(?:x\d{1,18})*)(?::(?P<dtype>[a-z]+\d*))?"
)
_DTYPES = ("float32", "float16", "float64", "uint8", "int8", "int16", "int32", "int64", "bool")


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of an input or output; a dimension is a number or a name.

    An empty string stands for a dimension that is not known and has no name. `typed` is False where
    a user named a shape and no type, and `dtype` is only what it most likely is.
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
        """Whether a dimension other than the first, the batch, has no size yet."""
        return any(not isinstance(size, int) for size in self.shape[1:])


@dataclass(frozen=True)
class TensorTap:
    """The names of the outputs that hold the statistics of one tensor; their first axis is images.

    `low`, `high` and `mean` hold a value for each channel, or one where `channel_axis` is None.
    `sample` holds values drawn from each image, None for a tensor of which only extremes matter;
    `size` is the number of values that an image has.
    """

    tensor: str
    channel_axis: int | None
    low: str
    high: str
    mean: str
    size: str
    sample: str | None


def parse_spec(given: str) -> TensorSpec:
    """Read `NAME:1x3x224x224[:float32]`; the name may be left out where there is one input."""
    match = _SPEC_PATTERN.fullmatch(given.strip())
    dtype = (match["dtype"] or "float32") if match else ""
    sizes = [int(size) for size in match["shape"].split("x")] if match else []
    if match is None or dtype not in _DTYPES or 0 in sizes:
        raise UsageError(
            f"`--input {given}` is not NAME:SHAPE[:TYPE]",
            hint="for example `--input image:1x3x224x224` or `--input tokens:1x77:int64`",
        )
    return TensorSpec(
        match["name"] or "", np.dtype(dtype), tuple(sizes), has_dtype=match["dtype"] is not None
    )


def resolve_specs(
    specs: Sequence[TensorSpec], given: Sequence[TensorSpec]
) -> tuple[TensorSpec, ...]:
    """Fill the open dimensions of a model's inputs as the user said; the batch stays open."""
    by_name: dict[str, TensorSpec] = {}
    for each in given:
        name = specs[0].name if len(specs) == 1 and not each.name else each.name
        if name in by_name:
            raise UsageError(
                f"`--input` names `{name or each}` twice", hint="keep one `--input` for each input"
            )
        by_name[name] = each
    if unknown := [name for name in by_name if name not in {spec.name for spec in specs}]:
        raise UsageError(
            f"the model has no input `{unknown[0]}`",
            hint="its inputs: " + ", ".join(f"`{spec.name}`" for spec in specs),
        )
    return tuple(_resolve_spec(spec, by_name.get(spec.name)) for spec in specs)


def fixed_batch(specs: Sequence[TensorSpec]) -> int | None:
    """Return the batch that the first input fixes, None where it is open."""
    first = specs[0].shape[0] if specs and specs[0].shape else 1
    return first if isinstance(first, int) else None


def batch_size(feeds: Tensors) -> int:
    """Return how many images a batch has."""
    return len(next(iter(feeds.values())))


def output_array(outputs: Tensors, name: str) -> NDArray[Any]:
    """Return what a model answers under a name, which may be a sequence of tensors, as an array."""
    try:
        return np.asarray(outputs[name])
    except ValueError:
        raise QConvertError(
            f"`{name}` is a sequence of tensors of different shapes, which cannot be compared",
            hint="take this output out of the model",
        ) from None


def pad_batch(feeds: Tensors, size: int) -> Tensors:
    """Repeat the rows of a batch until it has `size` of them; one that has stays as it is."""
    if batch_size(feeds) == size:
        return feeds
    return {name: np.resize(each, (size, *each.shape[1:])) for name, each in feeds.items()}


def unpad_batch(outputs: Tensors, count: int, size: int) -> Tensors:
    """Return the answers to the first images of a batch of `size`; the others repeat them."""
    if count == size:
        return outputs
    return {
        name: np.asarray(each)[:count] if np.shape(each)[:1] == (size,) else each
        for name, each in outputs.items()
    }


def random_inputs(specs: Sequence[TensorSpec], batch: int, seed: int) -> Tensors:
    """Return random arrays of the right names, types and shapes; the same seed, the same arrays.

    An open first dimension becomes `batch`. Integers are 0 or 1, which every vocabulary, mask and
    index has.
    """
    generator = np.random.default_rng(seed)
    drawn: Tensors = {}
    for spec in specs:
        if spec.has_dynamic_shape:
            raise UsageError(
                f"the size of input `{spec}` is not known",
                hint=f"say it with `--input {spec.name}:{_example_shape(spec)}`",
            )
        shape = tuple(size if isinstance(size, int) else batch for size in spec.shape)
        if math.prod(shape) > MAX_ELEMENTS:
            raise QConvertError(
                f"one run of the model takes {math.prod(shape):,} numbers for `{spec.name}`",
                hint=f"more than {MAX_ELEMENTS:,} are not tried; export it for smaller inputs",
            )
        if spec.dtype.kind in "iub":
            drawn[spec.name] = generator.integers(0, 2, shape).astype(spec.dtype)
        else:
            drawn[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return drawn


def _resolve_spec(spec: TensorSpec, given: TensorSpec | None) -> TensorSpec:
    if given is None:
        return spec
    if given.has_dtype and given.dtype != spec.dtype:
        raise UsageError(
            f"`--input {spec.name}` says {given.dtype}, the model takes {spec.dtype}",
            hint="leave out the type; it does not change the model",
        )
    if len(given.shape) != len(spec.shape) or not _matches_shape(given.shape[1:], spec.shape[1:]):
        raise UsageError(
            f"`--input {given}` does not fit the model's input `{spec}`",
            hint="give a size for each `?` or name, and leave the numbers as they are",
        )
    if not _matches_shape(given.shape[:1], spec.shape[:1]):
        raise UsageError(
            f"`--input {spec.name}` says a batch of {given.shape[0]}, "
            f"the model has {spec.shape[0]}",
            hint=f"`--batch {given.shape[0]}` sets it",
        )
    return replace(spec, shape=(*spec.shape[:1], *given.shape[1:]))


def _matches_shape(given: tuple[int | str, ...], shape: tuple[int | str, ...]) -> bool:
    """Whether the sizes are those of the shape wherever it is not open."""
    return len(given) == len(shape) and all(
        size == want for size, want in zip(shape, given, strict=True) if isinstance(size, int)
    )


def _example_shape(spec: TensorSpec) -> str:
    return "x".join(
        str(size) if isinstance(size, int) else ("1" if axis == 0 else "224")
        for axis, size in enumerate(spec.shape)
    )

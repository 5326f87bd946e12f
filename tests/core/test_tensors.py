"""Input specs from the command line and from models."""

import numpy as np
import pytest

from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import TensorSpec, output_array, parse_spec, random_inputs, resolve_specs

FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)


def test_spec_is_parsed_with_and_without_name_and_type() -> None:
    assert parse_spec("image:1x3x224x224") == TensorSpec("image", FLOAT, (1, 3, 224, 224))
    assert parse_spec("tokens:1x77:int64") == TensorSpec("tokens", INT, (1, 77))
    assert parse_spec("input:0:1x4") == TensorSpec("input:0", FLOAT, (1, 4))
    assert parse_spec("1x4") == TensorSpec("", FLOAT, (1, 4))


@pytest.mark.parametrize(
    "text", ["", "image", "image:", "image:1x0", "image:axb", "x:1x2:complex64"]
)
def test_invalid_spec_is_rejected_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="is not NAME:SHAPE") as caught:
        parse_spec(text)
    assert "image:1x3x224x224" in str(caught.value.hint)


def test_dynamic_sizes_are_resolved_except_the_batch() -> None:
    specs = (TensorSpec("image", FLOAT, ("N", 3, "h", "w")), TensorSpec("scale", FLOAT, (1,)))
    resolved = resolve_specs(specs, [parse_spec("image:1x3x8x6")])
    assert resolved[0].shape == ("N", 3, 8, 6)
    assert resolved[1] == specs[1]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["image:1x4x8x8"], "does not match"),
        (["image:1x3x8"], "does not match"),
        (["photo:1x3x8x8"], "no input `photo`"),
        (["image:1x3x8x8", "1x3x8x8"], "names `image` twice"),
        (["image:1x3x8x8:int64"], "gives int64, but the model takes float32"),
        (["image:4x3x8x8"], "gives a batch of 4, but the model has 1"),
    ],
)
def test_spec_that_contradicts_the_model_is_rejected(texts: list[str], message: str) -> None:
    specs = (TensorSpec("image", FLOAT, (1, 3, 8, 8)),)
    assert resolve_specs(specs, [parse_spec("image:1x3x8x8")]) == specs
    with pytest.raises(UsageError, match=message):
        resolve_specs(specs, [parse_spec(text) for text in texts])


def test_random_inputs_are_repeatable_and_respect_types() -> None:
    specs = (TensorSpec("a", FLOAT, ("N", 3)), TensorSpec("b", INT, (2, 4)))
    first, again, other = (random_inputs(specs, 2, seed) for seed in (0, 0, 1))
    assert (first["a"].shape, first["a"].dtype) == ((2, 3), FLOAT)
    assert set(np.unique(first["b"])) <= {0, 1}
    np.testing.assert_array_equal(first["a"], again["a"])
    assert not np.array_equal(first["a"], other["a"])


def test_random_inputs_of_a_dynamic_size_are_rejected_with_an_option() -> None:
    with pytest.raises(UsageError) as caught:
        random_inputs((TensorSpec("image", FLOAT, ("N", 3, "h", "")),), 1, 0)
    assert "`image: float32[N, 3, h, ?]`" in str(caught.value)
    assert caught.value.hint == "set it with `--input image:1x3x224x224`"


def test_huge_random_inputs_are_rejected() -> None:
    huge = TensorSpec("x", np.dtype("float32"), ("N", 2**20, 2**20))
    with pytest.raises(QConvertError, match="numbers for `x`"):
        random_inputs([huge], 1, seed=0)


def test_sequence_output_of_different_shapes_is_rejected_by_name() -> None:
    one, other = np.zeros((2, 3)), np.zeros((2, 4))
    assert output_array({"y": [one, one]}, "y").shape == (2, 2, 3)  # type: ignore[dict-item]
    with pytest.raises(QConvertError, match="`y` is a sequence of tensors of different shapes"):
        output_array({"y": [one, other]}, "y")  # type: ignore[dict-item]

"""Files that are refused, each with the sentence that says why."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError
from tests import models


def written(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def tiny_outside(folder: Path, **entries: str) -> Path:
    """Write the tiny model with one weight outside, found as `entries` say."""
    (folder / "w.bin").write_bytes(bytes(64))
    proto = ir.to_proto(models.tiny())
    weight = next(each for each in proto.graph.initializer if each.name == "conv_weight")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        weight.external_data.add(key=key, value=value)
    return written(proto, folder / "net.onnx")


@pytest.mark.parametrize(
    ("entries", "why"),
    [
        ({}, "too short"),
        ({"offset": "32"}, "too short"),
        ({"length": "4"}, "keeps 4 bytes for `conv_weight`, which needs 432"),
        ({"offset": "-8"}, "offset `-8`"),
        ({"length": "abc"}, "length `abc`"),
        ({"location": "w\0.bin"}, "the location of the data of `conv_weight` holds a zero byte"),
    ],
)
def test_a_place_in_a_data_file_must_hold_the_weight(
    tmp_path: Path, entries: dict[str, str], why: str
) -> None:
    with pytest.raises(QConvertError, match=why):
        onnx_io.load(tiny_outside(tmp_path, **entries))


def test_an_opset_from_the_future_is_named(tmp_path: Path) -> None:
    proto = ir.to_proto(models.tiny())
    proto.opset_import[0].version = 99
    with pytest.raises(QConvertError, match="opset 99, which is newer than the onnx package here"):
        onnx_io.load(written(proto, tmp_path / "new.onnx"))


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    proto = ir.to_proto(models.tiny())
    values = numpy_helper.from_array(np.ones(2, np.float32), "sparse_weight")
    places = numpy_helper.from_array(np.array([0, 3]), "places")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [2, 2]))
    with pytest.raises(QConvertError, match="stores `sparse_weight` as a sparse tensor"):
        onnx_io.load(written(proto, tmp_path / "sparse.onnx"))


def test_the_reason_is_what_went_wrong_first(tmp_path: Path) -> None:
    proto = ir.to_proto(models.tiny())
    proto.graph.initializer[0].data_type = 99
    with pytest.raises(QConvertError, match="cannot be read: 99 is not a valid DataType"):
        onnx_io.load(written(proto, tmp_path / "odd.onnx"))


def test_a_file_name_need_not_be_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/net\xff.onnx"))
    assert models.ops(onnx_io.load(written(ir.to_proto(models.tiny()), path)))
    outside = tiny_outside(tmp_path, offset="0").rename(path)
    (tmp_path / "w.bin").write_bytes(bytes(432))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(QConvertError, match="whose name is not UTF-8"):
        onnx_io.load(outside)


@pytest.mark.parametrize("version", [3, 8])
def test_defaults_of_inputs_are_constants(tmp_path: Path, version: int) -> None:
    proto = ir.to_proto(models.tiny())
    proto.ir_version = version
    for stored in proto.graph.initializer:
        shape = helper.make_tensor_value_info(stored.name, stored.data_type, list(stored.dims))
        proto.graph.input.append(shape)
    model = onnx_io.load(written(proto, tmp_path / "old.onnx"))
    assert [value.name for value in model.graph.inputs] == ["image"]
    assert model.ir_version == (10 if version == 3 else 8)
    onnx_io.require_valid(model)


def test_strings_are_part_of_the_fingerprint() -> None:
    prints = set()
    for words in (["ab", "c"], ["a", "bc"]):
        model = models.tiny()
        tensor = ir.StringTensor([word.encode() for word in words], shape=ir.Shape([2]), name="s")
        model.graph.register_initializer(ir.Value(name="s", const_value=tensor))
        prints.add(onnx_io.fingerprint(model))
    assert len(prints) == 2


def changed(folder: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    proto = ir.to_proto(models.tiny())
    change(proto)
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return folder / "net.onnx"


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    def change(proto: onnx.ModelProto) -> None:
        proto.metadata_props.add(key="abcd", value="x")

    path = changed(tmp_path, change)
    path.write_bytes(path.read_bytes().replace(b"abcd", b"ab\x80d"))
    with pytest.raises(QConvertError, match="UTF-8"):
        onnx_io.load(path)


def test_so_is_the_name_of_a_data_file(tmp_path: Path) -> None:
    path = tiny_outside(tmp_path, location="abcd")
    path.write_bytes(path.read_bytes().replace(b"abcd", b"ab\x80d"))
    with pytest.raises(QConvertError, match="`value` of its StringStringEntryProto is not UTF-8"):
        onnx_io.load(path)


def typeless_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer[0].data_type = 0


def typeless_constant(proto: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["one"], value=value))
    proto.graph.node[0].attribute[0].t.data_type = 0


@pytest.mark.parametrize("change", [typeless_weight, typeless_constant])
def test_tensors_without_a_type_are_refused(
    change: Callable[[onnx.ModelProto], None], tmp_path: Path
) -> None:
    with pytest.raises(QConvertError, match="has no type"):
        onnx_io.load(changed(tmp_path, change))


def test_a_tensor_of_a_branch_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    leaf = onnx.TensorProto(name="a", dims=[1], data_type=1, float_data=[1.0], raw_data=b"")
    given = helper.make_tensor_value_info("a", 1, [1])
    branch = helper.make_graph([helper.make_node("Identity", ["a"], ["b"])], "branch", [], [
        helper.make_tensor_value_info("b", 1, [1])], [leaf])  # fmt: skip
    node = helper.make_node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", 1, [1])],
        value_info=[given],
    )
    path = written(helper.make_model(graph, ir_version=10), tmp_path / "net.onnx")
    with pytest.raises(QConvertError, match="not whole"):
        onnx_io.fingerprint(onnx_io.load(path))


@pytest.mark.parametrize("length", ["1", "99999999", str(2**63)])
def test_external_weights_of_another_length_are_refused(length: str, tmp_path: Path) -> None:
    ir.save(models.tiny(), tmp_path / "n.onnx", external_data="w.bin", size_threshold_bytes=0)
    proto = onnx.load(tmp_path / "n.onnx", load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "length":
            entry.value = length
    (tmp_path / "n.onnx").write_bytes(proto.SerializeToString())
    with pytest.raises(QConvertError, match=f"keeps {length} bytes"):
        onnx_io.load(tmp_path / "n.onnx")

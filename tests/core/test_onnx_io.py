"""ONNX files: read completely or rejected with a reason, written completely or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from tests import models
from tests.conftest import write
from tests.models import floats


def write_proto(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def with_external_entries(folder: Path, **entries: str) -> Path:
    """Write the tiny model with one external weight, described by the entries."""
    (folder / "w.bin").write_bytes(bytes(64))
    proto = ir.to_proto(models.tiny())
    weight = next(entry for entry in proto.graph.initializer if entry.name == "conv_weight")
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": "w.bin", **entries}.items():
        weight.external_data.add(key=key, value=value)
    return write_proto(proto, folder / "net.onnx")


# --- save and load ---


def test_saved_model_is_read_back_and_its_bytes_repeat(tmp_path: Path) -> None:
    first = write(models.tiny(), tmp_path / "a.onnx")
    model = onnx_io.load(first)
    assert models.ops(model) == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    assert str(onnx_io.inputs(model)[0]) == "image: float32[batch, 3, 8, 8]"
    assert str(onnx_io.outputs(model)[0]) == "scores: float32[batch, 5]"
    assert first.read_bytes() == write(model, tmp_path / "b.onnx").read_bytes()
    assert onnx_io.fingerprint(model) == onnx_io.fingerprint(models.tiny())


def test_fingerprint_depends_on_graph_weights_and_string_boundaries() -> None:
    variants = [models.tiny() for _ in range(5)]
    variants[1].graph.initializers["conv_bias"].const_value = ir.tensor(floats(4, seed=9))
    variants[2].graph.node(0).name = "other"
    for model, words in zip(variants[3:], ([b"ab", b"c"], [b"a", b"bc"]), strict=True):
        tensor = ir.StringTensor(words, shape=ir.Shape([2]), name="s")
        model.graph.register_initializer(ir.Value(name="s", const_value=tensor))
    assert len({onnx_io.fingerprint(model) for model in variants}) == 5


def test_saved_file_has_default_permissions_and_no_temporary_folder_stays(tmp_path: Path) -> None:
    path = write(models.tiny(), tmp_path / "deep" / "a.onnx")
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "plain").touch()
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(models.tiny(), tmp_path / "a.onnx")
    before = path.read_bytes()

    def fail(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space"):
        onnx_io.save(models.tiny(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_external_weights_are_saved_inside(tmp_path: Path) -> None:
    ir.save(models.tiny(), tmp_path / "net.onnx", external_data="w.bin", size_threshold_bytes=0)
    path = write(onnx_io.load(tmp_path / "net.onnx"), tmp_path / "single" / "a.onnx")
    (tmp_path / "w.bin").unlink()
    assert onnx_io.fingerprint(onnx_io.load(path)) == onnx_io.fingerprint(models.tiny())


@pytest.fixture
def external_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put every weight that is not tiny into the data file."""
    monkeypatch.setattr(onnx_io, "EXTERNAL_THRESHOLD_BYTES", 16)


@pytest.mark.usefixtures("external_weights")
@pytest.mark.parametrize("external", [True, False])
def test_large_or_external_model_is_saved_with_a_data_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, external: bool
) -> None:
    if not external:
        monkeypatch.setattr(onnx_io, "SINGLE_FILE_BYTES", 100)
    path = tmp_path / "a.onnx"
    onnx_io.save(models.tiny(), path, external=external)
    (data,) = tmp_path.glob("a-*.data")
    assert onnx_io.model_files(path) == (path, data)
    model = onnx_io.load(path)
    assert isinstance(model.graph.initializers["conv_weight"].const_value, ir.ExternalTensor)
    assert onnx_io.fingerprint(model) == onnx_io.fingerprint(models.tiny())


@pytest.mark.usefixtures("external_weights")
def test_saving_with_a_data_file_again_removes_only_its_own(tmp_path: Path) -> None:
    bystander, path = tmp_path / "a-12345678.data", tmp_path / "a.onnx"
    bystander.write_text("not of this model")
    model = models.tiny()
    onnx_io.save(model, path, external=True)
    model.graph.initializers["conv_weight"].const_value = ir.tensor(floats(4, 3, 3, 3, seed=9))
    onnx_io.save(model, path, external=True)
    assert bystander.exists()
    assert len(list(tmp_path.glob("a-*.data"))) == 2


def test_negative_dimension_is_dynamic(tmp_path: Path) -> None:
    proto = ir.to_proto(models.tiny())
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    model = onnx_io.load(write_proto(proto, tmp_path / "net.onnx"))
    assert onnx_io.inputs(model)[0].shape == ("batch", 3, 8, 8)
    assert onnx_io.outputs(model)[0].shape == ("", 5)


@pytest.mark.parametrize("version", [3, 8])
def test_initializers_that_are_inputs_become_constants(tmp_path: Path, version: int) -> None:
    proto = ir.to_proto(models.tiny())
    proto.ir_version = version
    for tensor in proto.graph.initializer:
        proto.graph.input.append(
            helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        )
    model = onnx_io.load(write_proto(proto, tmp_path / "old.onnx"))
    assert [value.name for value in model.graph.inputs] == ["image"]
    assert model.ir_version == (10 if version == 3 else 8)
    onnx_io.require_valid(model)


# --- rejected files ---


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "sub/../../w.bin", "link"])
def test_external_data_outside_the_folder_is_rejected(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(10_000))
    (folder / "link").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(QConvertError, match="outside its own folder"):
        onnx_io.load(with_external_entries(folder, location=location))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "too short"),
        ({"location": "gone.bin"}, "needs `gone.bin`, which is not beside it"),
        ({"offset": "32"}, "too short"),
        ({"length": "4"}, "stores 4 bytes for `conv_weight`, which needs 432"),
        ({"length": "99999999"}, "stores 99999999 bytes"),
        ({"length": str(2**63)}, f"stores {2**63} bytes"),
        ({"offset": "-8"}, "offset `-8`"),
        ({"length": "abc"}, "length `abc`"),
        ({"location": "w\0.bin"}, "the location of the data of `conv_weight` holds a zero byte"),
    ],
)
def test_invalid_external_entries_are_rejected(
    tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    with pytest.raises(QConvertError, match=message):
        onnx_io.load(with_external_entries(tmp_path, **entries))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello there, I am text\n" * 9, "it is a text file"),
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid x\n", "Git LFS pointer"),
        (bytes(range(256)) * 4, "not an ONNX model"),
        (onnx_io.serialize(models.tiny())[:-700], "is not a"),
        (onnx.ModelProto(ir_version=10).SerializeToString(), "no graph"),
    ],
    ids=["text", "empty", "lfs", "noise", "cut", "no graph"],
)
def test_file_other_than_model_is_rejected(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(QConvertError, match=message) as caught:
        onnx_io.load(tmp_path / "net.onnx")
    assert caught.value.exit_code == 3


def test_missing_file_is_a_usage_error_that_names_others(tmp_path: Path) -> None:
    write(models.tiny(), tmp_path / "near.onnx")
    with pytest.raises(UsageError, match="does not exist") as caught:
        onnx_io.load(tmp_path / "net.onnx")
    assert "near.onnx" in caught.value.hint
    with pytest.raises(UsageError, match="is a folder"):
        onnx_io.load(tmp_path)


@pytest.mark.parametrize(("domain", "name"), [("my.ops", "my.ops::Fancy"), ("", "ai.onnx::Fancy")])
def test_unknown_operator_is_named(tmp_path: Path, domain: str, name: str) -> None:
    model = models.tiny()
    model.opset_imports["my.ops"] = 1
    node = model.graph.node(1)
    node.op_type, node.domain = "Fancy", domain
    (tmp_path / "net.onnx").write_bytes(onnx_io.serialize(model))
    with pytest.raises(QConvertError, match=f"operators that are not in ONNX: `{name}`"):
        onnx_io.load(tmp_path / "net.onnx")


def test_incomplete_tensor_of_a_branch_is_rejected(tmp_path: Path) -> None:
    def vector(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, 1, [1])

    leaf = onnx.TensorProto(name="a", dims=[1], data_type=1, float_data=[1.0], raw_data=b"")
    identity = helper.make_node("Identity", ["a"], ["b"])
    branch = helper.make_graph([identity], "branch", [], [vector("b")], [leaf])
    node = helper.make_node("If", ["go"], ["y"], then_branch=branch, else_branch=branch)
    condition = helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, [])
    graph = helper.make_graph([node], "net", [condition], [vector("y")], value_info=[vector("a")])
    path = write_proto(helper.make_model(graph, ir_version=10), tmp_path / "net.onnx")
    with pytest.raises(QConvertError, match="incomplete tensor"):
        onnx_io.fingerprint(onnx_io.load(path))


def sparse_weight(proto: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(2, np.float32), "sparse_weight")
    indices = numpy_helper.from_array(np.array([0, 3]), "indices")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 2]))


def untyped_constant(proto: onnx.ModelProto) -> None:
    value = numpy_helper.from_array(np.ones(1, np.float32))
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["one"], value=value))
    proto.graph.node[0].attribute[0].t.data_type = 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda proto: proto.graph.node[1].input.insert(0, "nowhere"), "not a valid ONNX model"),
        (lambda proto: setattr(proto.opset_import[0], "version", 99), "opset 99; the installed"),
        (sparse_weight, "stores `sparse_weight` as a sparse tensor"),
        (
            lambda proto: setattr(proto.graph.initializer[0], "data_type", 99),
            "cannot be read: 99 is not a valid DataType",
        ),
        (lambda proto: setattr(proto.graph.initializer[0], "data_type", 0), "has no type"),
        (untyped_constant, "has no type"),
    ],
)
def test_invalid_graph_is_rejected_with_its_reason(
    tmp_path: Path, change: Callable[[onnx.ModelProto], None], message: str
) -> None:
    proto = ir.to_proto(models.tiny())
    change(proto)
    with pytest.raises(QConvertError, match=message):
        onnx_io.load(write_proto(proto, tmp_path / "net.onnx"))


@pytest.mark.parametrize("place", ["metadata", "external data"])
def test_text_that_is_not_utf8_is_rejected(tmp_path: Path, place: str) -> None:
    path = with_external_entries(tmp_path, location="abcd")
    if place == "metadata":
        proto = ir.to_proto(models.tiny())
        proto.metadata_props.add(key="abcd", value="x")
        write_proto(proto, path)
    path.write_bytes(path.read_bytes().replace(b"abcd", b"ab\x80d"))
    field = "key" if place == "metadata" else "value"
    with pytest.raises(QConvertError, match=f"`{field}` of its StringStringEntryProto is not UTF"):
        onnx_io.load(path)


def test_non_utf8_model_name_is_read_unless_it_has_external_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/net\xff.onnx"))
    assert models.ops(onnx_io.load(write_proto(ir.to_proto(models.tiny()), path)))
    external = with_external_entries(tmp_path, offset="0").rename(path)
    (tmp_path / "w.bin").write_bytes(bytes(432))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(QConvertError, match="its name is not UTF-8"):
        onnx_io.load(external)

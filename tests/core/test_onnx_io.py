"""ONNX files: refused with a reason or read whole; written whole or not at all."""

import stat
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from qconvert.core import onnx_io
from qconvert.core.errors import QConvertError, UsageError
from tests import models
from tests.conftest import write
from tests.models import floats


def with_external(folder: Path, location: str) -> Path:
    """Write the tiny model with its weights in `location`."""
    path = folder / "net.onnx"
    ir.save(models.tiny(), path, external_data="weights.bin", size_threshold_bytes=0)
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(proto.SerializeToString())
    return path


def test_what_is_saved_is_read_back_and_the_bytes_repeat(tmp_path: Path) -> None:
    first = write(models.tiny(), tmp_path / "a.onnx")
    model = onnx_io.load(first)
    assert models.ops(model) == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"]
    second = write(model, tmp_path / "b.onnx")
    assert first.read_bytes() == second.read_bytes()
    assert onnx_io.fingerprint(model) == onnx_io.fingerprint(models.tiny())


def test_the_fingerprint_sees_weights_and_graph() -> None:
    changed = models.tiny()
    changed.graph.initializers["conv_bias"].const_value = ir.tensor(models.floats(4, seed=9))
    renamed = models.tiny()
    renamed.graph.node(0).name = "other"
    prints = {onnx_io.fingerprint(model) for model in (models.tiny(), changed, renamed)}
    assert len(prints) == 3


def test_a_saved_file_has_the_usual_rights_and_no_drafts_stay(tmp_path: Path) -> None:
    path = write(models.tiny(), tmp_path / "deep" / "a.onnx")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~onnx_io._umask()
    assert [each.name for each in path.parent.iterdir()] == ["a.onnx"]


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(models.tiny(), tmp_path / "a.onnx")
    before = path.read_bytes()

    def full(self: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        onnx_io.save(models.tiny(), path)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".a.onnx")] == []


def test_inputs_are_what_must_be_fed(tmp_path: Path) -> None:
    (image,) = onnx_io.inputs(models.tiny())
    assert str(image) == "image: float32[batch, 3, 8, 8]"
    (scores,) = onnx_io.outputs(models.tiny())
    assert str(scores) == "scores: float32[batch, 5]"


def test_external_data_beside_the_model_is_read_and_written_inside(tmp_path: Path) -> None:
    model = onnx_io.load(with_external(tmp_path, "weights.bin"))
    assert isinstance(next(iter(model.graph.initializers.values())).const_value, ir.ExternalTensor)
    whole = write(model, tmp_path / "whole" / "a.onnx")
    (tmp_path / "weights.bin").unlink()
    read = onnx_io.load(whole)
    stored = read.graph.initializers["conv_weight"].const_value
    assert stored is not None
    np.testing.assert_array_equal(stored.numpy(), models.floats(4, 3, 3, 3))


def test_a_large_model_keeps_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_io, "SINGLE_FILE_BYTES", 100)
    monkeypatch.setattr(onnx_io, "EXTERNAL_THRESHOLD_BYTES", 16)
    path = write(models.tiny(), tmp_path / "a.onnx")
    data = [each for each in tmp_path.iterdir() if each.suffix == ".data"]
    assert len(data) == 1
    assert data[0].name.startswith("a-")
    stored = onnx_io.load(path).graph.initializers["conv_weight"].const_value
    assert isinstance(stored, ir.ExternalTensor)
    assert onnx_io.model_files(path) == (path, data[0])
    np.testing.assert_array_equal(stored.numpy(), models.floats(4, 3, 3, 3))


def test_any_model_can_have_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_io, "EXTERNAL_THRESHOLD_BYTES", 16)
    onnx_io.save(models.tiny(), tmp_path / "a.onnx", external=True)
    assert len(onnx_io.model_files(tmp_path / "a.onnx")) == 2
    assert onnx_io.fingerprint(onnx_io.load(tmp_path / "a.onnx")) == onnx_io.fingerprint(
        models.tiny()
    )


def test_writing_a_large_model_again_removes_only_its_own_old_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_io, "SINGLE_FILE_BYTES", 100)
    monkeypatch.setattr(onnx_io, "EXTERNAL_THRESHOLD_BYTES", 16)
    bystander = tmp_path / "a-12345678.data"
    bystander.write_text("not of this model")
    path = write(models.tiny(), tmp_path / "a.onnx")
    changed = models.tiny()
    changed.graph.initializers["conv_weight"].const_value = ir.tensor(floats(4, 3, 3, 3, seed=9))
    write(changed, path)
    assert bystander.exists()
    assert len(list(tmp_path.glob("a-*.data"))) == 2


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "sub/../../weights.bin"])
def test_external_data_outside_the_folder_is_refused(tmp_path: Path, location: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "weights.bin").write_bytes(bytes(10_000))
    path = with_external(folder, location)
    with pytest.raises(QConvertError, match="outside its own folder"):
        onnx_io.load(path)


def test_external_data_behind_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = with_external(folder, "weights.bin")
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "weights.bin")
    with pytest.raises(QConvertError, match="outside its own folder"):
        onnx_io.load(path)


def test_missing_and_short_external_data_are_told_apart(tmp_path: Path) -> None:
    path = with_external(tmp_path, "gone.bin")
    with pytest.raises(QConvertError, match=r"needs `gone\.bin`, which is not beside it"):
        onnx_io.load(path)
    (tmp_path / "gone.bin").write_bytes(b"1234")
    with pytest.raises(QConvertError, match="too short"):
        onnx_io.load(path)


def test_files_that_are_no_models_are_refused_in_words(tmp_path: Path) -> None:
    cases = {
        "text.onnx": (b"hello there, I am text\n" * 9, "it is a text file"),
        "empty.onnx": (b"", "is empty"),
        "lfs.onnx": (b"version https://git-lfs.github.com/spec/v1\noid x\n", "Git LFS pointer"),
        "noise.onnx": (bytes(range(256)) * 4, "not an ONNX model"),
        "cut.onnx": (onnx_io.serialize(models.tiny())[:-700], "is not a"),
        "hollow.onnx": (onnx.ModelProto(ir_version=10).SerializeToString(), "no graph"),
    }
    for name, (content, said) in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(QConvertError, match=said) as caught:
            onnx_io.load(tmp_path / name)
        assert caught.value.exit_code == 3
        assert caught.value.hint


def test_a_missing_file_is_a_mistake_of_the_command(tmp_path: Path) -> None:
    write(models.tiny(), tmp_path / "near.onnx")
    with pytest.raises(UsageError, match="does not exist") as caught:
        onnx_io.load(tmp_path / "net.onnx")
    assert "near.onnx" in str(caught.value.hint)
    with pytest.raises(UsageError, match="is a folder"):
        onnx_io.load(tmp_path)


def test_operators_outside_onnx_are_named(tmp_path: Path) -> None:
    for domain, op, shown in (
        ("my.ops", "Fancy", "my.ops::Fancy"),
        ("", "Fancy", "ai.onnx::Fancy"),
    ):
        model = models.tiny()
        model.opset_imports["my.ops"] = 1
        node = model.graph.node(1)
        node.op_type, node.domain = op, domain
        path = tmp_path / "odd.onnx"
        path.write_bytes(onnx_io.serialize(model))
        with pytest.raises(QConvertError, match=f"operators that are not in ONNX: `{shown}`"):
            onnx_io.load(path)


def test_a_graph_that_breaks_the_rules_is_refused(tmp_path: Path) -> None:
    proto = ir.to_proto(models.tiny())
    proto.graph.node[1].input[0] = "nowhere"
    path = tmp_path / "bad.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(QConvertError, match="not a valid ONNX model"):
        onnx_io.load(path)


def test_a_dimension_below_zero_is_open(tmp_path: Path) -> None:
    model = models.tiny()
    proto = ir.to_proto(model)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = -1
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    loaded = onnx_io.load(tmp_path / "net.onnx")
    assert onnx_io.inputs(loaded)[0].shape == ("batch", 3, 8, 8)
    assert onnx_io.outputs(loaded)[0].shape == ("", 5)

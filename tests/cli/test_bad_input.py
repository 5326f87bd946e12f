"""Every bad input ends in `error:` and `hint:`, with 2 or 3, no traceback, nothing half written.

Each case goes through the real command, in this process: what ends a process is the fuzzer's.
"""

import pickle
from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch

from qconvert.core import onnx_io
from tests import models
from tests.conftest import Outcome
from tests.core.test_onnx_io import with_external_entries
from tests.models import write_factory
from tests.sources.test_torch_file import Payload


def folder_for_a_file(folder: Path) -> list[str]:
    (folder / "net.onnx").mkdir()
    return ["net.onnx"]


def empty_file(folder: Path) -> list[str]:
    (folder / "net.onnx").touch()
    return ["net.onnx"]


def truncated_protobuf(folder: Path) -> list[str]:
    (folder / "net.onnx").write_bytes(onnx_io.serialize(models.tiny())[:900])
    return ["net.onnx"]


def text_renamed(folder: Path) -> list[str]:
    (folder / "net.onnx").write_text("I was never a network\n" * 20)
    return ["net.onnx"]


def operator_as(folder: Path, op: str, domain: str) -> list[str]:
    model = models.tiny()
    model.opset_imports[domain] = model.opset_imports.get(domain, 1)
    model.graph.node(1).op_type, model.graph.node(1).domain = op, domain
    (folder / "net.onnx").write_bytes(onnx_io.serialize(model))
    return ["net.onnx"]


def unknown_operator(folder: Path) -> list[str]:
    return operator_as(folder, "Fancy", "")


def custom_domain(folder: Path) -> list[str]:
    return operator_as(folder, "Fancy", "my.ops")


def runtime_operator_that_does_not_exist(folder: Path) -> list[str]:
    return operator_as(folder, "Fancy", "com.microsoft")


def external_data_missing(folder: Path) -> list[str]:
    with_external_entries(folder, location="gone.bin")
    return ["net.onnx"]


def external_data_outside(folder: Path) -> list[str]:
    with_external_entries(folder, location="../../etc/passwd")
    return ["net.onnx"]


def types_that_do_not_fit(folder: Path) -> list[str]:
    proto = ir.to_proto(models.tiny())
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    (folder / "net.onnx").write_bytes(proto.SerializeToString())
    return ["net.onnx"]


def factory(name: str, *more: str) -> Callable[[Path], list[str]]:
    def prepare(folder: Path) -> list[str]:
        write_factory(folder)
        return [name, *more]

    return prepare


def weights_that_do_not_fit(folder: Path) -> list[str]:
    write_factory(folder)
    torch.save({"5.weight": torch.zeros(5, 4), "more": torch.zeros(1)}, folder / "w.pt")
    return ["nets:ready", "--weights", "w.pt"]


def weights_with_code(folder: Path) -> list[str]:
    write_factory(folder)
    torch.save({"w": Payload()}, folder / "w.pt")
    return ["nets:ready", "--weights", "w.pt"]


def pickle_with_code(folder: Path) -> list[str]:
    (folder / "net.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    return ["net.pt", "--input", "1x4"]


def program_that_is_none(folder: Path) -> list[str]:
    (folder / "net.pt2").write_bytes(b"PK\x03\x04 not really")
    return ["net.pt2"]


CASES: dict[str, tuple[Callable[[Path], list[str]], int, str]] = {
    "missing file": (lambda folder: ["none.onnx"], 2, "does not exist"),
    "not a source": (lambda folder: ["resnet50"], 2, "not a model that qconvert can read"),
    "folder": (folder_for_a_file, 2, "is a folder"),
    "empty file": (empty_file, 3, "is empty"),
    "truncated": (truncated_protobuf, 3, "is not a"),
    "text": (text_renamed, 3, "it is a text file"),
    "unknown operator": (unknown_operator, 3, "`ai.onnx::Fancy`"),
    "custom domain": (custom_domain, 3, "`my.ops::Fancy`"),
    "runtime operator": (runtime_operator_that_does_not_exist, 3, "Fancy"),
    "external data missing": (external_data_missing, 3, "which is not beside it"),
    "external data outside": (external_data_outside, 3, "outside its own folder"),
    "types that do not fit": (types_that_do_not_fit, 3, "cannot load this model"),
    "no such module": (factory("netz:build"), 2, "no module `netz` here"),
    "no such factory": (factory("nets:bild"), 2, "did you mean `build`?"),
    "not a function": (factory("nets:not_a_function"), 2, "is not a function"),
    "factory that raises": (factory("nets:raising"), 3, "ValueError: no such checkpoint"),
    "factory that leaves": (factory("nets:leaving"), 3, "SystemExit: bye"),
    "factory of a number": (factory("nets:number"), 3, "returned a int"),
    "no shape": (factory("nets:build"), 2, "does not describe its inputs"),
    "wrong shape": (factory("nets:build", "--input", "1x9x8x8"), 2, "does not run on inputs"),
    "nonsense shape": (factory("nets:build", "--input", "x:1xax8"), 2, "is not NAME:SHAPE"),
    "nonsense batch": (factory("nets:ready", "--batch", "many"), 2, "`many` is not"),
    "weights missing": (factory("nets:ready", "--weights", "w.pt"), 2, "does not exist"),
    "weights that do not fit": (weights_that_do_not_fit, 3, "missing: `0.weight`"),
    "weights with code": (weights_with_code, 3, "would run code it contains"),
    "pickle with code": (pickle_with_code, 3, "would run code it contains"),
    "no program": (program_that_is_none, 3, "reading it can run code"),
    "branch on data": (factory("nets:branching"), 3, "torch could not export this network"),
    "fixed batch": (factory("nets:fixed_batch"), 3, "dynamic batch"),
    "low opset": (factory("nets:ready", "--opset", "9"), 2, "export.opset"),
    "wrong pass": (factory("nets:ready", "--skip", "simplfy"), 2, "did you mean `simplify`?"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_invalid_input_ends_in_an_error_message(
    case: str, qconvert: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare, code, message = CASES[case]
    work = tmp_path / "work"
    work.mkdir()
    args = prepare(work)
    before = sorted(path for path in work.rglob("*") if "__pycache__" not in path.parts)
    monkeypatch.chdir(work)
    outcome = qconvert("export", *args, "-o", "out.onnx")
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert "\nerror: " in f"\n{outcome.err}"
    assert message in outcome.err
    assert "\n\nhint: " in outcome.err or code == 2
    assert "Traceback" not in outcome.err
    after = sorted(path for path in work.rglob("*") if "__pycache__" not in path.parts)
    assert after == before, "nothing may be left behind"

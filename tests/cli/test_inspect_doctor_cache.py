"""The commands inspect, doctor, cache and init."""

import json
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qconvert.backends import int8_class, system_probe
from qconvert.core import config_file
from qconvert.demo import demo_files
from tests import models
from tests.conftest import Outcome, write

Command = Callable[..., Outcome]

INSPECTED = """\
tiny.onnx   opset 20, 137 parameters, 0.0 MB
  input   image: float32[batch, 3, 8, 8]
  output  scores: float32[batch, 5]

operator            nodes   parameters     MACs    share
────────────────────────────────────────────────────────
Conv                    1          112   6.91 k   99.7 %
Gemm                    1           25       20    0.3 %
Flatten                 1
GlobalAveragePool       1
Relu                    1
"""


def test_inspect_shows_inputs_operators_and_sizes(qconvert: Command, tiny: Path) -> None:
    assert qconvert("inspect", "tiny.onnx") == Outcome(0, INSPECTED, "")


def test_inspect_nodes_lists_every_node_in_order(qconvert: Command, tiny: Path) -> None:
    lines = qconvert("inspect", "tiny.onnx", "--nodes").out.splitlines()
    operators = " ".join(line.split()[1] for line in lines[6:])
    assert operators == "Conv Relu GlobalAveragePool Flatten Gemm"
    assert "float32[batch, 4, 8, 8]" in lines[6]


def test_inspect_json_holds_what_the_table_shows(qconvert: Command, tiny: Path) -> None:
    result = json.loads(qconvert("inspect", "tiny.onnx", "--json").out)
    assert result["inputs"] == [{"name": "image", "dtype": "float32", "shape": ["batch", 3, 8, 8]}]
    assert result["operators"][0] == {"op": "Conv", "nodes": 1, "parameters": 112, "macs": 6912}
    assert (result["parameters"], result["weight_bytes"], result["quantized"]) == (137, 548, False)
    assert "nodes" not in result
    assert len(json.loads(qconvert("inspect", "tiny.onnx", "--json", "--nodes").out)["nodes"]) == 5


def test_doctor_lists_backends_with_reasons_and_fixes(
    qconvert: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpu_class = int8_class.recorded_class("AVX2 without VNNI")
    monkeypatch.setattr(int8_class, "int8_class", lambda: cpu_class)
    outcome = qconvert("doctor")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["backend", "builds", "runs", "version", "why", "not"]
    assert lines[2].split()[:3] == ["cpu", "yes", "yes"]
    assert [line.split()[0] for line in lines[3:6]] == ["cuda", "tensorrt", "tensorrt-rtx"]
    meaning = "AVX2 without VNNI: INT8 is at most 1.3-2x as fast as FP32"
    assert f"INT8 on CPU    {meaning}" in lines
    result = json.loads(qconvert("doctor", "--json").out)
    assert result["int8"]["name"] == "AVX2 without VNNI"
    assert result["backends"]["cpu"]["runs"] is True
    for backend in result["backends"].values():
        assert backend["runs"] or backend["reason"]


def test_doctor_reports_conflicting_runtimes_and_the_fix(
    qconvert: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    monkeypatch.setattr(
        system_probe, "detect", lambda: system_probe.Installed(both, "", "no NVIDIA driver", ())
    )
    outcome = qconvert("doctor")
    assert "onnxruntime and onnxruntime-gpu are both installed" in outcome.out
    assert "pip uninstall -y onnxruntime onnxruntime-gpu" in outcome.out
    assert json.loads(qconvert("doctor", "--json").out)["conflicts"] == list(both)


def test_cache_command_lists_and_clears_results(qconvert: Command, tiny: Path) -> None:
    empty = qconvert("cache")
    assert (empty.code, empty.out) == (0, "")
    assert empty.err.startswith("0 results, 0.0 MB, in ")
    qconvert("export", tiny, "-o", "a.onnx")
    listed = qconvert("cache")
    assert listed.out.splitlines()[0].split() == ["step", "MB", "age", "made", "from"]
    assert listed.out.splitlines()[2].startswith("prepare")
    assert "tiny (" in listed.out
    (entry,) = json.loads(qconvert("cache", "--json").out)["entries"]
    assert entry["recipe"]["opset"] == "20"
    wrong = qconvert("cache", "--clear", "prepaer")
    assert wrong.code == 2
    assert "did you mean `prepare`?" in wrong.err
    assert qconvert("cache", "--clear", "prepare").err.startswith("cleared 1 results")
    assert qconvert("cache").out == ""


def test_init_writes_settings_that_export_reads(
    qconvert: Command, tiny: Path, tmp_path: Path
) -> None:
    written = qconvert("init", "tiny.onnx").err
    assert written == "wrote qconvert.toml; commands in this folder read it\n"
    assert config_file.load(Path("qconvert.toml")).model == "tiny.onnx"
    assert qconvert("export", "-o", "a.onnx").code == 0
    again = qconvert("init", "tiny.onnx")
    assert again.code == 2
    assert "--force" in again.err
    assert qconvert("init", "tiny.onnx", "--force").code == 0


def test_init_in_another_folder_writes_a_relative_model_path(
    qconvert: Command, tiny: Path, tmp_path: Path
) -> None:
    assert qconvert("init", "tiny.onnx", "-o", "deep/settings.toml").code == 0
    loaded = config_file.load(Path("deep/settings.toml"))
    assert Path(str(loaded.model)).resolve() == tiny
    assert qconvert("init", "none.onnx").code == 2
    assert qconvert("init", "timm:resnet18").code == 0
    assert config_file.load(Path("qconvert.toml")).model == "timm:resnet18"


ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.slow
def test_ascii_terminal_gets_escaped_output(shell: Callable[..., Outcome], tmp_path: Path) -> None:
    model = models.tiny()
    model.graph.node(0).name = "Größe ±"
    write(model, tmp_path / "net.onnx")
    table = shell("inspect", "net.onnx", "--nodes", **ASCII)
    assert table.code == 0
    assert r"Gr\xf6\xdfe \xb1" in table.out
    result = shell("inspect", "net.onnx", "--nodes", "--json", **ASCII)
    assert result.code == 0
    assert "Größe ±" in json.dumps(json.loads(result.out), ensure_ascii=False)


@pytest.mark.long
def test_doctor_proves_engines_and_writes_bundle_without_private_paths(
    qconvert: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, count in (("CALIBRATION_IMAGES", 40), ("PROOF_IMAGES", 100)):
        fewer = replace(getattr(demo_files, name), count=count)
        monkeypatch.setattr(demo_files, name, fewer)
    (tmp_path / "qconvert.toml").write_text("[build]\nprecisions = ['nonsense']\n")
    outcome = qconvert("doctor", "--prove", "--backend", "cpu", "-o", "proof", "--json")
    assert outcome.code == 0, outcome.err
    proofs = json.loads(outcome.out)["proofs"]
    assert [(proof["precision"], proof["result"]) for proof in proofs] == [
        ("fp32", "ok"),
        ("fp16", "ok"),
        ("int8", "ok"),
    ]
    assert all(proof["top1"] > 90 and proof["median_ms"] > 0 for proof in proofs)
    with zipfile.ZipFile("proof/proof.zip") as archive:
        names = archive.namelist()
        texts = [archive.read(name).decode() for name in names]
    assert {"machine.json", "logs/cpu-int8.txt", "runs/cpu-int8/report.json"} <= set(names)
    assert not [name for name in names if name.endswith((".png", ".onnx", ".engine"))]
    assert not [text for text in texts if str(tmp_path) in text or str(Path.home()) + "/" in text]


def test_doctor_names_backend_that_cannot_be_proven(qconvert: Command) -> None:
    outcome = qconvert("doctor", "--prove", "--backend", "gpu")
    assert outcome.code == 2
    assert "there is no backend `gpu`" in outcome.err

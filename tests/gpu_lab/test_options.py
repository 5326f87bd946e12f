"""The options of the TensorRT provider as its Python binding takes them, and its files."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from tests.conftest import write
from tests.gpu_lab.conftest import Lab
from tests.gpu_lab.lab.environment import Finished
from tests.gpu_lab.lab.events import Build, Deserialize
from tests.models import from_text

# Builds an engine for each case in a folder of its own, loads it, and runs it in both ways.
BUILD = """
import json, sys
from pathlib import Path
import numpy
from qconvert.backends import tensorrt
from qconvert.backends.base import BuildSpec, Profile

model, feed, cases = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
for precision, options in cases:
    folder = Path("engines") / str(len(list(Path("engines").glob("*"))))
    folder.mkdir(parents=True)
    spec = BuildSpec(precision, Profile(1, 4, 8), options=options)
    engine = tensorrt.build(model, spec, folder, lambda text, done: None)
    session = tensorrt.open(engine)
    feeds = {feed: numpy.ones((2, 3, 8, 8), numpy.float32)}
    [output] = session.run(feeds).values()
    session.bind(feeds)()
    print(json.dumps([engine.files, output.sum().item()]))
"""
PROVIDER: Mapping[str, object] = {"builder": "provider"}
Case = tuple[str, Mapping[str, object]]


def build(lab: Lab, *cases: Case, feed: str = "image", **script: Any) -> Finished:
    """Build and load `tiny.onnx` with the settings of each case, as backends get them."""
    arguments = ("tiny.onnx", feed, json.dumps([(name, dict(options)) for name, options in cases]))
    return lab.host(**script).run("-c", BUILD, *arguments, cwd=lab.cwd)


def builds_of(done: Finished) -> Sequence[Build]:
    """Return the builds, all of which must have ended in engines that load."""
    assert done.code == 0, done.err
    assert all(it.valid and it.fits for it in done.all(Deserialize))
    return done.all(Build)


@pytest.mark.usefixtures("tiny")
def test_every_option_passes_the_binding(lab: Lab) -> None:
    provider = {**PROVIDER, "timing-cache": str(lab.cwd / "timings")}
    done = build(
        lab,
        ("fp32", provider),
        ("fp16", {**provider, "workspace": 64, "level": 5}),
        ("bf16", {**provider, "hardware-compatible": True, "use-tf32": False}),
        ("fp16", {**provider, "allow-fallback": True, "workspace": 64, "level": 5}),
    )
    # One build each: a load that forgot an option of the build would build again.
    builds = builds_of(done)
    flags = [{"TF32"}, {"TF32", "FP16"}, {"TF32", "BF16"}, {"TF32", "FP16"}]
    assert [it.flag_names for it in builds] == flags
    assert [it.workspace >> 20 for it in builds] == [0, 64, 0, 64]
    assert [it.level for it in builds] == [3, 5, 3, 5]
    assert [it.hardware for it in builds] == [0, 0, 1, 0]
    assert all(it.timing_cache for it in builds)
    assert [it.profiles[0]["image"][2][0] for it in builds] == [8] * 4
    assert len({total for _, total in map(json.loads, done.out.splitlines())}) == 1
    # Nothing lies outside the folders of the engines.
    assert lab.files() == ["engines", "timings", "tiny.onnx"]


def test_engines_are_named_by_their_weights(lab: Lab, tiny: Path) -> None:
    first = build(lab, ("fp32", PROVIDER))
    assert len(builds_of(first)) == 1
    model = onnx.load(tiny)
    for tensor in model.graph.initializer:
        doubled = 2 * numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(doubled), tensor.name))
    onnx.save(model, tiny)
    second = build(lab, ("fp32", PROVIDER))
    assert len(builds_of(second)) == 1
    names, others = (json.loads(done.out)[0] for done in (first, second))
    assert {name for name in names if name in others} == {"model_ctx.onnx"}


COLON = """
<ir_version: 10, opset_import: ["": 20]>
net (float[N, 3, 8, 8] image0) => (float[N, 3, 8, 8] y) { y = Relu (image0) }
"""


def test_input_name_with_a_colon_builds_natively_and_is_refused_by_the_provider(lab: Lab) -> None:
    model = from_text(COLON)
    model.graph.inputs[0].name = "image:0"
    write(model, lab.cwd / "tiny.onnx")
    native = build(lab, ("fp32", {}), feed="image:0")
    assert [list(it.profiles[0]) for it in builds_of(native)] == [["image:0"]]
    done = lab.qconvert(
        *("build", "tiny.onnx", "-o", "run", "--backend", "tensorrt", "--precision", "fp32"),
        *("--set", "tensorrt.builder=provider"),
    )
    assert done.code == 2, done.err
    assert "error: the TensorRT provider cannot read a profile for the input `image:0`" in done.err
    assert "hint: rename the input" in done.err


TAIL_REFUSED: Mapping[str, Any] = {"refuses": ("Gemm",)}


@pytest.mark.usefixtures("tiny")
def test_fallback_runs_what_tensorrt_refuses(lab: Lab) -> None:
    done = build(lab, ("fp16", {**PROVIDER, "allow-fallback": True}), **TAIL_REFUSED)
    assert [it.flag_names for it in builds_of(done)] == [{"TF32", "FP16"}]
    whole = build(lab, ("fp16", {**PROVIDER, "allow-fallback": True}))
    assert json.loads(done.out)[1] == pytest.approx(json.loads(whole.out)[1])


@pytest.mark.xfail(strict=True, reason="the provider wants profiles of the inputs of every part")
@pytest.mark.usefixtures("tiny")
def test_fallback_in_the_middle_of_a_dynamic_graph_builds(lab: Lab) -> None:
    options = {**PROVIDER, "allow-fallback": True}
    done = build(lab, ("fp16", options), refuses=("GlobalAveragePool",))
    assert len(builds_of(done)) == 2


@pytest.mark.usefixtures("tiny")
def test_node_that_tensorrt_refuses_is_named(lab: Lab) -> None:
    done = lab.qconvert(
        *("build", "tiny.onnx", "-o", "run", "--backend", "tensorrt", "--precision", "fp32"),
        *("--set", "tensorrt.builder=provider"),
        **TAIL_REFUSED,
    )
    assert done.code == 3, done.err
    assert "error: the TensorRT provider does not run Gemm" in done.err
    assert "hint: " in done.err

"""Training in a loop of one's own: from a network to a torch module, and on to a run."""

import copy
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import qconvert
from qconvert import train
from qconvert.backends import requirements
from qconvert.backends.base import scheme_for
from qconvert.backends.ort import open_cpu
from qconvert.core import onnx_io
from qconvert.core.config import QuantizeConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.quantize import plan_files
from qconvert.quantize.placement import QuantizeOptions, make_plan
from qconvert.train.own_loop import QuantizedModule
from tests.models import mixed
from tests.runs import QUICK, draw_world

IMAGE = "image:1x3x16x16"


def images(count: int, seed: int = 0) -> torch.Tensor:
    values = np.random.default_rng(seed).standard_normal((count, 3, 16, 16))
    return torch.from_numpy(values.astype(np.float32))


class Net(nn.Module):
    """Returns a dict with a tuple in it, so that its structure can be lost."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, image: torch.Tensor) -> dict[str, Any]:
        features = torch.relu(self.norm(self.conv(image)))
        return {"scores": self.head(features.mean((2, 3))), "maps": (features, None)}


def classifier() -> nn.Sequential:
    """Return a network whose batch normalization has seen some images."""
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    network.train()(images(32))
    return network.eval()


def quantized(
    model: Path, backend: str = "cpu", settings: Mapping[str, object] | None = None
) -> QuantizedModule:
    module = train.prepare(model, backend=backend, settings=settings)
    module.observe(images(16))
    module.fix_ranges()
    return module


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a network of every kind of operator that is quantized."""
    onnx_io.save(mixed(), tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.slow
def test_torch_module_is_the_float_network_until_it_is_fixed_and_keeps_its_mode() -> None:
    network = classifier()
    expected = network(images(3))
    network.train()
    network[1].eval()
    module = train.prepare(network, inputs=[IMAGE])
    assert (network.training, network[0].training, network[1].training) == (True, True, False)
    assert not module.is_quantized
    torch.testing.assert_close(module(images(3)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_outputs_have_the_structure_of_the_network() -> None:
    module = train.prepare(Net().eval(), inputs=[IMAGE])
    for _ in range(2):
        outputs = module(image=images(2))
        assert list(outputs) == ["scores", "maps"]
        assert outputs["scores"].shape == (2, 4)
        features, nothing = outputs["maps"]
        assert (features.shape, nothing) == ((2, 8, 14, 14), None)
        if not module.is_quantized:
            module.observe(images(8))
            module.fix_ranges()


def test_ranges_are_those_of_a_calibration(model: Path) -> None:
    module = train.prepare(model)
    module.observe(images(5))
    module.observe(images(7, seed=1))
    observer = module.observer
    assert observer is not None
    summaries = observer.summaries()
    scheme = scheme_for(QuantizeConfig(), requirements("cpu"))
    expected = make_plan(module.network.model, scheme, summaries, QuantizeOptions("minmax"))
    module.fix_ranges("minmax")
    assert module.plan == expected
    assert summaries["image"].high == float(torch.cat([images(5), images(7, seed=1)]).max())


def test_model_with_a_fixed_batch_observes_any_number_of_images(tmp_path: Path) -> None:
    fixed = mixed()
    fixed.graph.inputs[0].shape = type(fixed.graph.inputs[0].shape)([4, 3, 16, 16])  # type: ignore[misc]
    onnx_io.save(fixed, tmp_path / "fixed.onnx")
    module = train.prepare(tmp_path / "fixed.onnx")
    module.observe(images(10))
    observer = module.observer
    assert observer is not None
    assert observer.collector.image_count == 10
    assert observer.summaries()["image"].high == float(images(10).max())


def test_module_computes_what_the_graph_of_finish_computes(tmp_path: Path, model: Path) -> None:
    module = quantized(model)
    run = train.finish(module, tmp_path / "run")
    graph = onnx_io.load(run / "engines/cpu-int8/model.onnx")
    (outputs,) = open_cpu(graph, keep_qdq=True)({"image": images(8).numpy()}).values()
    np.testing.assert_allclose(outputs, module(images(8)).detach().numpy(), atol=0.02)
    assert plan_files.read_embedded_plan(graph) == module.to_plan().plan


@pytest.mark.parametrize("backend", ["cpu", "tensorrt"])
def test_training_lowers_the_loss_of_the_quantized_network(model: Path, backend: str) -> None:
    module = quantized(model, backend)
    optimizer = torch.optim.AdamW(module.parameter_groups(lr=1e-2))
    labels = torch.arange(16) % 4
    losses = []
    for _ in range(20):
        loss = functional.cross_entropy(module(images(16)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_steps_and_biases_have_rates_of_their_own_and_no_decay(model: Path) -> None:
    groups = {group["name"]: group for group in quantized(model).parameter_groups(lr=0.5)}
    assert groups["weights"]["lr"] == groups["biases"]["lr"] == 0.5
    assert groups["steps"]["lr"] == groups["weight_steps"]["lr"] < 0.1
    assert [name for name in groups if "weight_decay" not in groups[name]] == ["weights"]


def test_plain_parameters_are_those_of_the_groups(model: Path) -> None:
    module = quantized(model)
    grouped = [p for group in module.parameter_groups(lr=1.0) for p in group["params"]]
    assert {id(p) for p in grouped} == {id(p) for p in module.parameters()}


def test_state_continues_in_a_new_module(model: Path) -> None:
    module = quantized(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other = train.prepare(model)  # with no plan yet
    other.load_state_dict(torch.load(file))
    torch.testing.assert_close(other(images(4)), module(images(4)))
    assert other.to_plan().plan == module.to_plan().plan


def test_state_of_another_network_is_refused(model: Path) -> None:
    state = quantized(model).state_dict()
    onnx_io.save(mixed(b1=np.zeros(16, np.float32)), model)
    with pytest.raises(UsageError, match="another model"):
        train.prepare(model).load_state_dict(state)


def test_copy_is_independent(model: Path) -> None:
    module = quantized(model)
    before = module(images(2)).detach()
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.add_(0.5)
    torch.testing.assert_close(module(images(2)), before)
    assert (copied(images(2)) - before).abs().max() > 0.01


def test_copy_while_observing_goes_on_by_itself(model: Path) -> None:
    module = train.prepare(model)
    module.observe(images(8))
    copied = copy.deepcopy(module)
    copied.observe(images(8, seed=1))
    assert module.observer is not None
    assert copied.observer is not None
    assert (module.observer.collector.image_count, copied.observer.collector.image_count) == (8, 16)


def test_everything_moves_along_with_the_module(model: Path) -> None:
    module = quantized(model)
    moved = copy.deepcopy(module).double()  # as a move to a device, it leaves out plain attributes
    scores = moved(images(2).double())
    assert scores.dtype == torch.float64
    torch.testing.assert_close(scores.float(), module(images(2)), atol=0.05, rtol=0)


def test_settings_decide_the_plan_and_stay_with_the_run(tmp_path: Path, model: Path) -> None:
    settings = {"quantize.weight-bits": 4, "quantize.exclude": ["Gemm"]}
    module = quantized(model, settings=settings)
    assert module.plan.weights.bits == 4
    assert module.plan.layers["scores"].left == "excluded by `Gemm`"
    run = train.finish(module, tmp_path / "run")
    assert "weight-bits = 4" in (run / "run.toml").read_text()


@pytest.mark.slow
def test_trained_module_is_built_and_scored_against_its_float_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QCONVERT_CACHE_DIR", str(tmp_path / "store"))
    draw_world(tmp_path)
    module = train.prepare("model.onnx")
    module.observe(images(16))
    module.fix_ranges()
    with torch.no_grad():
        for parameter in module.graph.biases.parameters():
            parameter.mul_(0.99)
    run = train.finish(module, "run")
    arguments: dict[str, Any] = {"eval": "val", "settings": QUICK, "precisions": ["fp32", "int8"]}
    report = qconvert.resume(run, **arguments).report
    assert [variant.name for variant in report.variants] == ["cpu-fp32", "cpu-int8"]
    assert all(variant.accuracy is not None for variant in report.variants)
    built = plan_files.load_plan(run / "engines/cpu-int8/plan.json")
    expected = module.to_plan()
    assert built.plan == expected.plan
    assert built.weights.keys() == expected.weights.keys()
    # With images it can be searched, and trained further.
    images_too = {**QUICK, "search.budget": 50.0, "calibration.images": "calib_data"}
    mixed_too = qconvert.resume(run, eval="val", precisions=["int8", "mixed"], settings=images_too)
    assert list(mixed_too.report.mixes) == ["cpu"]  # whatever pays on this machine
    assert (run / "calibration/images.txt").read_text().count("\n") == 16
    again = train.prepare(run)
    assert again.plan == expected.plan
    onward = train.finish(again, "onward")
    assert (onward / "calibration/calibration.npz").is_file()


def test_run_of_finish_says_where_it_is(tmp_path: Path, model: Path) -> None:
    module = train.prepare(model)
    module.observe(images(8))
    module.fix_ranges()
    run = train.finish(module, tmp_path / "run")
    assert sorted(path.name for path in run.iterdir()) == ["engines", "model.onnx", "run.toml"]
    assert str(model) in (run / "run.toml").read_text()
    plan = json.loads((run / "engines/cpu-int8/plan.json").read_text())
    assert plan["model"] == onnx_io.fingerprint(onnx_io.load(run / "model.onnx"))


def test_plan_file_can_be_trained(tmp_path: Path, model: Path) -> None:
    module = train.prepare(model, backend="tensorrt")
    module.observe(images(8))
    module.fix_ranges()
    plan_files.save_plan(module.to_plan(), tmp_path / "plan.json")
    again = train.prepare(model, tmp_path / "plan.json")
    assert again.backend == "tensorrt"
    torch.testing.assert_close(again(images(2)), module(images(2)))


def test_too_few_images_are_refused(model: Path) -> None:
    module = train.prepare(model)
    module.observe(images(7))
    with pytest.raises(UsageError, match="at least 8 images, and 7"):
        module.fix_ranges()


def test_ranges_are_fixed_once(model: Path) -> None:
    module = quantized(model)
    with pytest.raises(UsageError, match="fixed"):
        module.observe(images(8))


def test_module_without_a_plan_has_nothing_to_train(tmp_path: Path, model: Path) -> None:
    module = train.prepare(model)
    with pytest.raises(UsageError, match="no plan yet"):
        module.parameter_groups(lr=1.0)
    with pytest.raises(UsageError, match="no plan yet"):
        train.finish(module, tmp_path / "run")


@pytest.mark.parametrize(
    ("parameters", "value"),
    [("biases", np.nan), ("latent", np.nan), ("log_step", np.nan), ("log_step", 200.0)],
)
def test_diverged_training_is_not_written(
    tmp_path: Path, model: Path, parameters: str, value: float
) -> None:
    module = quantized(model)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameters in name:
                parameter.fill_(value)
    with pytest.raises(QConvertError, match="diverged"):
        train.finish(module, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folder_with_files_is_not_overwritten(tmp_path: Path, model: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        train.finish(quantized(model), tmp_path / "run")


def test_wrong_inputs_are_named(model: Path) -> None:
    module = train.prepare(model)
    with pytest.raises(TypeError, match="takes image; got 0 inputs and picture"):
        module(picture=images(1))


def test_module_without_inputs_and_backend_without_integers_are_refused(model: Path) -> None:
    with pytest.raises(UsageError, match="does not say what it takes"):
        train.prepare(classifier())
    with pytest.raises(UsageError, match="no INT8 graphs"):
        train.prepare(model, backend="cuda")

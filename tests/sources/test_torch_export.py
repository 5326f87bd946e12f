"""Networks and programs of usual signatures are exported correctly, or refused with a reason."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qconvert import sources
from qconvert.backends.ort import open_cpu
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, Terminated, UsageError
from qconvert.core.onnx_io import fingerprint
from qconvert.core.tensors import TensorSpec, parse_spec, random_inputs
from qconvert.sources import Source
from qconvert.sources.torch_export import from_module, unique_output_names
from qconvert.sources.torch_models import load_factory
from tests.models import write_factory

# torch's exporter uses deprecated features of Python and of torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

X = torch.zeros(2, 4)


def network(forward: Callable[..., Any]) -> torch.nn.Module:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

    Network.forward = forward
    return Network()


def export_module(forward: Callable[..., Any], *inputs: str, **export: Any) -> Source:
    specs = [parse_spec(text) for text in inputs]
    return from_module("net", network(forward), specs, ExportConfig(**export))


def export_program(
    forward: Callable[..., Any], arguments: tuple[Any, ...], **options: Any
) -> torch.export.ExportedProgram:
    return torch.export.export(network(forward), arguments, **options)


def save_and_load(program: torch.export.ExportedProgram, **export: Any) -> Source:
    torch.export.save(program, "net.pt2")
    return sources.load("net.pt2", ExportConfig(**export), trust=True)


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Source]:
    """Return a loader of the factories of `tests.models`, by their names."""
    monkeypatch.syspath_prepend(str(tmp_path))
    write_factory(tmp_path, "torch_nets")

    def run(name: str, **export: object) -> Source:
        return sources.load(f"torch_nets:{name}", ExportConfig(**export))  # type: ignore[arg-type]

    return run


def agrees(source: Source, batch: int = 3) -> bool:
    feeds = random_inputs(source.inputs, batch, seed=1)
    assert source.run is not None
    expected, actual = source.run(feeds), open_cpu(source.model)(feeds)
    assert list(expected) == list(actual)
    return all(np.allclose(expected[name], actual[name], atol=1e-5) for name in expected)


@pytest.mark.slow
def test_factory_exports_with_a_dynamic_batch_and_nodes_named_by_module(
    load: Callable[..., Source], capsys: pytest.CaptureFixture[str]
) -> None:
    source = load("build", inputs=("1x3x8x8",))
    assert source.name == "build"
    assert [str(spec) for spec in source.inputs] == ["input: float32[batch, 3, 8, 8]"]
    assert [value.name for value in source.model.graph.outputs] == ["output"]
    assert source.notes == ("ran the code of `torch_nets:build`",)
    assert agrees(source, 1)
    assert agrees(source, 3)
    names = [node.name for node in source.model.graph]
    assert {"/0/Conv", "/5/Gemm"} <= set(names)
    assert len(set(names)) == len(names)
    assert capsys.readouterr().out == ""


@pytest.mark.long
def test_factory_with_example_inputs_exports_the_same_each_time(
    load: Callable[..., Source], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = load("ready"), load("ready")
    assert first.inputs[0].shape == ("batch", 3, 8, 8)
    assert fingerprint(first.model) == fingerprint(second.model)
    fixed = load("ready", batch=4)
    assert fixed.inputs[0].shape == (4, 3, 8, 8)
    assert agrees(fixed, 4)
    load("chatty")
    assert capsys.readouterr().out == ""


@pytest.mark.long
@pytest.mark.parametrize(
    ("inputs", "names"),
    [(("1x5", "1x3"), "noise label"), (("label:1x3", "noise:1x5"), "noise label")],
)
def test_several_inputs_and_outputs_keep_their_names(
    load: Callable[..., Source], inputs: tuple[str, ...], names: str
) -> None:
    source = load("generator", inputs=inputs)
    assert [spec.name for spec in source.inputs] == names.split()
    assert [spec.shape for spec in source.inputs] == [("batch", 5), ("batch", 3)]
    assert [value.name for value in source.model.graph.outputs] == ["image", "features"]
    assert agrees(source, 2)


@pytest.mark.long
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("fixed_batch", "cannot be exported with a dynamic batch"),
        ("branching", "torch could not export this network"),
        ("number", "returned a int, not a torch.nn.Module"),
        ("build", "does not describe its inputs"),
    ],
)
def test_network_that_cannot_be_exported_says_why(
    load: Callable[..., Source], factory: str, message: str
) -> None:
    with pytest.raises(QConvertError, match=message) as caught:
        load(factory)
    assert caught.value.hint


@pytest.mark.long
@pytest.mark.parametrize(
    ("forward", "arguments", "keywords", "inputs"),
    [
        (lambda self, image, scale: self.linear(image) * scale, (X,), {"scale": X}, "image scale"),
        (lambda self, d: self.linear(d["a"]) + d["b"], ({"a": X, "b": X},), {}, "d_a d_b"),
        (lambda self, k, image: self.linear(image) * k, (3, X), {}, "image"),
        (lambda self, image, mask=None: self.linear(image), (X, None), {}, "image"),
    ],
)
def test_program_is_called_in_the_structure_it_was_exported_with(
    forward: Callable[..., Any], arguments: Any, keywords: dict[str, Any], inputs: str
) -> None:
    source = save_and_load(export_program(forward, arguments, kwargs=keywords))
    assert [spec.name for spec in source.inputs] == inputs.split()
    assert agrees(source)


@pytest.mark.slow
def test_program_of_one_batch_takes_no_other() -> None:
    program = export_program(lambda self, image: {"y": self.linear(image)}, (X,))
    program._example_inputs = None  # a program may lack them
    source = save_and_load(program, batch=2)
    assert source.inputs[0].shape == (2, 4)
    assert [value.name for value in source.model.graph.outputs] == ["y"]
    with pytest.raises(QConvertError, match="exported with a batch of 2"):
        save_and_load(program, batch="dynamic")
    assert agrees(source)


@pytest.mark.long
def test_open_sizes_of_a_program_are_filled_in() -> None:
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto},)
    program = export_program(
        lambda self, image: image.mean((2, 3)), (torch.zeros(2, 4, 9, 9),), dynamic_shapes=shapes
    )
    source = save_and_load(program, inputs=("image:1x4x7x5",))
    assert source.inputs[0].shape[1:] == (4, 7, 5)
    assert agrees(source)
    assert save_and_load(program, inputs=("image:1x4x7x5",), batch=5).inputs[0].shape[0] == 5
    with pytest.raises(UsageError, match="does not match"):
        save_and_load(program, inputs=("image:1x3x7x5",))


@pytest.mark.long
def test_program_with_inputs_that_onnx_runtime_lacks_is_refused() -> None:
    shapes: tuple[Any, ...] = ({}, torch.export.Dim.DYNAMIC)
    number = export_program(lambda self, image, n: image * n, (X, 5), dynamic_shapes=shapes)
    with pytest.raises(QConvertError, match="takes `n`, which is a number"):
        save_and_load(number)
    module = network(lambda self, image: self.linear(image)).bfloat16()
    with pytest.raises(UsageError, match="input `image` is bfloat16"):
        save_and_load(torch.export.export(module, (X.bfloat16(),)))


@pytest.mark.long
def test_first_input_may_be_a_scalar() -> None:
    image = parse_spec("image:1x4")
    scale = TensorSpec("scale", image.dtype, ())
    scaled = network(lambda self, scale, image: self.linear(image) * scale)
    source = from_module("net", scaled, [scale, image], ExportConfig())
    assert [spec.shape for spec in source.inputs] == [(), ("batch", 4)]
    assert agrees(source)


@pytest.mark.long
def test_output_named_like_an_input_is_renamed() -> None:
    source = export_module(lambda self, image: {"image": image * 2, "z": image + 1}, "image:1x4")
    assert [value.name for value in source.model.graph.outputs] == ["image_out", "z"]
    assert source.notes == (
        "output `image` is called `image_out`: names of tensors are unique in ONNX",
    )
    assert agrees(source)
    program = export_program(lambda self, image: {"image": self.linear(image)}, (X,))
    assert save_and_load(program).notes == source.notes


def test_output_names_are_unique() -> None:
    assert unique_output_names(("a", "a", "a_out"), ("x",)) == ("a", "a_out_2", "a_out")
    assert unique_output_names(("x", "x"), ("x", "x_out")) == ("x_out_2", "x_out_3")


def test_exit_inside_forward_is_an_error() -> None:
    with pytest.raises(QConvertError, match="raised SystemExit in its forward: 3") as caught:
        export_module(lambda self, image: sys.exit(3), "image:1x4")
    assert "sys.exit(3)" in caught.value.details[0]


def test_termination_inside_forward_passes_through() -> None:
    def forward(self: Any, image: torch.Tensor) -> torch.Tensor:
        raise Terminated

    with pytest.raises(Terminated):
        export_module(forward, "image:1x4")


def test_input_option_hint_appears_for_shape_errors_alone() -> None:
    def broken(self: Any, image: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such mode")

    with pytest.raises(QConvertError, match="raised ValueError in its forward: no such") as caught:
        export_module(broken, "image:1x4")
    assert "--input" not in caught.value.hint
    assert 'raise ValueError("no such mode")' in caught.value.details[0]
    with pytest.raises(UsageError, match="does not run on inputs of shape 2x5") as shaped:
        export_module(lambda self, image: self.linear(image), "image:1x5")
    assert "--input" in shaped.value.hint
    assert "test_torch_export.py" in shaped.value.details[0]


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ("(torch.zeros(1, 4), 3)", "an example input of `examples_{}:f` is of type int"),
        ("((torch.zeros(1, 4),) * 2,)", "is of type tuple, not a tensor"),
        ("{{'image': None}}", "example input `image` of .* is of type NoneType"),
        ("3", "the example inputs of .* are of type int"),
        ("torch.zeros(1, 4, dtype=torch.bfloat16)", "is bfloat16, which ONNX Runtime"),
    ],
)
def test_example_inputs_must_be_tensors(
    examples: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(".")
    name = f"examples_{abs(hash(examples))}"
    value = examples.replace("{{", "{").replace("}}", "}")
    Path(f"{name}.py").write_text(f"import torch\ndef f(): return torch.nn.Linear(4, 4), {value}\n")
    with pytest.raises(UsageError, match=message.replace("examples_{}", name)) as caught:
        load_factory(f"{name}:f", ExportConfig(), False)
    assert caught.value.hint


@pytest.mark.long
def test_pickled_network_of_the_users_own_takes_weights_with_trust(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own_net.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    def __init__(s): super().__init__(); s.l = torch.nn.Linear(4, 2)\n"
        "    def forward(s, image): return s.l(image)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import own_net  # type: ignore[import-not-found]

    torch.save(own_net.Net(), "net.pt")
    torch.save({"l.weight": torch.zeros(2, 4), "l.bias": torch.full((2,), 7.0)}, "other.pt")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path != str(tmp_path)])
    del sys.modules["own_net"]
    export = ExportConfig(inputs=("image:1x4",), weights="other.pt")
    with pytest.raises(QConvertError, match="would run code it contains"):
        sources.load("net.pt", export)
    source = sources.load("net.pt", export, trust=True)
    assert source.run is not None
    outputs = source.run(random_inputs(source.inputs, 1, seed=0))
    assert outputs["output"].tolist() == [[7.0, 7.0]]
    with pytest.raises(UsageError, match="contains its weights"):
        sources.load("net.pt", ExportConfig(inputs=("1x4",), weights="random"), trust=True)
    with pytest.raises(UsageError, match="does not describe its inputs"):
        sources.load("net.pt", ExportConfig(), trust=True)

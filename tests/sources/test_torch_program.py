"""Networks and programs of every usual signature: exported right, or refused in a sentence."""

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
from qconvert.core.tensors import TensorSpec, parse_spec, random_inputs
from qconvert.sources import Source
from qconvert.sources.torch_export import from_module
from qconvert.sources.torch_forward import unique_output_names
from qconvert.sources.torch_models import load_factory
from qconvert.sources.torch_weights import load_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

Tensor = torch.Tensor


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def network(forward: Callable[..., Any]) -> torch.nn.Module:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 4)

    Network.forward = forward
    return Network()


def exported(
    forward: Callable[..., Any], given: tuple[Any, ...], **options: Any
) -> torch.export.ExportedProgram:
    return torch.export.export(network(forward), given, **options)


def saved(program: torch.export.ExportedProgram, **export: Any) -> Source:
    torch.export.save(program, "net.pt2")
    return sources.load("net.pt2", ExportConfig(**export))


def module(forward: Callable[..., Any], *shapes: str, **export: Any) -> Source:
    return from_module(
        "net", network(forward), [parse_spec(each) for each in shapes], ExportConfig(**export)
    )


def agrees(source: Source, batch: int = 3) -> bool:
    feeds = random_inputs(source.inputs, batch, seed=1)
    assert source.run is not None
    wanted, got = source.run(feeds), open_cpu(source.model)(feeds)
    return all(np.allclose(wanted[name], got[name], atol=1e-5) for name in wanted)


X = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("forward", "given", "keywords", "inputs"),
    [
        (lambda self, image, scale: self.linear(image) * scale, (X,), {"scale": X}, "image scale"),
        (lambda self, d: self.linear(d["a"]) + d["b"], ({"a": X, "b": X},), {}, "d_a d_b"),
        (lambda self, k, image: self.linear(image) * k, (3, X), {}, "image"),
        (lambda self, image, mask=None: self.linear(image), (X, None), {}, "image"),
    ],
)
def test_a_program_is_called_in_the_structure_it_was_exported_with(
    forward: Callable[..., Any], given: Any, keywords: dict[str, Any], inputs: str
) -> None:
    source = saved(exported(forward, given, kwargs=keywords))
    assert [spec.name for spec in source.inputs] == inputs.split()
    assert agrees(source)


def test_a_program_needs_no_example_inputs() -> None:
    program = exported(lambda self, image: {"y": self.linear(image)}, (X,))
    program._example_inputs = None
    source = saved(program)
    assert [value.name for value in source.model.graph.outputs] == ["y"]
    assert agrees(source)


def test_a_program_that_takes_numbers_is_refused() -> None:
    shapes: tuple[Any, ...] = ({}, torch.export.Dim.DYNAMIC)
    program = exported(lambda self, image, n: image * n, (X, 5), dynamic_shapes=shapes)
    with pytest.raises(QConvertError, match="takes `n`, which is a number") as caught:
        saved(program)
    assert caught.value.hint


def test_bfloat16_inputs_are_refused() -> None:
    cast = network(lambda self, image: self.linear(image)).bfloat16()
    torch.export.save(torch.export.export(cast, (X.bfloat16(),)), "net.pt2")
    with pytest.raises(UsageError, match="input `image` is bfloat16"):
        sources.load("net.pt2", ExportConfig())


def test_a_program_of_one_batch_takes_no_other() -> None:
    program = exported(lambda self, image: self.linear(image), (X,))
    assert saved(program, batch=2).inputs[0].shape == (2, 4)
    with pytest.raises(QConvertError, match="exported with a batch of 2"):
        saved(program, batch=3)


def test_open_sizes_of_a_program_are_filled_in() -> None:
    auto = torch.export.Dim.AUTO
    shapes = ({0: auto, 2: auto, 3: auto},)
    program = exported(
        lambda self, image: image.mean((2, 3)), (torch.zeros(2, 4, 9, 9),), dynamic_shapes=shapes
    )
    source = saved(program, inputs=("image:1x4x7x5",))
    assert source.inputs[0].shape[1:] == (4, 7, 5)
    assert agrees(source)
    with pytest.raises(UsageError, match="does not fit"):
        saved(program, inputs=("image:1x3x7x5",))
    with pytest.raises(UsageError, match="brings its weights"):
        saved(program, weights="w.pt")


def test_a_first_input_may_be_a_number() -> None:
    image = parse_spec("image:1x4")
    scale = TensorSpec("scale", image.dtype, ())
    scaled = network(lambda self, scale, image: self.linear(image) * scale)
    source = from_module("net", scaled, [scale, image], ExportConfig())
    assert [spec.shape for spec in source.inputs] == [(), ("batch", 4)]
    assert agrees(source)
    alone = from_module("net", network(lambda self, scale: scale * 2), [scale], ExportConfig())
    assert agrees(alone)


def test_an_output_called_like_an_input_gets_another_name() -> None:
    source = module(lambda self, image: {"image": image * 2, "z": image + 1}, "image:1x4")
    assert [value.name for value in source.model.graph.outputs] == ["image_out", "z"]
    assert source.notes == ("output `image` is called `image_out`: ONNX has one tensor of a name",)
    assert agrees(source)
    program = exported(lambda self, image: {"image": self.linear(image)}, (X,))
    assert saved(program).notes == source.notes


def test_names_of_outputs_are_made_distinct() -> None:
    assert unique_output_names(("a", "a", "a_out"), ("x",)) == ("a", "a_out_2", "a_out")
    assert unique_output_names(("x", "x"), ("x", "x_out")) == ("x_out_2", "x_out_3")


def test_leaving_the_process_inside_forward_is_an_error() -> None:
    with pytest.raises(QConvertError, match="raised SystemExit in its forward: 3") as caught:
        module(lambda self, image: sys.exit(3), "image:1x4")
    assert "sys.exit(3)" in caught.value.details[0]


def test_a_request_to_end_the_process_passes_through() -> None:
    def forward(self: Any, image: Tensor) -> Tensor:
        raise Terminated

    with pytest.raises(Terminated):
        module(forward, "image:1x4")


def test_only_errors_of_shapes_hint_at_shapes() -> None:
    def broken(self: Any, image: Tensor) -> Tensor:
        raise ValueError("no such mode")

    with pytest.raises(QConvertError, match="raised ValueError in its forward: no such") as caught:
        module(broken, "image:1x4")
    assert "--input" not in str(caught.value.hint)
    assert 'raise ValueError("no such mode")' in caught.value.details[0]
    with pytest.raises(UsageError, match="does not run on inputs of shape 2x5") as shaped:
        module(lambda self, image: self.linear(image), "image:1x5")
    assert "--input" in str(shaped.value.hint)
    assert "test_torch_program.py" in shaped.value.details[0]


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ("(torch.zeros(1, 4), 3)", "an example input of `examples_{}:f` is of type int"),
        ("((torch.zeros(1, 4),) * 2,)", "is of type tuple, not a tensor"),
        ("{{'image': None}}", "example input `image` of .* is of type NoneType"),
        ("3", "the example inputs of .* are of type int"),
        ("torch.zeros(1, 4, dtype=torch.bfloat16)", "is bfloat16, which ONNX Runtime"),
    ],
)
def test_example_inputs_must_be_tensors(
    examples: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(".")
    name = f"examples_{abs(hash(examples))}"
    value = examples.replace("{{", "{").replace("}}", "}")
    Path(f"{name}.py").write_text(f"import torch\ndef f(): return torch.nn.Linear(4, 4), {value}\n")
    with pytest.raises(UsageError, match=said.replace("examples_{}", name)) as caught:
        load_factory(f"{name}:f", ExportConfig(), False)
    assert caught.value.hint


def test_a_pickled_network_of_the_users_own_takes_weights(
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
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(tmp_path)])
    del sys.modules["own_net"]
    export = ExportConfig(inputs=("image:1x4",), weights="other.pt")
    source = sources.load("net.pt", export, trust=True)
    assert source.run is not None
    assert source.run(random_inputs(source.inputs, 1, seed=0))["output"].tolist() == [[7.0, 7.0]]
    with pytest.raises(UsageError, match="brings its weights"):
        sources.load("net.pt", ExportConfig(inputs=("1x4",), weights="random"), trust=True)


def test_integers_are_no_weights_of_a_float_layer() -> None:
    layer = torch.nn.Linear(2, 2)
    state = layer.state_dict()
    torch.save({name: value.half() for name, value in state.items()}, "half.pt")
    load_weights(layer, "half.pt", trust=False)
    for kind, said in ((torch.int8, "int8"), (torch.float8_e4m3fn, "float8_e4m3fn")):
        torch.save({name: value.to(kind) for name, value in state.items()}, "other.pt")
        with pytest.raises(QConvertError, match="does not fit") as caught:
            load_weights(layer, "other.pt", trust=False)
        assert caught.value.details[0] == f"bias is {said}, not float32"

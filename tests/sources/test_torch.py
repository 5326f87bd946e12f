"""PyTorch sources: exported with meaningful names, a dynamic batch, and nothing said on stdout."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from qconvert import sources
from qconvert.backends.ort import open_cpu
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import random_inputs
from qconvert.sources import Source
from qconvert.sources.torch_weights import load_weights
from tests.models import write_factory

# torch's own exporter uses parts of Python and of itself that are on their way out.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

Load = Callable[..., Source]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return `sources.load` with the factories of `tests.models` in the working folder."""
    monkeypatch.syspath_prepend(str(tmp_path))
    write_factory(tmp_path, "torch_nets")

    def run(source: str, *, trust: bool = False, **export: object) -> Source:
        chosen = source.replace("nets:", "torch_nets:")
        return sources.load(chosen, ExportConfig(**export), trust=trust)  # type: ignore[arg-type]

    return run


def same(source: Source, batch: int) -> bool:
    feeds = random_inputs(source.inputs, batch, seed=1)
    assert source.run is not None
    wanted, got = source.run(feeds), open_cpu(source.model)(feeds)
    assert list(wanted) == list(got)
    return all(np.allclose(wanted[name], got[name], atol=1e-5) for name in wanted)


def test_a_factory_becomes_onnx_with_a_dynamic_batch(load: Load) -> None:
    source = load("nets:build", inputs=("1x3x8x8",))
    assert source.name == "build"
    assert [str(spec) for spec in source.inputs] == ["input: float32[batch, 3, 8, 8]"]
    assert [value.name for value in source.model.graph.outputs] == ["output"]
    assert same(source, 1)
    assert same(source, 3)
    assert source.notes == ("ran the code of `torch_nets:build`",)


def test_a_factory_may_bring_its_example_inputs(load: Load) -> None:
    assert load("nets:ready").inputs[0].shape == ("batch", 3, 8, 8)


def test_the_batch_can_be_fixed(load: Load) -> None:
    source = load("nets:ready", batch=4)
    assert source.inputs[0].shape == (4, 3, 8, 8)
    assert same(source, 4)


def test_several_inputs_and_outputs_keep_their_names(load: Load) -> None:
    source = load("nets:generator", inputs=("1x5", "1x3"))
    assert [str(spec) for spec in source.inputs] == [
        "noise: float32[batch, 5]",
        "label: float32[batch, 3]",
    ]
    assert [value.name for value in source.model.graph.outputs] == ["image", "features"]
    assert same(source, 2)


def test_inputs_may_be_given_in_any_order_by_name(load: Load) -> None:
    source = load("nets:generator", inputs=("label:1x3", "noise:1x5"))
    assert [spec.name for spec in source.inputs] == ["noise", "label"]
    assert same(source, 2)


def test_nodes_are_named_after_their_modules(load: Load) -> None:
    names = [node.name for node in load("nets:ready").model.graph]
    assert "/0/Conv" in names
    assert "/5/Gemm" in names
    assert len(set(names)) == len(names)


def test_the_same_source_gives_the_same_graph(load: Load) -> None:
    from qconvert.core.onnx_io import fingerprint

    assert fingerprint(load("nets:ready").model) == fingerprint(load("nets:ready").model)


def test_nothing_reaches_stdout(load: Load, capsys: pytest.CaptureFixture[str]) -> None:
    load("nets:chatty")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("nets:fixed_batch", "cannot be exported with a dynamic batch"),
        ("nets:branching", "torch could not export this network"),
        ("nets:number", "returned a int, not a torch.nn.Module"),
    ],
)
def test_what_cannot_be_exported_says_why(load: Load, factory: str, said: str) -> None:
    with pytest.raises(QConvertError, match=said) as caught:
        load(factory)
    assert caught.value.hint


def test_wrong_shapes_are_told_before_the_export(load: Load) -> None:
    with pytest.raises(UsageError, match="does not run on inputs of shape 2x1x8x8"):
        load("nets:build", inputs=("1x1x8x8",))
    with pytest.raises(UsageError, match="does not say what goes in"):
        load("nets:build")


def weights(load: Load) -> dict[str, torch.Tensor]:
    import torch_nets  # type: ignore[import-not-found]

    state: dict[str, torch.Tensor] = torch_nets.build().state_dict()
    return {
        name: value + 1 if value.is_floating_point() else value for name, value in state.items()
    }


def conv_of(source: Source) -> float:
    assert source.run is not None
    return float(source.run(random_inputs(source.inputs, 1, seed=0))["output"].sum())


def test_every_usual_form_of_checkpoint_gives_the_same_network(load: Load, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    load("nets:ready")
    state = weights(load)
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}, "epoch": 3}, "n.pth")
    answers = {
        conv_of(load("nets:ready", weights=name)) for name in ("w.safetensors", "w.pt", "n.pth")
    }
    assert len(answers) == 1
    assert answers != {conv_of(load("nets:ready"))}


def test_a_checkpoint_that_does_not_fit_names_what_does_not(load: Load, tmp_path: Path) -> None:
    load("nets:ready")
    state = weights(load)
    del state["5.weight"]
    state["extra.weight"] = torch.zeros(1)
    state["5.bias"] = torch.zeros(9)
    torch.save(state, "w.pt")
    with pytest.raises(QConvertError, match="does not fit this network") as caught:
        load("nets:ready", weights="w.pt")
    assert caught.value.details == (
        "missing: `5.weight`",
        "not in the network: `extra.weight`",
        "5.bias is (9,), not (5,)",
    )


class Payload:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("open('pwned', 'w').close()",))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(load: Load, tmp_path: Path) -> None:
    torch.save({"w": Payload()}, "torch.pt")
    Path("bare.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    for name in ("torch.pt", "bare.pt"):
        with pytest.raises(QConvertError, match="would run code it brings") as caught:
            load("nets:ready", weights=name)
        assert "--trust" in str(caught.value.hint)
    assert not Path("pwned").exists()


def test_a_pickled_module_is_read_only_with_trust(load: Load) -> None:
    load("nets:ready")
    import torch_nets

    torch.save(torch_nets.build(), "net.pt")
    with pytest.raises(QConvertError, match="would run code it brings"):
        load("net.pt", inputs=("1x3x8x8",))
    source = load("net.pt", inputs=("1x3x8x8",), trust=True)
    assert same(source, 2)
    with pytest.raises(UsageError, match="does not say what goes in"):
        load("net.pt", trust=True)


def test_broken_checkpoints_are_refused(load: Load, tmp_path: Path) -> None:
    load("nets:ready")
    torch.save(weights(load), "whole.pt")
    whole = Path("whole.pt").read_bytes()
    for name, content, said in (
        ("cut.pt", whole[: len(whole) // 2], "not a file torch can read"),
        ("text.pt", b"not a checkpoint at all", "not a file torch can read"),
        ("empty.pt", b"", "is empty"),
        ("bad.safetensors", b"12345678901234567890", "not a file torch can read"),
    ):
        Path(name).write_bytes(content)
        with pytest.raises(QConvertError, match=said):
            load("nets:ready", weights=name)
    torch.save([1, 2], "list.pt")
    with pytest.raises(QConvertError, match="holds no weights: a list"):
        load("nets:ready", weights="list.pt")
    with pytest.raises(UsageError, match="does not exist"):
        load("nets:ready", weights="none.pt")
    with pytest.raises(UsageError, match="holds weights, not a network"):
        load("whole.pt", inputs=("1x3x8x8",))


def test_loading_weights_needs_no_batch_counter() -> None:
    module = torch.nn.BatchNorm2d(3)
    state = module.state_dict()
    del state["num_batches_tracked"]
    torch.save(state, "bn.pt")
    load_weights(module, "bn.pt", trust=False)


def program(load: Load, path: str, *, dynamic: bool) -> None:
    load("nets:ready")
    import torch_nets

    shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    module, example = torch_nets.ready()
    exported = torch.export.export(
        module.eval(), (example.repeat(2, 1, 1, 1),), dynamic_shapes=shapes
    )
    torch.export.save(exported, path)


def test_an_exported_program_keeps_its_own_batch(load: Load) -> None:
    program(load, "open.pt2", dynamic=True)
    opened = load("open.pt2")
    assert isinstance(opened.inputs[0].shape[0], str)
    assert same(opened, 3)
    program(load, "fixed.pt2", dynamic=False)
    fixed = load("fixed.pt2")
    assert fixed.inputs[0].shape == (2, 3, 8, 8)
    assert same(fixed, 2)
    with pytest.raises(QConvertError, match="exported with a batch of 2"):
        load("fixed.pt2", batch="dynamic")
    assert load("open.pt2", batch=5).inputs[0].shape == (5, 3, 8, 8)


def test_files_that_are_no_programs_are_refused(load: Load) -> None:
    Path("text.pt2").write_text("no zip")
    with pytest.raises(QConvertError, match="not a file torch can read"):
        load("text.pt2")
    torch.save({"a": torch.zeros(1)}, "weights.pt2")
    with pytest.raises(QConvertError, match=r"not a torch\.export program"):
        load("weights.pt2")
    with pytest.raises(UsageError, match="does not exist"):
        load("none.pt2")


def test_a_program_with_a_pickled_object_needs_trust(load: Load) -> None:
    import shutil
    import zipfile

    program(load, "net.pt2", dynamic=False)
    shutil.copy("net.pt2", "evil.pt2")
    with zipfile.ZipFile("evil.pt2", "a") as archive:
        archive.writestr("net/data/constants/opaque_obj_0", pickle.dumps(Payload()))
    with pytest.raises(QConvertError, match="would run code it brings"):
        load("evil.pt2")
    assert not Path("pwned").exists()

"""Files written by torch run no code without trust."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert import sources
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.sources.torch_models import existing_file, load_weights, read_checkpoint

MARKER = "code_ran"


class Payload(dict[str, Any]):
    """A pickle that runs code when it is read."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, (f"open({MARKER!r}, 'w').close()",))


def test_exported_program_needs_trust() -> None:
    torch.save(Payload(), "net.pt2")
    with pytest.raises(QConvertError, match="reading it can run code") as caught:
        sources.load("net.pt2", ExportConfig())
    assert "--trust" in caught.value.hint
    assert not Path(MARKER).exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_file_other_than_program_is_rejected() -> None:
    Path("text.pt2").write_text("no zip")
    torch.save({"a": torch.zeros(1)}, "weights.pt2")
    for name in ("text.pt2", "weights.pt2"):
        with pytest.raises(QConvertError, match=r"not a torch\.export program"):
            sources.load(name, ExportConfig(), trust=True)
    with pytest.raises(UsageError, match="does not exist"):
        sources.load("none.pt2", ExportConfig(), trust=True)
    with pytest.raises(UsageError, match="contains its weights"):
        sources.load("text.pt2", ExportConfig(weights="w.pt"), trust=True)


@pytest.mark.parametrize("name", ["bomb.pt", "bomb.pth", "bomb.pt2"])
def test_file_that_unpacks_to_many_times_its_size_is_rejected(name: str) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(5_000_000)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))
    assert Path(name).stat().st_size < 100_000
    with pytest.raises(QConvertError, match=r"unpacks to 20 MB from 0\.0 MB"):
        existing_file(name)
    with pytest.raises(QConvertError, match=r"unpacks to 20 MB from 0\.0 MB"):
        sources.load(name, ExportConfig(inputs=("1x4",)), trust=True)


def test_pickle_with_code_is_refused_and_does_not_run() -> None:
    torch.save({"w": Payload()}, "torch.pt")
    Path("bare.pt").write_bytes(pickle.dumps(Payload(), protocol=2))
    for name in ("torch.pt", "bare.pt"):
        with pytest.raises(QConvertError, match="would run code it contains") as caught:
            read_checkpoint(Path(name), trust=False)
        assert "--trust" in caught.value.hint
        assert not Path(MARKER).exists()
    read_checkpoint(Path("torch.pt"), trust=True)
    assert Path(MARKER).exists()


def test_pickle_of_weights_alone_is_rejected_as_network() -> None:
    torch.save({"a": torch.zeros(1)}, "weights.pt")
    with pytest.raises(UsageError, match="holds weights, not a network"):
        sources.load("weights.pt", ExportConfig(inputs=("1x3x8x8",)))


def test_checkpoint_formats_load_the_same_weights() -> None:
    from safetensors.torch import save_file

    state = {"weight": torch.ones(2, 3), "bias": torch.full((2,), 7.0)}
    save_file(state, "w.safetensors")
    torch.save(state, "w.pt")
    nested = {f"module.{name}": value for name, value in state.items()}
    torch.save({"state_dict": nested, "epoch": 3}, "w.pth")
    for name in ("w.safetensors", "w.pt", "w.pth"):
        layer = torch.nn.Linear(3, 2)
        load_weights(layer, name, trust=False)
        assert layer.bias.tolist() == [7.0, 7.0]


def test_checkpoint_that_does_not_fit_lists_the_differences() -> None:
    state = {"bias": torch.zeros(9), "extra.weight": torch.zeros(1)}
    torch.save(state, "w.pt")
    with pytest.raises(QConvertError, match="does not fit this network") as caught:
        load_weights(torch.nn.Linear(3, 5), "w.pt", trust=False)
    assert caught.value.details == (
        "missing: `weight`",
        "not in the network: `extra.weight`",
        "bias is (9,), not (5,)",
    )


def test_broken_checkpoints_are_rejected() -> None:
    layer = torch.nn.Linear(64, 64)
    torch.save(layer.state_dict(), "whole.pt")
    whole = Path("whole.pt").read_bytes()
    for name, content, message in (
        ("cut.pt", whole[: len(whole) // 2], "not a file torch can read"),
        ("text.pt", b"not a checkpoint at all", "not a file torch can read"),
        ("empty.pt", b"", "is empty"),
        ("bad.safetensors", b"12345678901234567890", "not a file torch can read"),
    ):
        Path(name).write_bytes(content)
        with pytest.raises(QConvertError, match=message):
            load_weights(layer, name, trust=False)
    torch.save([1, 2], "list.pt")
    with pytest.raises(QConvertError, match="holds no weights: a list"):
        load_weights(layer, "list.pt", trust=False)
    with pytest.raises(UsageError, match="does not exist"):
        load_weights(layer, "none.pt", trust=False)


def test_missing_batch_counter_is_not_a_difference() -> None:
    module = torch.nn.BatchNorm2d(3)
    state = module.state_dict()
    del state["num_batches_tracked"]
    torch.save(state, "bn.pt")
    load_weights(module, "bn.pt", trust=False)


def test_integer_tensors_are_rejected_as_float_weights() -> None:
    layer = torch.nn.Linear(2, 2)
    state = layer.state_dict()
    torch.save({name: value.half() for name, value in state.items()}, "half.pt")
    load_weights(layer, "half.pt", trust=False)
    for dtype, name in ((torch.int8, "int8"), (torch.float8_e4m3fn, "float8_e4m3fn")):
        torch.save({key: value.to(dtype) for key, value in state.items()}, "other.pt")
        with pytest.raises(QConvertError, match="does not fit") as caught:
            load_weights(layer, "other.pt", trust=False)
        assert caught.value.details[0] == f"bias is {name}, not float32"

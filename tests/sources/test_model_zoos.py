"""Networks of timm and torchvision, by name.

torchvision's wheel for this torch registers its operators in a library that does not load beside
the CPU build, so the two schemas it needs are declared here first. The nets do not use them.
"""

from pathlib import Path

import pytest
import torch

from qconvert import sources
from qconvert.core.config import ExportConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import random_inputs
from qconvert.sources import Source

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module", autouse=True)
def _torchvision_operators() -> object:
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        library.define(schema)  # type: ignore[no-untyped-call]
    return library


def load(source: str, **export: object) -> Source:
    return sources.load(source, ExportConfig(**export))  # type: ignore[arg-type]


@pytest.mark.long
def test_timm_network_has_its_own_input_size_and_takes_a_checkpoint() -> None:
    import timm

    net = timm.create_model("test_vit", pretrained=False)
    torch.save(net.state_dict(), "w.pt")
    source = load("timm:test_vit", weights="w.pt")
    assert source.name == "test_vit"
    size = source.inputs[0].shape[2]
    assert source.inputs[0].shape == ("batch", 3, size, size)
    assert source.run is not None
    assert source.run(random_inputs(source.inputs, 2, seed=0))["output"].shape[0] == 2


@pytest.mark.long
def test_torchvision_network_has_its_own_input_size() -> None:
    source = load("torchvision:mobilenet_v3_small", weights="random")
    assert source.inputs[0].shape == ("batch", 3, 224, 224)


@pytest.mark.slow
def test_unknown_name_suggests_a_similar_one() -> None:
    with pytest.raises(UsageError, match="timm has no model `test_vitt`; did you mean `test_vit`"):
        load("timm:test_vitt", weights="random")
    with pytest.raises(UsageError, match="torchvision has no model `resnet19`; did you mean"):
        load("torchvision:resnet19", weights="random")


@pytest.mark.slow
def test_weights_that_cannot_be_downloaded_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        QConvertError, match="cannot download the weights of `timm:test_vit`"
    ) as caught:
        load("timm:test_vit")
    assert "--weights random" in str(caught.value.hint)

"""timm's networks with random weights on small images, some of them shallower than usual.

`benchmarks.zoo.timm_nets:NAME` is the function that makes one.
"""

import contextlib
import io
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.zoo.entry import Entry, Input
from tests.zoo import SWIN, import_torchvision, settled_on

SIDE = 64
# For each network the side of its images, and the options of its factory.
NETS: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (SIDE, {}),
    "seresnet50": (SIDE, {"base_width": 16}),
    "resnext26ts": (SIDE, {}),
    "regnetx_002": (SIDE, {}),
    "regnety_002": (SIDE, {}),
    "mobilenetv2_050": (SIDE, {}),
    "mobilenetv3_small_100": (SIDE, {}),
    "mobilenetv4_conv_small": (SIDE, {}),
    "efficientnet_b0": (SIDE, {}),
    "efficientnet_lite0": (SIDE, {}),
    "mixnet_s": (SIDE, {}),
    "ghostnet_100": (SIDE, {}),
    "lcnet_050": (SIDE, {}),
    "densenet121": (SIDE, {"block_config": (3, 4, 4, 3)}),
    "dla46_c": (SIDE, {}),
    "repvgg_a0": (SIDE, {}),
    "eca_nfnet_l0": (SIDE, {}),
    "convnext_atto": (SIDE, {"depths": (1, 1, 2, 1)}),
    "convmixer_1024_20_ks9_p14": (SIDE, {}),
    "poolformer_s12": (SIDE, {}),
    "vit_tiny_patch16_224": (SIDE, {"img_size": SIDE, "depth": 3}),
    "eva02_tiny_patch14_224": (56, {"img_size": 56, "depth": 3}),
    "swin_tiny_patch4_window7_224": (48, SWIN),
    "xcit_nano_12_p16_224": (SIDE, {"img_size": SIDE, "depth": 3}),
    "mobilevit_xxs": (SIDE, {}),
    "efficientvit_b0": (SIDE, {}),
    "edgenext_xx_small": (SIDE, {}),
    "fastvit_t8": (SIDE, {}),
    "pvt_v2_b0": (SIDE, {}),
    "coat_lite_tiny": (SIDE, {"img_size": SIDE}),
    "sequencer2d_s": (SIDE, {"img_size": SIDE, "layers": (1, 1, 1, 1)}),
    "repvit_m0_9": (SIDE, {}),
    "starnet_s1": (SIDE, {}),
}


def entries() -> dict[str, Entry]:
    """Return all of them by name."""
    return {name: _entry(name) for name in NETS}


def _entry(name: str) -> Entry:
    return Entry("timm", f"{__name__}:{name}", (_image(name),))


def _image(name: str) -> Input:
    side = NETS[name][0]
    return Input("image", (1, 3, side, side))


def __getattr__(name: str) -> Callable[[], torch.nn.Module]:
    """Return the function that makes a network, for `benchmarks.zoo.timm_nets:NAME`."""
    if name not in NETS:
        raise AttributeError(name)
    return lambda: _build(name)


def _build(name: str) -> torch.nn.Module:
    import_torchvision()
    import timm

    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()):
        module = timm.create_model(name, pretrained=False, **NETS[name][1])
    for weight in module.parameters():
        if weight.ndim > 1 and not weight.any():  # heads that start at zero
            torch.nn.init.normal_(weight, std=0.02)
    return settled_on(
        module, [[torch.from_numpy(_image(name).rows(16, seed))] for seed in range(2)]
    )

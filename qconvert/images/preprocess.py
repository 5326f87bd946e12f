"""Turn decoded images into network inputs; one frozen value describes how, in every artefact."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray
from PIL import Image

from qconvert.core.config import ResizeRule, StrictTable
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.tensors import Tensors, TensorSpec

_USE_ARRAYS = "give arrays instead: an .npz file with one array per input, first axis = images"
_FOLLOW_MODEL = "leave `--resize` and `--crop` out, and they follow the model"


Layout = Literal["nchw", "nhwc"]

# Inputs of two numbers for each picture that exports of detectors have beside it, and their order.
SIZE_INPUTS: dict[str, Literal["wh", "hw", "ones"]] = {
    "orig_target_sizes": "wh",  # RT-DETR, D-FINE
    "target_sizes": "hw",
    "image_size": "hw",
    "image_shape": "hw",
    "im_shape": "hw",  # PaddleDetection, with the next
    "scale_factor": "ones",
}


@dataclass(frozen=True)
class SizeInput:
    """An input that takes the size of each picture; it is fed that of the network's input.

    So boxes come out in pixels of the input, from where `Frame` takes them to the picture.
    """

    name: str
    dtype: np.dtype[Any]

    def rows(self, count: int, width: int, height: int) -> NDArray[Any]:
        """Return what so many pictures are fed."""
        values = {"wh": (width, height), "hw": (height, width), "ones": (1, 1)}
        return np.tile(np.array(values[SIZE_INPUTS[self.name]], self.dtype), (count, 1))


@dataclass(frozen=True)
class ImageInput:
    """The input that takes images, and those for their size; an open height or width is None."""

    name: str
    dtype: np.dtype[Any]
    layout: Layout
    channels: int
    height: int | None
    width: int | None
    sizes: tuple[SizeInput, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the inputs for the size of images are fed, where there are any."""
        if not self.sizes:
            return ()
        names = ", ".join(f"`{entry.name}`" for entry in self.sizes)
        return (
            f"{names}: fed the size of the network's input, {self.width}×{self.height}, so boxes are "
            "read in pixels of it",
        )

    def feeds(self, items: Sequence[NDArray[Any]]) -> Tensors:
        """Return the inputs of a batch of prepared images."""
        arrays = {self.name: np.stack(items)}
        size = self.width or 0, self.height or 0
        return arrays | {entry.name: entry.rows(len(items), *size) for entry in self.sizes}


def image_layout(shape: Sequence[int | str]) -> Layout | None:
    """Return the order of the axes of images of 1 or 3 channels, None for another shape."""
    if len(shape) != 4:
        return None
    return "nchw" if shape[1] in (1, 3) else "nhwc" if shape[3] in (1, 3) else None


def find_image_input(specs: Sequence[TensorSpec]) -> ImageInput:
    """Return the one input as an input of images, or say why it cannot be.

    Inputs for the size of the images may be beside it (`SIZE_INPUTS`).
    """
    others = [spec for spec in specs if not _takes_size(spec)]
    if len(others) != 1:
        names = ", ".join(f"`{spec.name}`" for spec in specs)
        raise UsageError(
            f"images feed one input; the model has {len(specs)}: {names}",
            details=[f"sizes of images feed [N, 2], named one of {', '.join(SIZE_INPUTS)}"],
            hint=_USE_ARRAYS,
        )
    spec = others[0]
    sizes = tuple(SizeInput(size.name, size.dtype) for size in specs if size is not spec)
    if spec.dtype.name not in ("float32", "float16", "uint8"):
        raise UsageError(
            f"images feed float32, float16 or uint8; the model's input is `{spec}`",
            hint=_USE_ARRAYS,
        )
    if (layout := image_layout(spec.shape)) is not None:
        axes = (1, 2, 3) if layout == "nchw" else (3, 1, 2)
        sides = [size if isinstance(size := spec.shape[axis], int) else None for axis in axes]
        image = (spec.name, spec.dtype, layout, sides[0] or 0, sides[1], sides[2])
        return ImageInput(*image, sizes)
    raise UsageError(
        f"images feed an input of 1 or 3 channels, NCHW or NHWC; the model's input is `{spec}`",
        hint=_USE_ARRAYS,
    )


def _takes_size(spec: TensorSpec) -> bool:
    fits = len(spec.shape) == 2 and spec.shape[1] == 2
    return fits and spec.name in SIZE_INPUTS and spec.dtype.kind in "iuf"


Interpolation = Literal["bilinear", "bicubic", "box"]
Resize = int | tuple[int, int] | ResizeRule
Crop = int | Literal["fit", "none"]
# What the detectors of YOLO's family were trained with.
LETTERBOX_LEVEL = 114


@dataclass(frozen=True)
class Preprocess(StrictTable):
    """Resize, centre crop, divide by `divisor`, subtract `mean`, divide by `std`, in this order.

    `resize` is the length of the shorter side, or an exact (width, height); `crop` is the side of a
    square. Left at `fit` they follow the model's input: the crop is the input's size and covers
    `crop_share` of the resized image's shorter side. A `letterbox`, of the model's size or its own,
    holds the whole image in its middle; the rest is gray, `LETTERBOX_LEVEL`. `mean` and `std` hold one number, or one per
    channel in the order in which the model takes the channels.
    """

    resize: Resize = "fit"
    crop: Crop = "fit"
    crop_share: float = 0.875
    interpolation: Interpolation = "bilinear"
    divisor: float = 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    colours: Literal["rgb", "bgr", "gray"] = "rgb"

    def __post_init__(self) -> None:
        sizes = self.resize if isinstance(self.resize, tuple) else (self.resize,)
        if any(isinstance(size, int) and size < 1 for size in (*sizes, self.crop)):
            raise ValueError(f"sizes start at 1, got resize {self.resize} and crop {self.crop}")
        smallest = min((size for size in sizes if isinstance(size, int)), default=math.inf)
        if isinstance(self.crop, int) and smallest < self.crop:
            raise ValueError(f"a crop of {self.crop} does not fit into resize {self.resize}")
        if self.letterbox and isinstance(self.crop, int):
            raise ValueError(f"a letterbox is not cropped, got a crop of {self.crop}")
        if not 0 < self.crop_share <= 1:
            raise ValueError(f"a crop share must be between 0 and 1, got {self.crop_share}")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, 3) or not all(math.isfinite(number) for number in numbers):
                raise ValueError(f"{name} is 1 or 3 finite numbers, got {list(numbers)}")
        if not (math.isfinite(self.divisor) and self.divisor > 0 and min(self.std) > 0):
            raise ValueError("divisor and std are above 0")

    @property
    def letterbox(self) -> bool:
        """Whether the whole image is kept, with a gray border."""
        return isinstance(self.resize, str) and self.resize.startswith("letterbox")

    @property
    def exact_size(self) -> tuple[int, int] | None:
        """The (width, height) that `resize` names, if it does."""
        if isinstance(self.resize, str) and self.letterbox and ":" in self.resize:
            width, height = map(int, self.resize.partition(":")[2].split("x"))
            return width, height
        return self.resize if isinstance(self.resize, tuple) else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as TOML and JSON hold them."""
        return dict(_ADAPTER.dump_python(self, mode="json", by_alias=True))

    @classmethod
    def from_dict(cls, settings: Mapping[str, object]) -> "Preprocess":
        """Read what `to_dict` wrote, or a user did; a setting left out keeps its default."""
        try:
            return _ADAPTER.validate_python(dict(settings))
        except pydantic.ValidationError as error:
            # One line per setting: one of several allowed types is refused once for each type.
            problems = {}
            for problem in error.errors():
                key = f"{problem['loc'][0]}: " if problem["loc"] else ""
                problems[key] = key + problem["msg"].removeprefix("Value error, ")
            raise UsageError(
                "invalid preprocessing settings",
                details=list(problems.values()),
                hint="settings: " + ", ".join(f"`{name}`" for name in cls().to_dict()),
            ) from None


_ADAPTER = pydantic.TypeAdapter(Preprocess)

PRESETS: dict[str, Preprocess] = {
    "imagenet": Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    "inception": Preprocess(mean=(0.5,), std=(0.5,)),
    "clip": Preprocess(
        interpolation="bicubic",
        crop_share=1.0,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
    ),
    "unit": Preprocess(),
    "raw": Preprocess(divisor=1.0),
}


def fit_to_input(preprocess: Preprocess, image_input: ImageInput) -> tuple[Preprocess, ImageInput]:
    """Return both with every size and value resolved."""
    resize, crop = preprocess.resize, preprocess.crop
    width, height = image_input.width, image_input.height
    if preprocess.letterbox:
        crop = "none"
        if resize == "letterbox" and width is not None and height is not None:
            resize = f"letterbox:{width}x{height}"
    elif crop == "fit":
        square = width is not None and width == height and resize != (width, height)
        crop = width if width is not None and square else "none"
    if resize == "fit" and isinstance(crop, int):
        resize = round(crop / preprocess.crop_share)
    elif resize == "fit" and width is not None and height is not None:
        resize = (width, height)
    try:
        preprocess = replace(preprocess, resize=resize, crop=crop)
    except ValueError as error:
        raise UsageError(str(error), hint="give a larger `--resize`, or leave it out") from None
    size = (crop, crop) if isinstance(crop, int) else preprocess.exact_size
    if size is not None:
        if size != (width or size[0], height or size[1]):
            raise UsageError(
                f"preprocessing makes {size[0]}×{size[1]} images; "
                f"the model takes {width or '?'}×{height or '?'}",
                hint=_FOLLOW_MODEL,
            )
        image_input = replace(image_input, width=size[0], height=size[1])
    elif width is None or height is None:
        raise UsageError(
            f"the height and width of input `{image_input.name}` are unknown",
            hint="give them with `--crop 224`, `--resize 320x224`, `--resize letterbox:640` or "
            "`--input NAME:SHAPE`",
        )
    if image_input.channels == 1:
        preprocess = replace(preprocess, colours="gray")
    elif preprocess.colours == "gray":
        raise UsageError(
            f"the model takes {image_input.channels} colours, the preprocessing makes gray",
            hint="leave `preprocess.colours` out, and it follows the model",
        )
    if image_input.dtype.kind == "u":
        preprocess = replace(preprocess, divisor=1.0, mean=(0.0,), std=(1.0,))
    elif max(len(preprocess.mean), len(preprocess.std)) > image_input.channels:
        raise UsageError(
            f"mean and std are given for 3 channels; input `{image_input.name}` has "
            f"{image_input.channels}",
            hint="give one number each, as in `--mean 0.5 --std 0.5`",
        )
    return preprocess, image_input


ImageConverter = Callable[[Image.Image, str], NDArray[Any]]


def make_converter(preprocess: Preprocess, image_input: ImageInput) -> ImageConverter:
    """Return the function from an image and its name to one item, for what `fit_to_input` returns."""
    # What each of the 256 pixel values becomes, channel by channel. The steps and their float32
    # roundings are torchvision's, so the values are too, bit for bit.
    levels = np.arange(256, dtype=np.float32) / np.float32(preprocess.divisor)
    mean = np.broadcast_to(np.array(preprocess.mean, np.float32), image_input.channels)
    std = np.broadcast_to(np.array(preprocess.std, np.float32), image_input.channels)
    tables = ((levels - mean[:, None]) / std[:, None]).astype(image_input.dtype)
    width, height = image_input.width or 0, image_input.height or 0
    uncropped = preprocess.crop == "none"
    method = Image.Resampling[preprocess.interpolation.upper()]
    order = range(image_input.channels)[:: -1 if preprocess.colours == "bgr" else 1]

    def convert(image: Image.Image, name: str) -> NDArray[Any]:
        if preprocess.letterbox:
            return normalize(_letterbox(image, (width, height), method))
        scaled = resized_size(image.size, preprocess.resize)
        # Checked before any pixel is made: a strip of 9000×1 would become a very long one.
        if scaled[0] < width or scaled[1] < height or (uncropped and scaled != (width, height)):
            resized = "" if scaled == image.size else f", {scaled[0]}×{scaled[1]} resized"
            raise QConvertError(
                f"`{name}` is {image.width}×{image.height}{resized}; "
                f"the model takes {width}×{height}",
                hint=_FOLLOW_MODEL,
            )
        return normalize(_resize_and_crop(image, scaled, (width, height), method))

    def normalize(image: Image.Image) -> NDArray[Any]:
        pixels = np.asarray(image).reshape(height, width, image_input.channels)
        item = np.empty((image_input.channels, height, width), image_input.dtype)
        for channel, source in enumerate(order):
            np.take(tables[channel], pixels[:, :, source], out=item[channel], mode="clip")
        return item if image_input.layout == "nchw" else item.transpose(1, 2, 0)

    return convert


def resized_size(size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """Return the (width, height) to which an image is resized before it is cropped."""
    if isinstance(resize, tuple):
        return resize
    if isinstance(resize, str):
        return size
    width, height = size
    long = int(resize * max(size) / min(size))
    return (resize, long) if width <= height else (long, resize)


def crop_corner(scaled: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """Return the left and top of the centre crop of a resized image."""
    return round((scaled[0] - size[0]) / 2), round((scaled[1] - size[1]) / 2)


@dataclass(frozen=True)
class LetterboxArea:
    """Where the image lies in its letterbox."""

    left: int
    top: int
    width: int
    height: int


def letterbox_area(image: tuple[int, int], size: tuple[int, int]) -> LetterboxArea:
    """Return where an image of a (width, height) lies in a letterbox of this size."""
    scale = min(size[0] / image[0], size[1] / image[1])
    width, height = (max(1, round(side * scale)) for side in image)
    return LetterboxArea((size[0] - width) // 2, (size[1] - height) // 2, width, height)


def _letterbox(image: Image.Image, size: tuple[int, int], method: Image.Resampling) -> Image.Image:
    area = letterbox_area(image.size, size)
    boxed = Image.new(image.mode, size, (LETTERBOX_LEVEL,) * len(image.getbands()))
    boxed.paste(image.resize((area.width, area.height), method), (area.left, area.top))
    return boxed


def _resize_and_crop(
    image: Image.Image, scaled: tuple[int, int], size: tuple[int, int], method: Image.Resampling
) -> Image.Image:
    """Resize to `scaled` with antialiasing and cut `size` out of its centre, as torchvision does.

    Only the crop is computed, which decodes a quarter more images per second. Pillow holds its
    corners in float32 and may swap its two passes: over 100 ImageNet images, 2 % of the values
    differ from those of a full resize by one of 255 levels, and the mean difference is 0.02.
    """
    left, top = crop_corner(scaled, size)
    if scaled == image.size:
        return image.crop((left, top, left + size[0], top + size[1]))
    across, down = image.width / scaled[0], image.height / scaled[1]
    right = min((left + size[0]) * across, image.width)
    bottom = min((top + size[1]) * down, image.height)
    return image.resize(size, method, box=(left * across, top * down, right, bottom))

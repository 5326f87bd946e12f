"""What is done to a picture before a network sees it: one frozen value, kept in all artefacts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import pydantic

from qconvert.config_backends import Strict
from qconvert.errors import UsageError
from qconvert.images.target import Target

Interpolation = Literal["bilinear", "bicubic", "box"]
Resize = int | tuple[int, int] | Literal["fit", "none"]
Crop = int | Literal["fit", "none"]


@dataclass(frozen=True)
class Preprocess(Strict):
    """Resize, centre crop, divide by `divisor`, subtract `mean`, divide by `std`, in this order.

    `resize` is the length of the shorter side, or an exact (width, height); `crop` is the side of a
    square. Left at `fit` they follow the model's input: the crop is the input's size and covers
    `crop_share` of the resized picture's shorter side. `mean` and `std` hold one number, or one per
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
        if not 0 < self.crop_share <= 1:
            raise ValueError(f"a crop share lies between 0 and 1, got {self.crop_share}")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, 3) or not all(math.isfinite(number) for number in numbers):
                raise ValueError(f"{name} is 1 or 3 finite numbers, got {list(numbers)}")
        if not (math.isfinite(self.divisor) and self.divisor > 0 and min(self.std) > 0):
            raise ValueError("divisor and std are above 0")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, as TOML and JSON hold them."""
        plain: dict[str, Any] = _ADAPTER.dump_python(self, mode="json", by_alias=True)
        return plain

    @classmethod
    def from_dict(cls, given: Mapping[str, object]) -> "Preprocess":
        """Read what `to_dict` wrote, or a user did; what is left out keeps its default."""
        try:
            return _ADAPTER.validate_python(dict(given))
        except pydantic.ValidationError as error:
            raise UsageError(
                "these are no preprocessing settings",
                details=_wrong(error),
                hint="settings: " + ", ".join(f"`{name}`" for name in cls().to_dict()),
            ) from None


def _wrong(error: pydantic.ValidationError) -> list[str]:
    """Return a line per setting; one that may take several forms is refused once for each."""
    lines = {}
    for each in error.errors():
        key = f"{each['loc'][0]}: " if each["loc"] else ""
        lines[key] = key + each["msg"].removeprefix("Value error, ")
    return list(lines.values())


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


def fit(preprocess: Preprocess, target: Target) -> tuple[Preprocess, Target]:
    """Return both with every size settled and every value as it will be used."""
    sized = _sized(preprocess, target)
    made = (sized.crop, sized.crop) if isinstance(sized.crop, int) else sized.resize
    if isinstance(made, tuple):
        if made[0] != (target.width or made[0]) or made[1] != (target.height or made[1]):
            raise UsageError(
                f"preprocessing makes {made[0]}×{made[1]} pictures; "
                f"the model takes {target.width or '?'}×{target.height or '?'}",
                hint="leave `--resize` and `--crop` out, and they follow the model",
            )
        target = replace(target, width=made[0], height=made[1])
    elif target.width is None or target.height is None:
        raise _unknown_size(target)
    return _valued(sized, target), target


def _sized(given: Preprocess, target: Target) -> Preprocess:
    resize, crop = given.resize, given.crop
    exact = None
    if target.width is not None and target.height is not None:
        exact = (target.width, target.height)
    if crop == "fit":
        square = exact is not None and exact[0] == exact[1] and resize != exact
        crop = exact[0] if exact is not None and square else "none"
    if resize == "fit" and isinstance(crop, int):
        resize = round(crop / given.crop_share)
    elif resize == "fit":
        if exact is None:
            raise _unknown_size(target)
        resize = exact
    try:
        return replace(given, resize=resize, crop=crop)
    except ValueError as error:
        raise UsageError(str(error), hint="a larger `--resize`, or none at all") from None


def _valued(given: Preprocess, target: Target) -> Preprocess:
    if target.channels == 1:
        given = replace(given, colours="gray")
    elif given.colours == "gray":
        raise UsageError(
            f"the model takes {target.channels} colours, the preprocessing makes gray",
            hint="leave `preprocess.colours` out, and it follows the model",
        )
    if target.dtype.kind == "u":
        return replace(given, divisor=1.0, mean=(0.0,), std=(1.0,))
    if max(len(given.mean), len(given.std)) > target.channels:
        raise UsageError(
            f"mean and std are given for 3 channels; input `{target.name}` has {target.channels}",
            hint="give one number each, as in `--mean 0.5 --std 0.5`",
        )
    return given


def _unknown_size(target: Target) -> UsageError:
    return UsageError(
        f"the height and width of input `{target.name}` are not known",
        hint="say them with `--crop 224`, `--resize 320x224` or `--input NAME:SHAPE`",
    )

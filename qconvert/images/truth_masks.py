"""Masks: PNG files whose pixels are the numbers of classes, 255 where no class counts."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qconvert.core.errors import QConvertError, UsageError
from qconvert.images.image_files import BrokenImage, open_header, read_image_bytes, upright_size
from qconvert.images.listing import abbreviate
from qconvert.images.truth import IGNORED_PIXEL, TrueMask
from qconvert.images.truth_boxes import Size

_FORMAT = (
    "a mask is an 8-bit PNG with one channel or a palette, whose values are the numbers of classes "
    f"from 0; {IGNORED_PIXEL} is ignored"
)
# Gray and palette; the numbers of a palette's colours are the classes.
_MODES = ("L", "P", "1")
# So many masks are read at once, to notice values that no class can have.
_SAMPLE = 8


def true_masks(
    source: str, root: Path, names: Sequence[str], files: Mapping[int, Path]
) -> list[TrueMask | None]:
    """Return the mask of each picture that has a file, of which only the header has been read."""
    problems = []
    masks: list[TrueMask | None] = [None] * len(names)
    for index, file in files.items():
        size = upright_size(root / names[index])
        if size is not None and (problem := _problem_of_header(file, size)):
            problems.append(f"`{file.name}` {problem}")
        masks[index] = TrueMask(file)
    if problems:
        raise UsageError(
            f"`{source}` has {len(problems)} masks that do not fit their pictures",
            details=abbreviate(problems),
            hint=_FORMAT,
        )
    sample = islice(filter(None, masks), _SAMPLE)
    values = {int(value) for mask in sample for value in np.unique(read_mask(mask))}
    if values == {0, IGNORED_PIXEL}:
        raise UsageError(
            f"the masks of `{source}` hold only 0 and {IGNORED_PIXEL}, and {IGNORED_PIXEL} is "
            "ignored: nothing would be compared but class 0",
            hint="write 1 for the object instead of 255",
        )
    return masks


def read_mask(
    mask: TrueMask, size: Size | None = None, classes: int | None = None
) -> NDArray[np.uint8]:
    """Return the class numbers [height, width] of a mask.

    It must have the (width, height) of the picture, and numbers below `classes` or 255, where they
    are named.
    """
    try:
        image = open_header(read_image_bytes(mask.file))
        if image.mode not in _MODES:
            raise BrokenImage(f"its mode is {image.mode}")
        pixels = np.array(image, np.uint8)
    except (BrokenImage, OSError, ValueError, SyntaxError) as error:
        raise QConvertError(f"`{mask.file}` is not a mask: {error}", hint=_FORMAT) from None
    if size is not None and pixels.shape != (size[1], size[0]):
        height, width = pixels.shape
        raise QConvertError(
            f"`{mask.file}` is {width}×{height}, its picture {size[0]}×{size[1]}", hint=_FORMAT
        )
    if (
        classes is not None
        and (unknown := pixels[(pixels >= classes) & (pixels != IGNORED_PIXEL)]).size
    ):
        numbers = [str(number) for number in np.unique(unknown).tolist()]
        raise QConvertError(
            f"`{mask.file}` has {unknown.size} pixels of classes that are not among the {classes}: "
            f"{', '.join(abbreviate(numbers))}",
            hint=_FORMAT,
        )
    return pixels


def _problem_of_header(file: Path, size: Size) -> str:
    try:
        image = open_header(read_image_bytes(file))
    except BrokenImage as error:
        return f"cannot be read: {error}"
    if image.mode not in _MODES:
        return f"has the mode {image.mode}"
    if image.size != size:
        return f"is {image.width}×{image.height}, its picture {size[0]}×{size[1]}"
    return ""

"""Small copies of the evaluation images that a report speaks of."""

import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from qconvert.images.decode import BrokenImage, decode
from qconvert.images.listing import SUFFIXES
from qconvert.images.reading import USUAL, content
from qconvert.report.evidence import Thumbnail

CHANGED = "analysis/changed"
SIDE, QUALITY = 112, 80


def thumbnails(root: Path, names: Iterable[str]) -> Mapping[Thumbnail, bytes]:
    """Return a thumbnail of each picture and its JPEG; rows of arrays have none."""
    found: dict[Thumbnail, bytes] = {}
    for number, name in enumerate(dict.fromkeys(names)):
        file = root / name
        if not name.lower().endswith(SUFFIXES):
            continue
        try:
            picture = decode(content(file, USUAL.max_pixels), "RGB", USUAL.max_pixels)
        except BrokenImage:  # it was read before; a report without this picture says the same
            continue
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=QUALITY)
        found[Thumbnail(name, f"{CHANGED}/{number:02}.jpg")] = data.getvalue()
    return found

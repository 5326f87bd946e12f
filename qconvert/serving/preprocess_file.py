"""What is done to a picture, as TOML that a program reads and as words that people do."""

from pathlib import Path

from qconvert import config_file
from qconvert.report.card import steps
from qconvert.report.markdown import text
from qconvert.serving.shipment import Pictures, Shipment

FILE = "preprocess.toml"
HEAD = """\
# What is done to a picture before the model sees it, in this order: turned upright as its EXIF
# says, made 8 bits a channel in `colours`, resized, cut from the centre to `width` and `height`,
# divided by `divisor`, minus `mean`, divided by `std`. `resize` is the shorter side, or [width,
# height]; the filter is antialiased.
"""


def write(shipment: Shipment, folder: Path) -> None:
    """Write the file."""
    assert shipment.pictures is not None
    done, target = shipment.pictures.preprocess.to_dict(), shipment.pictures.target
    told = {
        "input": target.name,
        "type": target.dtype.name,
        "layout": target.layout,
        "width": target.width,
        "height": target.height,
        **{key: value for key, value in done.items() if key != "crop-share"},
    }
    lines = "".join(f"{key} = {config_file.one_line(value)}\n" for key, value in told.items())
    (folder / FILE).write_text(HEAD + lines, encoding="utf-8")


def told(pictures: Pictures) -> str:
    """Return it in a sentence."""
    words = steps(pictures.preprocess)
    layout = pictures.target.layout.upper()
    return (
        text(f"Pictures become `{pictures.target.name}` thus: {words}, {layout} (`{FILE}`).") + "\n"
    )

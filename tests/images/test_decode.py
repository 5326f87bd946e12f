import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qconvert.images.decode import BrokenImage, PixelMode, decode_image
from tests.images.drawn import RED, noise

PLENTY = 10**9


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def read(
    image: Image.Image, kind: str = "PNG", mode: PixelMode = "RGB", **options: Any
) -> Image.Image:
    return decode_image(stored(image, kind, **options), mode, PLENTY)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_every_format_is_read(kind: str) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    seen = read(Image.new("RGB", (8, 6), RED), kind, **options)
    assert (seen.mode, seen.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(seen).astype(int) - RED).max() <= 1


@pytest.mark.parametrize(
    ("mode", "colour", "rgb"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 100, (100, 100, 100)),
        ("LA", (100, 0), (100, 100, 100)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
    ],
)
def test_gray_and_alpha_become_rgb_without_blending(
    mode: str, colour: Any, rgb: tuple[int, int, int]
) -> None:
    assert read(Image.new(mode, (4, 4), colour)).getpixel((0, 0)) == rgb


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_a_palette_becomes_its_colours_whatever_it_says_about_transparency(
    transparency: Any,
) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    options = {} if transparency is None else {"transparency": transparency}
    assert read(image, "PNG", **options).getpixel((0, 0)) == (10, 20, 30)
    assert read(image, "PNG", "L", **options).mode == "L"


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(kind: str) -> None:
    assert read(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), kind).getpixel((0, 0)) == RED
    assert read(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), kind, "L").getpixel((0, 0)) == 0


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_clipped(kind: str) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    seen = read(Image.fromarray(levels), kind, "L")
    assert np.array_equal(np.asarray(seen), np.arange(256).reshape(16, 16))


def test_big_endian_sixteen_bits_are_scaled_too() -> None:
    levels = np.full((4, 4), 200 * 257, dtype=">u2")
    assert read(Image.fromarray(levels), "TIFF", "L").getpixel((0, 0)) == 200


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(mode: str) -> None:
    with pytest.raises(BrokenImage, match="no known range"):
        read(Image.new(mode, (4, 4), 1000), "TIFF")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(kind: str, turn: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    image = Image.new("L", (16, 8), 0)
    image.paste(255, (0, 0, 8, 8))  # the left half is white
    pixels = np.asarray(read(image, kind, "L", exif=exif)) > 127
    assert pixels.shape == ((8, 16) if turn <= 4 else (16, 8))
    white_at = {1: "left", 2: "right", 3: "right", 4: "left"}
    white_at |= {5: "top", 6: "top", 7: "bottom", 8: "bottom"}
    half = {
        "left": pixels[:, : pixels.shape[1] // 2],
        "right": pixels[:, pixels.shape[1] // 2 :],
        "top": pixels[: pixels.shape[0] // 2],
        "bottom": pixels[pixels.shape[0] // 2 :],
    }
    assert half[white_at[turn]].all()
    assert pixels.mean() == 0.5


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_picture_as_it_is() -> None:
    assert read(noise(8, 4), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff").size == (8, 4)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_frame_of_several_counts(kind: str) -> None:
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    seen = read(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert seen.getpixel((0, 0)) == RED


def test_a_bomb_is_refused_by_its_header() -> None:
    data = stored(Image.new("1", (3000, 3000)), "PNG")
    with pytest.raises(BrokenImage, match="3000×3000 is over the limit of 1,000,000 pixels"):
        decode_image(data[:100], "RGB", 1_000_000)


def test_the_limit_is_the_users_and_not_pillows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert decode_image(stored(noise(20, 20), "PNG"), "RGB", 400).size == (20, 20)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_broken_and_nothing_worse(kind: str, share: float) -> None:
    data = stored(noise(64, 64), kind)
    with pytest.raises(BrokenImage, match=r"\w+ \w+"):
        decode_image(data[: int(share * len(data))], "RGB", PLENTY)


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff"])
def test_what_is_no_picture_is_named_so(data: bytes) -> None:
    with pytest.raises(BrokenImage):
        decode_image(data, "RGB", PLENTY)

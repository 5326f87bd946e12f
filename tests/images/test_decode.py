import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qconvert.images.image_files import BrokenImage, PixelMode, load_pixels, open_header
from tests.images.image_folders import RED, noise_image


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def decode(
    image: Image.Image, file_format: str = "PNG", mode: PixelMode = "RGB", **options: Any
) -> Image.Image:
    return load_pixels(open_header(encode(image, file_format, **options)), mode)


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "GIF", "WEBP", "JPEG"])
def test_image_formats_are_decoded(file_format: str) -> None:
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    image = decode(Image.new("RGB", (8, 6), RED), file_format, **options)
    assert (image.mode, image.size) == ("RGB", (8, 6))
    assert np.abs(np.asarray(image).astype(int) - RED).max() <= 1


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
    assert decode(Image.new(mode, (4, 4), colour)).getpixel((0, 0)) == rgb


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_palette_becomes_its_colours_whatever_its_transparency(transparency: Any) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    options = {} if transparency is None else {"transparency": transparency}
    assert decode(image, "PNG", **options).getpixel((0, 0)) == (10, 20, 30)
    assert decode(image, "PNG", "L", **options).mode == "L"


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_becomes_rgb(file_format: str) -> None:
    assert decode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), file_format).getpixel((0, 0)) == RED
    assert decode(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), file_format, "L").getpixel((0, 0)) == 0


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bit_pixels_are_scaled_and_not_clipped(file_format: str) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16) * 257
    image = decode(Image.fromarray(levels), file_format, "L")
    assert np.array_equal(np.asarray(image), np.arange(256).reshape(16, 16))


def test_big_endian_sixteen_bit_pixels_are_scaled() -> None:
    levels = np.full((4, 4), 200 * 257, dtype=">u2")
    assert decode(Image.fromarray(levels), "TIFF", "L").getpixel((0, 0)) == 200


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_pixels_are_refused(mode: str) -> None:
    with pytest.raises(BrokenImage, match="no known range"):
        decode(Image.new(mode, (4, 4), 1000), "TIFF")


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(file_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("L", (16, 8), 0)
    image.paste(255, (0, 0, 8, 8))  # the left half is white
    pixels = np.asarray(decode(image, file_format, "L", exif=exif)) > 127
    assert pixels.shape == ((8, 16) if orientation <= 4 else (16, 8))
    white_at = {1: "left", 2: "right", 3: "right", 4: "left"}
    white_at |= {5: "top", 6: "top", 7: "bottom", 8: "bottom"}
    half = {
        "left": pixels[:, : pixels.shape[1] // 2],
        "right": pixels[:, pixels.shape[1] // 2 :],
        "top": pixels[: pixels.shape[0] // 2],
        "bottom": pixels[pixels.shape[0] // 2 :],
    }
    assert half[white_at[orientation]].all()
    assert pixels.mean() == 0.5


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_leaves_the_image_unchanged() -> None:
    assert decode(noise_image(8, 4), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff").size == (8, 4)


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "TIFF", "PNG"])
def test_first_frame_of_an_animation_is_used(file_format: str) -> None:
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    image = decode(frames[0], file_format, save_all=True, append_images=frames[1:], **options)
    assert image.getpixel((0, 0)) == RED


def test_oversized_image_is_refused_by_its_header() -> None:
    data = encode(Image.new("1", (30_000, 3400)), "PNG")
    with pytest.raises(BrokenImage, match="30000×3400 is over the limit of 100,000,000 pixels"):
        load_pixels(open_header(data[:100]), "RGB")


def test_limit_of_pillow_is_ignored_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_pixels(open_header(encode(noise_image(20, 20), "PNG")), "RGB").size == (20, 20)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9])
def test_truncated_file_raises_broken_image(file_format: str, share: float) -> None:
    data = encode(noise_image(64, 64), file_format)
    with pytest.raises(BrokenImage, match=r"\w+ \w+"):
        load_pixels(open_header(data[: int(share * len(data))]), "RGB")


@pytest.mark.parametrize("data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff"])
def test_file_of_another_file_format_raises_broken_image(data: bytes) -> None:
    with pytest.raises(BrokenImage):
        load_pixels(open_header(data), "RGB")

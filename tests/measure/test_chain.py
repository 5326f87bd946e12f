"""The times from the file of a picture to its predictions."""

from pathlib import Path

import numpy as np

from qconvert.core.tensors import Tensors, TensorSpec
from qconvert.images import ImageChoice, open_images
from qconvert.images.image_files import FileImages
from qconvert.images.preprocess import PRESETS
from qconvert.measure.chain import MAX_IMAGES, ChainTimes, time_chain
from qconvert.tasks.reading import TaskRequest, choose_reading
from tests.image_files import draw_images

SPECS = [TensorSpec("image", np.dtype(np.float32), ("N", 3, 8, 8))]


def file_images(folder: Path, count: int) -> FileImages:
    images = open_images(ImageChoice(draw_images(folder, count)), SPECS, PRESETS["unit"])
    assert isinstance(images, FileImages)
    return images


def detect(feeds: Tensors) -> Tensors:
    count = len(feeds["image"])
    boxes = np.tile(np.array([[1, 1, 6, 6]], np.float32), (count, 1, 1))
    return {"boxes": boxes, "scores": np.full((count, 1, 2), 0.5, np.float32)}


def test_every_step_of_every_engine_is_timed(tmp_path: Path) -> None:
    images = file_images(tmp_path / "val", MAX_IMAGES + 5)
    batch = next(iter(images.batches(4)))
    reading = choose_reading(TaskRequest(), detect(batch.feeds), batch.frames)
    assert reading is not None
    times = time_chain(images, {"a": detect, "b": detect}, None, reading)
    assert times.images == MAX_IMAGES + 1
    assert set(times.network_ms) == set(times.decode_ms) == {"a", "b"}
    for name in "ab":
        parts = times.read_ms, times.prepare_ms, times.network_ms[name], times.decode_ms[name]
        assert min(parts) > 0
        assert times.total_ms(name) == sum(parts)


def test_unreadable_picture_is_left_out(tmp_path: Path) -> None:
    images = file_images(tmp_path / "val", 3)
    (tmp_path / "val" / images.names[1]).write_bytes(b"no image")
    batch = next(iter(images.batches(2)))
    reading = choose_reading(TaskRequest(), detect(batch.feeds), batch.frames)
    assert reading is not None
    assert time_chain(images, {"a": detect}, 1, reading).images == 2


def test_whole_chain_adds_up() -> None:
    times = ChainTimes(3, 4.0, 2.0, {"a": 10.0}, {"a": 1.5})
    assert times.total_ms("a") == 17.5

"""The time of the whole chain, from the file of a picture to its predictions, step by step."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from qconvert.core.tensors import RunModel, run_padded
from qconvert.images import image_files
from qconvert.images.frames import frame_of
from qconvert.images.image_files import FileImages
from qconvert.images.preprocess import make_converter
from qconvert.tasks.reading import Reading

MAX_IMAGES = 24


@dataclass(frozen=True)
class ChainTimes:
    """Medians over `images`, in milliseconds, one picture at a time.

    `read_ms` is the file read and decoded, `prepare_ms` resized and normalized; by the name of the
    engine, `network_ms` is one run and `decode_ms` its outputs as predictions, with non-maximum
    suppression where it is needed.
    """

    images: int
    read_ms: float
    prepare_ms: float
    network_ms: dict[str, float]
    decode_ms: dict[str, float]

    def total_ms(self, name: str) -> float:
        """Return the time of the whole chain with this engine."""
        network = self.network_ms[name] + self.decode_ms[name]
        return self.read_ms + self.prepare_ms + network


def time_chain(
    images: FileImages, runs: Mapping[str, RunModel], size: int | None, reading: Reading
) -> ChainTimes:
    """Time the steps for the first pictures, with each engine in turns."""
    image_input = images.image_input
    convert = make_converter(images.preprocess, image_input)
    mode: image_files.PixelMode = "L" if image_input.channels == 1 else "RGB"
    read, prepare = list[float](), list[float]()
    network, decode = ({name: list[float]() for name in runs} for _ in range(2))
    names, count = list(runs), 0
    for number, entry in enumerate(images.entries[: MAX_IMAGES + 1]):
        # Every engine does the whole chain, in turns, as the one after a pause is slower.
        turn = number % len(names)
        with suppress(image_files.BrokenImage):
            for name in (*names[turn:], *names[:turn]):
                with _timed(read):
                    data = image_files.read_image_bytes(images.root / entry.name)
                    picture = image_files.load_pixels(image_files.open_header(data), mode)
                with _timed(prepare):
                    array = convert(picture, entry.name)
                frame = frame_of(images.preprocess, image_input, picture.size)
                with _timed(network[name]):
                    outputs = run_padded(runs[name], image_input.feeds([array]), size)
                with _timed(decode[name]):
                    reading.read(outputs, [frame], 1, size)
            count += 1
    return ChainTimes(
        count,
        _median(read),
        _median(prepare),
        {name: _median(times) for name, times in network.items()},
        {name: _median(times) for name, times in decode.items()},
    )


@contextmanager
def _timed(samples: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    samples.append(1000 * (time.perf_counter() - started))


def _median(samples: list[float]) -> float:
    """Return the median without the first picture, which warms up, if there are others."""
    return float(np.median(samples[1:] or samples))

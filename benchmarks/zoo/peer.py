"""What ONNX Runtime's own quantizer makes of a network, where ours strays far from FP32."""

import logging
from collections.abc import Iterator
from pathlib import Path

from onnxruntime import quantization

from benchmarks.zoo.entry import Arrays
from benchmarks.zoo.reference import answers, apart_db, session


def peer_db(model: Path, calibration: Arrays, evaluation: Arrays) -> float | None:
    """Return how far, in dB, the answers of its INT8 file are from those of the float model."""
    logging.getLogger().setLevel(logging.ERROR)  # its advice on preprocessing
    place = model.with_name("peer.onnx")
    quantization.quantize_static(model, place, Reader(calibration, model), per_channel=True)
    return apart_db(answers(model, evaluation), answers(place, evaluation))


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Hands over our rows, one at a time."""

    def __init__(self, rows: Arrays, model: Path) -> None:
        ranks = {each.name: len(each.shape) for each in session(model).get_inputs()}
        self.feeds: Iterator[Arrays] = (
            {
                name: each[at] if each.ndim > ranks[name] else each[at : at + 1]
                for name, each in rows.items()
            }
            for at in range(len(next(iter(rows.values()))))
        )

    def get_next(self) -> Arrays | None:
        return next(self.feeds, None)

"""The error of ONNX Runtime's quantizer on a network, for networks where ours is inaccurate."""

import logging
from collections.abc import Iterator
from pathlib import Path

from onnxruntime import quantization

from benchmarks.zoo.entry import Arrays
from benchmarks.zoo.reference import open_session, output_sqnr_db, run_model


def peer_db(model: Path, calibration: Arrays, evaluation: Arrays) -> float | None:
    """Return the SQNR in dB of the outputs of ONNX Runtime's INT8 file."""
    logging.getLogger().setLevel(logging.ERROR)  # its advice on preprocessing
    path = model.with_name("peer.onnx")
    quantization.quantize_static(model, path, Reader(calibration, model), per_channel=True)
    return output_sqnr_db(run_model(model, evaluation), run_model(path, evaluation))


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Feeds our rows to ONNX Runtime, one at a time."""

    def __init__(self, rows: Arrays, model: Path) -> None:
        ranks = {spec.name: len(spec.shape) for spec in open_session(model).get_inputs()}
        self.feeds: Iterator[Arrays] = (
            {
                name: array[at] if array.ndim > ranks[name] else array[at : at + 1]
                for name, array in rows.items()
            }
            for at in range(len(next(iter(rows.values()))))
        )

    def get_next(self) -> Arrays | None:
        return next(self.feeds, None)

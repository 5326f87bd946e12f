"""4-bit weights of MiniLM by groups of 64, compared with ONNX Runtime's quantizer and ModelOpt.

All tools round the same 36 matrix products on the same sentences; the files are compared with FP32
on 500 others. ModelOpt takes part where it is installed, as in an environment of its own:
`--modelopt FOLDER` is put behind Python's path.

    python -m benchmarks.weight_only --work DIR       # keep the files in DIR
    python -m benchmarks.weight_only --tool qconvert  # no peers
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, matmul_nbits_quantizer

from benchmarks import minilm
from benchmarks.against_fp32 import Array, best_seconds, sqnr_db
from qconvert import api
from qconvert.backends.int8_class import int8_class
from qconvert.core import onnx_io
from qconvert.graph.passes import upgrade_opset

GROUP, SENTENCES, BATCH, ROUNDS, OPSET = 64, 64, 4, 15, 21
MAX_SHARE, MIN_GAIN = 0.2, 3.0
TOOLS = ("qconvert", "onnxruntime", "modelopt")
# The files of qconvert: options, and whether GPTQ rounds them on sentences.
OURS: dict[str, tuple[dict[str, object], bool]] = {
    "qconvert, nearest": ({"quantize.exclude": ["Gather"]}, False),
    "qconvert, GPTQ": ({"quantize.exclude": ["Gather"]}, True),
    "qconvert, GPTQ, no zero points": (
        {"quantize.exclude": ["Gather"], "quantize.zero-points": False},
        True,
    ),
    "qconvert, GPTQ, and tables": ({}, True),
}
NEAREST, LEARNED = "qconvert, nearest", "qconvert, GPTQ"


@dataclass(frozen=True)
class Row:
    """A file: its size, the bytes of its products as a share of FP32's, and its outputs."""

    megabytes: float
    share: float
    sqnr: float
    cosine: float
    speeds: tuple[float, ...] = ()


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="where the network and the files are kept")
    parser.add_argument("--tool", choices=TOOLS, nargs="+", default=[*TOOLS])
    parser.add_argument("--modelopt", type=Path, help="the folder in which ModelOpt is installed")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of the clock; 0 for no speed")
    arguments = parser.parse_args(words)
    logging.disable(logging.WARNING)
    if arguments.modelopt is not None:
        sys.path.append(str(arguments.modelopt))
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        model = minilm.prepare(work)
        files = {"FP32": model}
        for name, make in makers(arguments.tool).items():
            path = work / f"{name.replace(', ', '-').replace(' ', '-')}.onnx"
            if not path.exists():
                started = time.perf_counter()
                make(model, path)
                print(f"{name}: {time.perf_counter() - started:.0f} s", flush=True)
            files[name] = path
        rows = compare(work, files, arguments.rounds)
    print_verdict(rows)


def makers(tools: Sequence[str]) -> dict[str, Callable[[Path, Path], None]]:
    """Return what writes each file."""
    named: dict[str, Callable[[Path, Path], None]] = {}
    if "qconvert" in tools:
        named |= {name: partial(_qconvert, *how) for name, how in OURS.items()}
    if "onnxruntime" in tools:
        named["ONNX Runtime, nearest"] = partial(_onnxruntime, "default", True)
        named["ONNX Runtime, nearest, zero points"] = partial(_onnxruntime, "default", False)
        named["ONNX Runtime, k-quant"] = partial(_onnxruntime, "k-quant", False)
        named["ONNX Runtime, GPTQ"] = partial(_onnxruntime, "gptq", True)
    if "modelopt" in tools and find_spec("modelopt"):
        named |= {f"ModelOpt, {how}": partial(_modelopt, how) for how in ("awq_lite", "awq_clip")}
    return named


def _qconvert(settings: dict[str, object], learns: bool, model: Path, path: Path) -> None:
    images = {"images": model.with_name("calibration.npz")} if learns else {}
    settings = {**settings, "quantize.group": GROUP}
    api.quantize(model, output=path, precision="int4-weights", settings=settings, **images)


def _onnxruntime(method: str, symmetric: bool, model: Path, path: Path) -> None:
    kinds = {
        "default": lambda: matmul_nbits_quantizer.DefaultWeightOnlyQuantConfig(
            block_size=GROUP, is_symmetric=symmetric, accuracy_level=4
        ),
        "k-quant": matmul_nbits_quantizer.KQuantWeightOnlyQuantConfig,
        "gptq": lambda: matmul_nbits_quantizer.GPTQWeightOnlyQuantConfig(
            calibration_data_reader=Sentences(model.parent), block_size=GROUP
        ),
    }
    quantizer = matmul_nbits_quantizer.MatMulNBitsQuantizer(
        onnx.load(model),
        block_size=GROUP,
        is_symmetric=symmetric,
        accuracy_level=4,
        algo_config=kinds[method](),
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), False)


def _modelopt(method: str, model: Path, path: Path) -> None:
    from modelopt.onnx.quantization.int4 import quantize

    raised = path.with_name(f"opset-{OPSET}.onnx")
    onnx_io.save(upgrade_opset(onnx_io.load(model), OPSET)[0], raised)
    result = quantize(
        str(raised),
        method,
        Sentences(model.parent),
        block_size=GROUP,
        calibration_eps=["cpu"],
        gather_block_size=0,
    )
    onnx.save(result, path)


class Sentences(CalibrationDataReader):  # type: ignore[misc]
    """The sentences that the peers calibrate on, a few at a time."""

    def __init__(self, work: Path) -> None:
        arrays = minilm.load(work, "calibration")
        self.batches = [
            {name: array[start : start + BATCH] for name, array in arrays.items()}
            for start in range(0, SENTENCES, BATCH)
        ]
        self.rewind()

    def rewind(self) -> None:
        self.rest = iter(self.batches)

    def get_first(self) -> dict[str, Array]:
        return self.batches[0]

    def get_next(self) -> dict[str, Array] | None:
        return next(self.rest, None)

    def __iter__(self) -> Iterator[dict[str, Array]]:
        return iter(self.batches)


def compare(work: Path, files: dict[str, Path], rounds: int) -> dict[str, Row]:
    """Print the scores of all files, and return them."""
    feeds, sessions = minilm.load(work, "evaluation"), dict[str, onnxruntime.InferenceSession]()
    for name, path in files.items():
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, 1
        sessions[name] = onnxruntime.InferenceSession(str(path), options)
    outputs = {name: session.run(None, feeds)[0] for name, session in sessions.items()}
    expected, sizes = (
        outputs["FP32"],
        {name: onnx_io.saved_bytes(path) for name, path in files.items()},
    )
    products = product_bytes(files["FP32"])
    speeds: dict[str, tuple[float, ...]] = {}
    for batch in (1, 8) if rounds else ():
        part = {key: array[:batch] for key, array in feeds.items()}
        runs = {name: partial(_run, session, part) for name, session in sessions.items()}
        times = best_seconds(runs, np.zeros(0), rounds)
        for name, seconds in times.items():
            speeds[name] = (*speeds.get(name, ()), times["FP32"] / seconds)
    print(f"\nMiniLM, {len(expected)} sentences, ONNX Runtime {onnxruntime.__version__}")
    print(f"{int8_class()}")
    print(f"{'file':38}{'MB':>6}{'share':>7}{'SQNR':>7}{'cosine':>9}  speed at batch 1, 8")
    rows: dict[str, Row] = {}
    for name, output in outputs.items():
        saved = sizes["FP32"] - sizes[name]
        rows[name] = Row(
            sizes[name] / 1e6,
            (products - saved) / products,
            sqnr_db(expected, output),
            float((expected * output).sum(1).mean()),
            speeds.get(name, ()),
        )
        row = rows[name]
        # Of the file with tables in integers the products cannot be told from the rest.
        share = "" if "tables" in name else f"{row.share:.3f}"
        gains = ", ".join(f"{speed:.2f}x" for speed in row.speeds)
        print(f"{name:38}{row.megabytes:6.1f}{share:>7}{row.sqnr:7.2f}{row.cosine:9.5f}  {gains}")
    return rows


def _run(session: Any, feeds: dict[str, Array], _: Array) -> Array:
    outputs: list[Array] = session.run(None, feeds)
    return outputs[0]


def product_bytes(path: Path) -> int:
    """Return the bytes of the weights of all matrix products."""
    model = onnx.load(path)
    sizes = {tensor.name: len(tensor.raw_data) for tensor in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    return sum(sizes.get(name, 0) for node in products for name in node.input[1:2])


def print_verdict(rows: dict[str, Row]) -> None:
    """Print whether 4-bit weights reach their aims."""
    ours, nearest = rows[LEARNED], rows[NEAREST]
    peers = {name: row for name, row in rows.items() if name.startswith(("ONNX", "ModelOpt"))}
    claims = {
        f"at most {MAX_SHARE} of the bytes of the products": ours.share <= MAX_SHARE,
        f"{MIN_GAIN:.0f} dB above nearest": ours.sqnr >= nearest.sqnr + MIN_GAIN,
        **{f"no lower than {name}": ours.sqnr >= row.sqnr for name, row in peers.items()},
    }
    missed = [claim for claim, held in claims.items() if not held]
    print(f"MiniLM: {'MISSED ' + ', '.join(missed) if missed else 'every aim reached'}")


if __name__ == "__main__":
    main(sys.argv[1:])

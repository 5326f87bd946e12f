"""INT8 of three small networks that are hard to quantize, compared with ONNX Runtime's quantizer.

Every tool calibrates on the same 200 drawn images; the files are compared with FP32 on 500 others.

    python -m benchmarks.hard_nets                          # train them, all tools, the verdicts
    python -m benchmarks.hard_nets --work DIR               # keep weights and files in DIR
    python -m benchmarks.hard_nets --work DIR --net mobilenet
"""

import argparse
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnxruntime import quantization

from benchmarks import small_nets
from benchmarks.against_fp32 import Array, Reference, Score, divergences, run_model, score_logits
from benchmarks.quantization import ORT, PEERS, run_python, run_uncached
from qconvert.core.tensors import Tensors
from qconvert.demo import generator

CALIBRATION_COUNT, EVALUATION_COUNT = 200, 500
EFFORTS = ("none", "default")
STANDARD_ERRORS = 2.0
INPUT = "image"


@dataclass(frozen=True, eq=False)
class Result:
    """The score of a file, and per image its squared error, its KL divergence and 1 if it changed.

    The worst images dominate the squared errors; all images count the same in `changed`.
    """

    score: Score
    errors: Array
    divergences: Array
    changed: Array


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="where trained networks and files are kept")
    parser.add_argument("--net", choices=small_nets.SMALL, nargs="+", default=[*small_nets.SMALL])
    arguments = parser.parse_args(words)
    logging.getLogger().setLevel(logging.ERROR)  # ORT's advice is about graphs not cleaned yet
    with tempfile.TemporaryDirectory() as folder:
        work = arguments.work or Path(folder)
        results = {name: score_all(prepare_reference(work / name, name)) for name in arguments.net}
    print(f"\nSmall networks, {EVALUATION_COUNT} drawn images, CPU provider")
    print(f"{'network':14}{'file':26}{'MB':>6}{'top-1':>7}{'agrees':>8}{'SQNR':>7}{'KL':>9}")
    for net, files in results.items():
        for name, result in files.items():
            score = result.score
            row = f"{net:14}{name:26}{score.megabytes:6.2f}{score.top1:7.1f}{score.agrees:8.1f}"
            print(f"{row}{score.sqnr:7.2f}{score.kl:9.5f}")
    for net, files in results.items():
        for backend in PEERS:
            print_verdict(net, backend, files)


def print_verdict(net: str, backend: str, files: Mapping[str, Result]) -> None:
    """Print whether learned rounding is no worse than the nearest integers and the peer."""
    plain, learned = (files[f"qconvert {backend} {effort}"] for effort in EFFORTS)
    peer, theirs = PEERS[backend], files[PEERS[backend]].score
    ours = learned.score
    claims = {
        "error no larger than with nearest integers": not is_worse(learned.errors, plain.errors),
        "KL no larger than with nearest integers": not is_worse(
            learned.divergences, plain.divergences
        ),
        "agrees as much as with nearest integers": not is_worse(learned.changed, plain.changed),
        f"SQNR above {peer}": ours.sqnr > theirs.sqnr,
        f"KL below {peer}": ours.kl < theirs.kl,
        f"agrees as much as {peer}": ours.agrees >= theirs.agrees,
    }
    missed = [claim for claim, held in claims.items() if not held]
    print(f"{net}, {backend}: {'MISSED ' + ', '.join(missed) if missed else 'every aim reached'}")


def is_worse(ours: Array, theirs: Array) -> bool:
    """Return whether our mean over the images is larger by more than `STANDARD_ERRORS`."""
    grown = ours - theirs
    return bool(grown.mean() > STANDARD_ERRORS * grown.std() / np.sqrt(grown.size))


def score_all(reference: Reference) -> dict[str, Result]:
    """Return the results of FP32 and of the files of all tools."""
    results = {}
    for name, path in {"FP32": reference.model, **quantize_all(reference.model)}.items():
        logits = run_model(path, reference.images)
        results[name] = Result(
            score_logits(path, logits, reference),
            np.square(logits - reference.logits).sum(1),
            divergences(reference.logits, logits),
            (logits.argmax(1) != reference.logits.argmax(1)).astype(float),
        )
    return results


def prepare_reference(work: Path, name: str) -> Reference:
    """Train and export a network and run it once; existing files are reused."""
    work.mkdir(parents=True, exist_ok=True)
    model, weights, reference = (
        work / file for file in ("fp32.onnx", "weights.pt", "reference.npz")
    )
    if not weights.exists():
        print(f"training {name}", flush=True)
        small_nets.train_to(weights, name)
    if not model.exists():
        shape = f"{INPUT}:1x3x{small_nets.SIDE}x{small_nets.SIDE}"
        net = ["benchmarks.small_nets:" + name, "--weights", weights, "--input", shape]
        run_python("-m", "qconvert", "export", *net, "-o", model)
    if not (calibration := work / "calibration.npz").exists():
        images, _ = small_nets.draw_images(generator.CALIBRATION_SEED, CALIBRATION_COUNT)
        np.savez(calibration, **{INPUT: images})
    if not reference.exists():
        images, labels = small_nets.draw_images(generator.EVALUATION_SEED, EVALUATION_COUNT)
        np.savez(reference, images=images, labels=labels, logits=run_model(model, images))
    with np.load(reference) as stored:
        return Reference(model, stored["images"], stored["labels"], stored["logits"])


def quantize_all(model: Path) -> dict[str, Path]:
    """Quantize the model with all tools, and return the files by name."""
    paths: dict[str, Path] = {}
    images = model.with_name("calibration.npz")
    for name, options in ORT.items():
        paths[name] = model.with_name(f"{name.replace(' ', '-')}.onnx")
        reader = Reader(images)
        quantization.quantize_static(model, paths[name], reader, per_channel=True, **options)
    for backend in PEERS:
        for effort in EFFORTS:
            path = model.with_name(f"qconvert-{backend}-{effort}.onnx")
            command = ["-m", "qconvert", "quantize", model, "--images", images]
            run_uncached(*command, "--backend", backend, "--effort", effort, "-o", path)
            paths[f"qconvert {backend} {effort}"] = path
    return paths


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Feeds our images to ONNX Runtime, one at a time."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            images = file[INPUT]
        self.feeds: Iterator[Tensors] = ({INPUT: image[np.newaxis]} for image in images)

    def get_next(self) -> Tensors | None:
        return next(self.feeds, None)


if __name__ == "__main__":
    main(sys.argv[1:])

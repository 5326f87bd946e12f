"""INT8 of three small trained networks that are hard to quantize, against ONNX Runtime's quantizer.

Every tool calibrates on the same 200 drawn pictures; the files are held against FP32 on 500 others.

    python -m benchmarks.hard_nets                          # train them, all tools, the verdicts
    python -m benchmarks.hard_nets --work DIR               # keep what was trained and made
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
from benchmarks.against_fp32 import Array, Reference, Score, answers, divergences, judged
from benchmarks.quantization import ORT, PEERS, afresh, child
from qconvert.core.tensors import Tensors
from qconvert.demo import generator

CALIBRATIONS, EVALUATIONS = 200, 500
EFFORTS = ("none", "default")
STANDARD_ERRORS = 2.0
INPUT = "image"


@dataclass(frozen=True, eq=False)
class Result:
    """A file's score, and for each image its squared error, its KL divergence and 1 if it changed.

    Of these the worst images weigh most in the first, and all alike in the last.
    """

    score: Score
    errors: Array
    apart: Array
    changed: Array


def main(given: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, help="where trained networks and files are kept")
    parser.add_argument("--net", choices=small_nets.SMALL, nargs="+", default=[*small_nets.SMALL])
    chosen = parser.parse_args(given)
    logging.getLogger().setLevel(logging.ERROR)  # ORT's advice is about graphs not cleaned yet
    with tempfile.TemporaryDirectory() as folder:
        work = chosen.work or Path(folder)
        found = {name: results(prepared(work / name, name)) for name in chosen.net}
    print(f"\nSmall networks, {EVALUATIONS} drawn pictures, CPU provider")
    print(f"{'network':14}{'file':26}{'MB':>6}{'top-1':>7}{'agrees':>8}{'SQNR':>7}{'KL':>9}")
    for net, files in found.items():
        for name, each in files.items():
            score = each.score
            row = f"{net:14}{name:26}{score.megabytes:6.2f}{score.top1:7.1f}{score.agrees:8.1f}"
            print(f"{row}{score.sqnr:7.2f}{score.kl:9.5f}")
    for net, files in found.items():
        for backend in PEERS:
            judge(net, backend, files)


def judge(net: str, backend: str, files: Mapping[str, Result]) -> None:
    """Say whether what was learned is never worse than the nearest integers, nor than the peer."""
    plain, learned = (files[f"qconvert {backend} {effort}"] for effort in EFFORTS)
    peer, theirs = PEERS[backend], files[PEERS[backend]].score
    ours = learned.score
    claims = {
        "error no larger than with nearest integers": not worse(learned.errors, plain.errors),
        "KL no larger than with nearest integers": not worse(learned.apart, plain.apart),
        "agrees as much as with nearest integers": not worse(learned.changed, plain.changed),
        f"SQNR above {peer}": ours.sqnr > theirs.sqnr,
        f"KL below {peer}": ours.kl < theirs.kl,
        f"agrees as much as {peer}": ours.agrees >= theirs.agrees,
    }
    missed = [claim for claim, held in claims.items() if not held]
    print(f"{net}, {backend}: {'MISSED ' + ', '.join(missed) if missed else 'every aim reached'}")


def worse(ours: Array, theirs: Array) -> bool:
    """Whether ours is larger on average over the images than chance would have it."""
    grown = ours - theirs
    return bool(grown.mean() > STANDARD_ERRORS * grown.std() / np.sqrt(grown.size))


def results(reference: Reference) -> dict[str, Result]:
    """Return what became of FP32 and of the files of all tools."""
    found = {}
    for name, path in {"FP32": reference.model, **quantized(reference.model)}.items():
        logits = answers(path, reference.images)
        found[name] = Result(
            judged(path, logits, reference),
            np.square(logits - reference.logits).sum(1),
            divergences(reference.logits, logits),
            (logits.argmax(1) != reference.logits.argmax(1)).astype(float),
        )
    return found


def prepared(work: Path, name: str) -> Reference:
    """Train and export a network and run it once; what is there already is kept."""
    work.mkdir(parents=True, exist_ok=True)
    model, weights, kept = (work / file for file in ("fp32.onnx", "weights.pt", "reference.npz"))
    if not weights.exists():
        print(f"training {name}", flush=True)
        small_nets.train_to(weights, name)
    if not model.exists():
        shape = f"{INPUT}:1x3x{small_nets.SIDE}x{small_nets.SIDE}"
        net = ["benchmarks.small_nets:" + name, "--weights", weights, "--input", shape]
        child("-m", "qconvert", "export", *net, "-o", model)
    if not (calibration := work / "calibration.npz").exists():
        images, _ = small_nets.draw_images(generator.CALIBRATION_SEED, CALIBRATIONS)
        np.savez(calibration, **{INPUT: images})
    if not kept.exists():
        images, labels = small_nets.draw_images(generator.EVALUATION_SEED, EVALUATIONS)
        np.savez(kept, images=images, labels=labels, logits=answers(model, images))
    with np.load(kept) as found:
        return Reference(model, found["images"], found["labels"], found["logits"])


def quantized(model: Path) -> dict[str, Path]:
    """Return the files of all tools, quantized now and put beside the model."""
    found: dict[str, Path] = {}
    images = model.with_name("calibration.npz")
    for name, options in ORT.items():
        found[name] = model.with_name(f"{name.replace(' ', '-')}.onnx")
        reader = Reader(images)
        quantization.quantize_static(model, found[name], reader, per_channel=True, **options)
    for backend in PEERS:
        for effort in EFFORTS:
            path = model.with_name(f"qconvert-{backend}-{effort}.onnx")
            given = ["--backend", backend, "--effort", effort, "--images", images, "-o", path]
            afresh("-m", "qconvert", "quantize", model, *given)
            found[f"qconvert {backend} {effort}"] = path
    return found


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    """Hands ONNX Runtime our pictures, one at a time as it wants them."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as file:
            images = file[INPUT]
        self.feeds: Iterator[Tensors] = ({INPUT: image[np.newaxis]} for image in images)

    def get_next(self) -> Tensors | None:
        return next(self.feeds, None)


if __name__ == "__main__":
    main(sys.argv[1:])

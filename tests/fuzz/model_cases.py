"""Cases of models: every command that reads one."""

import random
from pathlib import Path

from tests.fuzz import mangled_bytes, mangled_onnx
from tests.fuzz.seeds import BUILD, SECRET

Arguments = list[str]

IMAGES = ("--images", "images", "--resize", "16x16")
ONE = ("--workers", "1")


def model(chance: random.Random, folder: Path) -> Arguments:
    names = sorted(path.name for path in (folder / "models").glob("*.onnx"))
    file = folder / "models" / chance.choice(names)
    (folder / "models/link.bin").symlink_to(folder / SECRET)
    spoil = mangled_onnx.mangle if chance.random() < 0.75 else mangled_bytes.mangle
    file.write_bytes(spoil(chance, file.read_bytes()))
    given = f"models/{file.name}"
    return [*_read_by(chance, given), *(("--batch", "1") if chance.random() < 0.05 else ())]


def _read_by(chance: random.Random, model: str) -> Arguments:
    export = ["export", model, "-o", "out/x.onnx"]
    build = ["build", model, *IMAGES, *ONE, *BUILD, "-o", "out/run"]
    quantize = ["quantize", model, "-o", "out/q.onnx"]
    built_apart = ["build", model, "--backend", "tensorrt-rtx", "--precision", "fp32,fp16"]
    return chance.choice(
        (
            export, export, export, export, build, build,
            ["inspect", model], ["inspect", model, "--json"], ["inspect", model, "--nodes"],
            ["inspect", model, "--quantized"],
            [*quantize, *IMAGES, "--backend", "tensorrt", "--effort", "none"],
            [*quantize, "--precision", "fp16"],
            [*built_apart, "--seconds", "0.01", "-o", "out/run"],
            ["calibrate", model, *IMAGES, *ONE, "-o", "out/c.npz"],
            ["compare", "models/tiny.onnx", model, *IMAGES],
            ["bench", model, "--seconds", "0.01", "--batch-sizes", "1"],
            ["evaluate", model, "models/tiny.onnx", "--eval", "val"],
            ["init", model, "-o", "out/settings.toml"],
        )
    )  # fmt: skip

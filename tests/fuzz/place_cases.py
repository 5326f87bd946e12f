"""Cases of what qconvert itself wrote: runs, settings and the store."""

import random
import tomllib
from pathlib import Path

from tests.fuzz import mangled_bytes, mangled_trees
from tests.fuzz.damaged import damage
from tests.fuzz.seeds import BUILD, SECRET

Arguments = list[str]
ALL = ("--images", "images", "--eval", "val", *BUILD)


def run(chance: random.Random, folder: Path) -> Arguments:
    files = sorted(path for path in (folder / "run").rglob("*") if path.is_file())
    weighty = [path for path in files if path.suffix in (".json", ".toml", ".onnx", ".npz", ".txt")]
    secret = folder / SECRET
    for _ in range(chance.choice((1, 1, 2))):
        damage(chance, chance.choice(weighty if chance.random() < 0.9 else files), secret)
    engine = "run/engines/" + chance.choice(("cpu-int8", "cpu-fp32"))
    quick = ["--seconds", "0.01", "--batch-sizes", "1"]
    return chance.choice(
        (
            ["report", "run"], ["report", "run"], ["report", "run", "--format", "json"],
            ["report", "run", "--format", "md"], ["report", "run", "--format", "card"],
            ["report", "run", "--format", "html", "-o", "out/r.html"],
            ["bench", "run", *quick], ["bench", engine, *quick],
            ["evaluate", "run", "--eval", "val"], ["evaluate", engine, "net.onnx", "--eval", "val"],
            ["compare", "run/model.onnx", engine],
            ["inspect", f"{engine}/model.onnx", "--quantized"],
            ["build", "--from", "run", "--backend", "cpu", "--precision", "int8", *quick],
            ["build", "net.onnx", *ALL, "-o", "run"],
            ["package", "run", "--format", "onnxruntime", "-o", "out/p"],
            ["package", "run", "--format", "triton", "--engine", engine[12:], "-o", "out/t"],
        )
    )  # fmt: skip


def settings(chance: random.Random, folder: Path) -> Arguments:
    file = folder / "settings.toml"
    if chance.random() < 0.75:
        tree = mangled_trees.mangle(chance, tomllib.loads(_full_settings(folder)))
        file.write_bytes(mangled_trees.toml_text(tree))
    else:
        file.write_bytes(mangled_bytes.mangle(chance, _full_settings(folder).encode()))
    chosen = ["--config", "settings.toml"]
    return chance.choice(
        (
            ["build", *chosen, "--dry-run", "-o", "out/run"], ["build", *chosen, "-o", "out/run"],
            ["calibrate", *chosen, "-o", "out/c.npz"], ["export", *chosen, "-o", "out/x.onnx"],
            ["quantize", *chosen, "--dry-run"], ["bench", "net.onnx", *chosen],
            ["search", *chosen, "--dry-run"],
        )
    )  # fmt: skip


def _full_settings(folder: Path) -> str:
    """Return settings in which every table says something."""
    return (folder / "run/run.toml").read_text()


def store(chance: random.Random, folder: Path) -> Arguments:
    files = sorted(path for path in (folder / "store").rglob("*") if path.is_file())
    for _ in range(chance.choice((1, 1, 4))):
        damage(chance, chance.choice(files), folder / SECRET)
    return chance.choice(
        (
            ["export", "net.onnx", "-o", "out/x.onnx"],
            ["calibrate", "net.onnx", "--images", "images", "-o", "out/c.npz"],
            ["build", "net.onnx", *ALL, "-o", "out/run"],
            ["cache"], ["cache", "--json"], ["cache", "--clear"],
        )
    )  # fmt: skip

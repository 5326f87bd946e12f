"""A fuzz case: good files, some of them damaged, and a command. Its number determines all of it."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutate import (
    damage_file,
    mutate_bytes,
    mutate_file,
    mutate_npy,
    mutate_npz,
    mutate_toml,
)
from tests.fuzz.mutate_onnx import mutate_onnx
from tests.fuzz.seeds import BUILD, SECRET
from tests.fuzz.values import any_integer, any_name

Arguments = list[str]

SMALL = ("--images", "images", "--resize", "16x16", "--workers", "1")
IMAGES = ("--images", "images", "--resize", "16x16")
ALL = ("--images", "images", "--eval", "val", *BUILD)


@dataclass(frozen=True)
class Case:
    """The damaged files of a folder, and the arguments that qconvert gets there."""

    number: int
    kind: str
    arguments: tuple[str, ...]


def model(rng: random.Random, folder: Path) -> Arguments:
    names = sorted(path.name for path in (folder / "models").glob("*.onnx"))
    file = folder / "models" / rng.choice(names)
    (folder / "models/link.bin").symlink_to(folder / SECRET)
    mutate = mutate_onnx if rng.random() < 0.75 else mutate_bytes
    file.write_bytes(mutate(rng, file.read_bytes()))
    return [
        *_model_command(rng, f"models/{file.name}"),
        *(("--batch", "1") if rng.random() < 0.05 else ()),
    ]


def _model_command(rng: random.Random, model: str) -> Arguments:
    export = ["export", model, "-o", "out/x.onnx"]
    build = ["build", model, *IMAGES, *SMALL[-2:], *BUILD, "-o", "out/run"]
    quantize = ["quantize", model, "-o", "out/q.onnx"]
    build_rtx = ["build", model, "--backend", "tensorrt-rtx", "--precision", "fp32,fp16"]
    return rng.choice(
        (
            export, export, export, export, build, build,
            ["inspect", model], ["inspect", model, "--json"], ["inspect", model, "--nodes"],
            ["inspect", model, "--quantized"],
            [*quantize, *IMAGES, "--backend", "tensorrt", "--effort", "none"],
            [*quantize, "--precision", "fp16"],
            [*build_rtx, "--seconds", "0.01", "-o", "out/run"],
            ["calibrate", model, *IMAGES, *SMALL[-2:], "-o", "out/c.npz"],
            ["compare", "models/tiny.onnx", model, *IMAGES],
            ["bench", model, "--seconds", "0.01", "--batch-sizes", "1"],
            ["evaluate", model, "models/tiny.onnx", "--eval", "val"],
            ["init", model, "-o", "out/settings.toml"],
        )
    )  # fmt: skip


def image(rng: random.Random, folder: Path) -> Arguments:
    for _ in range(rng.choice((1, 1, 3, 12))):
        files = sorted(
            path
            for path in (folder / "images").iterdir()
            if path.is_file() and not path.is_symlink()
        )
        file = rng.choice(files)
        match rng.choice(("bytes",) * 8 + ("name", "link", "folder", "other")):
            case "name":
                _rename(rng, file)
            case "link":
                file.unlink()
                secret = folder / SECRET
                file.symlink_to(rng.choice((secret, file.name, "/dev/zero", "nothing", "..")))
            case "folder":
                file.unlink()
                file.mkdir()
            case "other":
                file.write_bytes(rng.choice(sorted((folder / "val").iterdir())).read_bytes())
            case _:
                file.write_bytes(mutate_bytes(rng, file.read_bytes() or b"0"))
    more = ["--max-broken", "20"] if rng.random() < 0.5 else []
    return rng.choice(
        (
            ["calibrate", "net.onnx", *SMALL, *more, "-o", "out/c.npz"],
            ["calibrate", "net.onnx", "--images", "images", *more, "-o", "out/c.npz"],
            ["evaluate", "net.onnx", "models/half.onnx", "--eval", "images"],
        )
    )


def _rename(rng: random.Random, file: Path) -> None:
    new = any_name(rng).replace("/", "_").replace("\0", "_")[:200].strip(".") or "x"
    file.rename(file.with_name(new + file.suffix))


def array(rng: random.Random, folder: Path) -> Arguments:
    name = rng.choice(("stored.npz", "packed.npz", "one.npy"))
    file = folder / name
    mutate_array = mutate_npy if name.endswith("npy") else mutate_npz
    mutate = mutate_array if rng.random() < 0.7 else mutate_bytes
    file.write_bytes(mutate(rng, file.read_bytes()))
    if rng.random() < 0.5:
        return ["calibrate", "net.onnx", "--images", name, "-o", "out/c.npz"]
    return ["evaluate", "net.onnx", "models/half.onnx", "--eval", name]


def calibration(rng: random.Random, folder: Path) -> Arguments:
    file = folder / "calibration.npz"
    shutil.copy(file, folder / "out/c.npz")  # a result that a command continues
    file = rng.choice((file, file, folder / "out/c.npz"))
    mutate = mutate_npz if rng.random() < 0.7 else mutate_bytes
    file.write_bytes(mutate(rng, file.read_bytes()))
    options = ["--calibration", "calibration.npz", "--effort", "none"]
    return rng.choice(
        (
            ["calibrate", "--show", "calibration.npz", "--method", "entropy", "--method", "mse"],
            ["calibrate", "--show", "calibration.npz", "--json"],
            ["calibrate", "--merge", "calibration.npz", "calibration.npz", "-o", "out/c.npz"],
            ["quantize", "net.onnx", *options, "-o", "out/q.onnx"],
            ["quantize", "net.onnx", *options, "--backend", "tensorrt", "-o", "out/q.onnx"],
            ["calibrate", "net.onnx", *SMALL, "-o", "out/c.npz"],
        )
    )


def plan(rng: random.Random, folder: Path) -> Arguments:
    plan, weights = folder / "plan.json", folder / "plan.learned.npz"
    if rng.random() < 0.6:
        mutate_file(rng, plan)
    elif rng.random() < 0.5:
        weights.write_bytes(mutate_npz(rng, weights.read_bytes()))
    else:
        weights.write_bytes(mutate_bytes(rng, weights.read_bytes()))
    if rng.random() < 0.3:
        text = plan.read_bytes().decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if '"learned"' not in line]
        plan.write_text("\n".join(lines).replace(",\n}", "\n}"), encoding="utf-8")
    backend = ["--backend", rng.choice(("cpu", "cpu", "tensorrt"))]
    command = ["quantize", "net.onnx", *backend, "--plan", "plan.json", "-o", "out/q.onnx"]
    return command if rng.random() < 0.5 else [*command, "--calibration", "calibration.npz"]


def labels(rng: random.Random, folder: Path) -> Arguments:
    file = folder / "val" / rng.choice(("labels.csv", "labels.csv", "classes.txt"))
    lines = file.read_text().splitlines()
    match rng.choice(("bytes", "bytes", "cell", "cell", "line", "order", "none")):
        case "bytes":
            file.write_bytes(mutate_bytes(rng, file.read_bytes()))
        case "cell":
            at = rng.randrange(len(lines))
            cells = lines[at].split(",")
            new = rng.choice((any_name(rng), str(any_integer(rng)), "Kind 3", "kind 99"))
            cells[rng.randrange(len(cells))] = new
            lines[at] = ",".join(cells)
            file.write_text("\n".join(lines), encoding="utf-8")
        case "line":
            lines.insert(rng.randrange(len(lines)), rng.choice((*lines, "a,b,c", '"', ",", "x")))
            file.write_text("\n".join(lines), encoding="utf-8")
        case "order":
            rng.shuffle(lines)
            file.write_text("\n".join(lines), encoding="utf-8")
        case _:
            file.unlink()
    labels = ["--labels", "val/labels.csv"] if rng.random() < 0.5 else []
    return ["evaluate", "net.onnx", "models/half.onnx", "--eval", "val", *labels]


def run(rng: random.Random, folder: Path) -> Arguments:
    files = sorted(path for path in (folder / "run").rglob("*") if path.is_file())
    main_files = [
        path for path in files if path.suffix in (".json", ".toml", ".onnx", ".npz", ".txt")
    ]
    secret = folder / SECRET
    for _ in range(rng.choice((1, 1, 2))):
        damage_file(rng, rng.choice(main_files if rng.random() < 0.9 else files), secret)
    engine = "run/engines/" + rng.choice(("cpu-int8", "cpu-fp32"))
    quick = ["--seconds", "0.01", "--batch-sizes", "1"]
    return rng.choice(
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


def settings(rng: random.Random, folder: Path) -> Arguments:
    file = folder / "settings.toml"
    file.write_bytes(mutate_toml(rng, (folder / "run/run.toml").read_bytes()))
    config = ["--config", "settings.toml"]
    return rng.choice(
        (
            ["build", *config, "--dry-run", "-o", "out/run"], ["build", *config, "-o", "out/run"],
            ["calibrate", *config, "-o", "out/c.npz"], ["export", *config, "-o", "out/x.onnx"],
            ["quantize", *config, "--dry-run"], ["bench", "net.onnx", *config],
            ["search", *config, "--dry-run"],
        )
    )  # fmt: skip


def cache(rng: random.Random, folder: Path) -> Arguments:
    files = sorted(path for path in (folder / "store").rglob("*") if path.is_file())
    for _ in range(rng.choice((1, 1, 4))):
        damage_file(rng, rng.choice(files), folder / SECRET)
    return rng.choice(
        (
            ["export", "net.onnx", "-o", "out/x.onnx"],
            ["calibrate", "net.onnx", "--images", "images", "-o", "out/c.npz"],
            ["build", "net.onnx", *ALL, "-o", "out/run"],
            ["cache"], ["cache", "--json"], ["cache", "--clear"],
        )
    )  # fmt: skip


CASES: dict[str, Callable[[random.Random, Path], Arguments]] = {
    "model": model,
    "image": image,
    "array": array,
    "calibration": calibration,
    "plan": plan,
    "labels": labels,
    "run": run,
    "settings": settings,
    "cache": cache,
}
# The kinds, repeated by how often they are drawn.
KINDS = (
    ["model"] * 9 + ["image"] * 2 + ["array"] + ["calibration"] * 2 + ["plan"] + ["run"] * 3
    + ["settings"] + ["labels"] + ["cache"]
)  # fmt: skip


def kind_of(number: int) -> str:
    """Return what a case damages."""
    return random.Random(number).choice(KINDS)


def make(number: int, seeds: Path, folder: Path) -> Case:
    """Write the files of a case into a new folder."""
    rng = random.Random(number)
    kind = rng.choice(KINDS)
    left_out = {"model": ("run", "store"), "run": (), "settings": ()}.get(kind, ("run",))
    shutil.copytree(seeds, folder, ignore=shutil.ignore_patterns(*left_out))
    (folder / "out").mkdir()
    (folder / "tmp").mkdir()
    arguments = CASES[kind](rng, folder)
    return Case(number, kind, tuple(arguments))

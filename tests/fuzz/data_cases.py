"""Cases of what goes into a job beside a model: pictures, arrays, labels, calibrations, plans."""

import random
import shutil
from pathlib import Path

from tests.fuzz import damaged, mangled_arrays, mangled_bytes, words
from tests.fuzz.seeds import SECRET

Arguments = list[str]

SMALL = ("--images", "images", "--resize", "16x16", "--workers", "1")


def picture(chance: random.Random, folder: Path) -> Arguments:
    for _ in range(chance.choice((1, 1, 3, 12))):
        files = (each for each in (folder / "images").iterdir() if not each.is_symlink())
        there = sorted(each for each in files if each.is_file())
        file = chance.choice(there)
        match chance.choice(("bytes",) * 8 + ("name", "link", "folder", "other")):
            case "name":
                _rename(chance, file)
            case "link":
                file.unlink()
                secret = folder / SECRET
                file.symlink_to(chance.choice((secret, file.name, "/dev/zero", "nothing", "..")))
            case "folder":
                file.unlink()
                file.mkdir()
            case "other":
                file.write_bytes(chance.choice(sorted((folder / "val").iterdir())).read_bytes())
            case _:
                file.write_bytes(mangled_bytes.mangle(chance, file.read_bytes() or b"0"))
    more = ["--max-broken", "20"] if chance.random() < 0.5 else []
    return chance.choice(
        (
            ["calibrate", "net.onnx", *SMALL, *more, "-o", "out/c.npz"],
            ["calibrate", "net.onnx", "--images", "images", *more, "-o", "out/c.npz"],
            ["evaluate", "net.onnx", "models/half.onnx", "--eval", "images"],
        )
    )


def _rename(chance: random.Random, file: Path) -> None:
    new = words.name(chance).replace("/", "_").replace("\0", "_")[:200].strip(".") or "x"
    file.rename(file.with_name(new + file.suffix))


def array(chance: random.Random, folder: Path) -> Arguments:
    name = chance.choice(("stored.npz", "packed.npz", "one.npy"))
    file = folder / name
    by_part = mangled_arrays.mangle_npy if name.endswith("npy") else mangled_arrays.mangle
    spoil = by_part if chance.random() < 0.7 else mangled_bytes.mangle
    file.write_bytes(spoil(chance, file.read_bytes()))
    if chance.random() < 0.5:
        return ["calibrate", "net.onnx", "--images", name, "-o", "out/c.npz"]
    return ["evaluate", "net.onnx", "models/half.onnx", "--eval", name]


def calibration(chance: random.Random, folder: Path) -> Arguments:
    file = folder / "calibration.npz"
    shutil.copy(file, folder / "out/c.npz")  # one that a command goes on from
    file = chance.choice((file, file, folder / "out/c.npz"))
    spoil = mangled_arrays.mangle if chance.random() < 0.7 else mangled_bytes.mangle
    file.write_bytes(spoil(chance, file.read_bytes()))
    given = ["--calibration", "calibration.npz", "--effort", "none"]
    return chance.choice(
        (
            ["calibrate", "--show", "calibration.npz", "--method", "entropy", "--method", "mse"],
            ["calibrate", "--show", "calibration.npz", "--json"],
            ["calibrate", "--merge", "calibration.npz", "calibration.npz", "-o", "out/c.npz"],
            ["quantize", "net.onnx", *given, "-o", "out/q.onnx"],
            ["quantize", "net.onnx", *given, "--backend", "tensorrt", "-o", "out/q.onnx"],
            ["calibrate", "net.onnx", *SMALL, "-o", "out/c.npz"],
        )
    )


def plan(chance: random.Random, folder: Path) -> Arguments:
    plan, weights = folder / "plan.json", folder / "plan.learned.npz"
    if chance.random() < 0.6:
        damaged.tree_or_bytes(chance, plan)
    elif chance.random() < 0.5:
        weights.write_bytes(mangled_arrays.mangle(chance, weights.read_bytes()))
    else:
        weights.write_bytes(mangled_bytes.mangle(chance, weights.read_bytes()))
    if chance.random() < 0.3:
        text = plan.read_bytes().decode("utf-8", "replace")
        lines = [line for line in text.splitlines() if '"learned"' not in line]
        plan.write_text("\n".join(lines).replace(",\n}", "\n}"), encoding="utf-8")
    backend = ["--backend", chance.choice(("cpu", "cpu", "tensorrt"))]
    given = ["quantize", "net.onnx", *backend, "--plan", "plan.json", "-o", "out/q.onnx"]
    return given if chance.random() < 0.5 else [*given, "--calibration", "calibration.npz"]


def labels(chance: random.Random, folder: Path) -> Arguments:
    file = folder / "val" / chance.choice(("labels.csv", "labels.csv", "classes.txt"))
    lines = file.read_text().splitlines()
    match chance.choice(("bytes", "bytes", "cell", "cell", "line", "order", "none")):
        case "bytes":
            file.write_bytes(mangled_bytes.mangle(chance, file.read_bytes()))
        case "cell":
            at = chance.randrange(len(lines))
            cells = lines[at].split(",")
            new = chance.choice(
                (words.name(chance), str(words.integer(chance)), "Kind 3", "kind 99")
            )
            cells[chance.randrange(len(cells))] = new
            lines[at] = ",".join(cells)
            file.write_text("\n".join(lines), encoding="utf-8")
        case "line":
            lines.insert(
                chance.randrange(len(lines)), chance.choice((*lines, "a,b,c", '"', ",", "x"))
            )
            file.write_text("\n".join(lines), encoding="utf-8")
        case "order":
            chance.shuffle(lines)
            file.write_text("\n".join(lines), encoding="utf-8")
        case _:
            file.unlink()
    labels = ["--labels", "val/labels.csv"] if chance.random() < 0.5 else []
    return ["evaluate", "net.onnx", "models/half.onnx", "--eval", "val", *labels]

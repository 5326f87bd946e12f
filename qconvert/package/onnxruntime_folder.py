"""A folder that runs by itself with ONNX Runtime: the engine, its preprocessing, and a script."""

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from string import Template

from qconvert import backends
from qconvert.backends.base import Engine, LoadSpec
from qconvert.backends.cpu import PROVIDER, QUANT_PRECISION_ENTRY
from qconvert.backends.system_probe import INTEGER_FLAGS
from qconvert.core.errors import UsageError
from qconvert.core.tensors import fixed_batch
from qconvert.images.listing import CLASSES_FILE
from qconvert.images.preprocess import Preprocess
from qconvert.package import bundle
from qconvert.package.bundle import Bundle, ImagePreparation
from qconvert.report import markdown

INTEGER_LINES = """\
# CPUs without these instructions multiply bytes in 16 bits, which overflow unless told so.
cpu = Path("/proc/cpuinfo")
flags = set(cpu.read_text().split()) if cpu.exists() else set()
exact = "0" if flags & {FLAGS} else "1"
options.add_session_config_entry("KEY", exact)
"""

PLUGIN_SESSION = Template("""\
onnxruntime.register_execution_provider_library(plugin.get_ep_name(), plugin.get_library_path())
devices = [each for each in onnxruntime.get_ep_devices() if each.ep_name == "$provider"]
options.add_provider_for_devices(devices[:1], $own)
session = onnxruntime.InferenceSession(str(HERE / $file), options)
""")

PROVIDER_SESSION = Template("""\
session = onnxruntime.InferenceSession(
    str(HERE / $file), options, providers=[$providers]
)
""")

PROVIDER_CHECK = Template("""\
if session.get_providers()[0] != "$provider":
    sys.exit("$provider did not start")
""")


def session_code(engine: Engine, found: LoadSpec) -> str:
    """Return code that ends with a `session`; it knows `HERE`, the folder it stands in."""
    return "".join([*_import_lines(found), *_option_lines(found), *_session_lines(engine, found)])


def python_string(text: str) -> str:
    """Return a name from a file as Python, which it cannot leave."""
    # Not as JSON, which spells an emoji as two halves; Python would take them for two characters.
    escaped = text.encode("unicode_escape").decode().replace('"', '\\"')
    return f'"{escaped}"'


def _import_lines(found: LoadSpec) -> Iterator[str]:
    yield from (f"import {module}  # its libraries are looked for\n" for module in found.modules)
    if found.plugin:
        yield f"import {found.plugin} as plugin\n\n"
    elif found.providers[0][0] != PROVIDER:
        yield 'if hasattr(onnxruntime, "preload_dlls"):\n    onnxruntime.preload_dlls()\n'


def _option_lines(found: LoadSpec) -> Iterator[str]:
    yield "options = onnxruntime.SessionOptions()\noptions.log_severity_level = 3\n"
    if found.threads:
        yield f"options.intra_op_num_threads = {found.threads}\n"
    if not found.optimize_graph:
        level = "onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL"
        yield f"options.graph_optimization_level = {level}\n"
    for key, value in found.config_entries.items():
        yield f"options.add_session_config_entry({python_string(key)}, {python_string(value)})\n"
    if found.integer_kernels:
        flags = ", ".join(f'"{flag}"' for flag in INTEGER_FLAGS)
        yield INTEGER_LINES.replace("FLAGS", flags).replace("KEY", QUANT_PRECISION_ENTRY)


def _session_lines(engine: Engine, found: LoadSpec) -> Iterator[str]:
    folder, file = str(engine.folder), python_string(engine.files[0])
    first, own = found.providers[0]
    if found.plugin:
        yield PLUGIN_SESSION.substitute(
            provider=first, own=_provider_options(own, folder), file=file
        )
        return
    listed = (
        f'("{name}", {_provider_options(given, folder)})' if given else f'"{name}"'
        for name, given in found.providers
    )
    yield PROVIDER_SESSION.substitute(file=file, providers=", ".join(listed))
    if first != PROVIDER:
        yield PROVIDER_CHECK.substitute(provider=first)


def _provider_options(own: Mapping[str, str], folder: str) -> str:
    """Write options as Python; where they name the engine's folder, the script's is meant."""
    pairs = (
        f'"{key}": {"str(HERE)" if value == folder else repr(value)}' for key, value in own.items()
    )
    return "{" + ", ".join(pairs) + "}"


SCRIPT_HEAD = Template('''\
"""Runs $name: python run.py $what..."""

import sys
import tomllib
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).parent
''')

READ_FUNCTION = Template('''\
HOW = tomllib.loads((HERE / "preprocess.toml").read_text(encoding="utf-8"))


def read(file):
    """Return a picture as the model takes it."""
    image = ImageOps.exif_transpose(Image.open(file))
    if image.mode[:1] in "IF":
        sys.exit(f"{file}: more than 8 bits a channel")
    image, made = image.convert("$mode"), (HOW["width"], HOW["height"])
    scaled = $scaled
    if any(whole $unfit part for whole, part in zip(scaled, made)):
        sys.exit(f"{file}: {image.width}x{image.height} does not fit")
    # Only the part of the picture is resized that the crop leaves.
    by = [whole / part for whole, part in zip(image.size, scaled)]
    left, top = (round((whole - part) / 2) for whole, part in zip(scaled, made))
    right = min((left + made[0]) * by[0], image.width)
    bottom = min((top + made[1]) * by[1], image.height)
    method = Image.Resampling[HOW["interpolation"].upper()]
    image = image.resize(made, method, (left * by[0], top * by[1], right, bottom))
    pixels = np.asarray(image, np.float32).reshape(made[1], made[0], -1)$order
    mean, std = np.float32(HOW["mean"]), np.float32(HOW["std"])
    pixels = (pixels / np.float32(HOW["divisor"]) - mean) / std
    return pixels$layout[None].astype(HOW["type"])


''')

PRINT_SCORES = Template("""\
for file in sys.argv[1:]:
    scores = session.run([$output], $feeds)[0][0].ravel()
    for at in scores.argsort()[::-1][:5]:
        print(f"{file}: $class {scores[at]:.6g}")
""")

PRINT_OUTPUTS = Template("""\
for file in sys.argv[1:]:
    for output, answer in zip(session.get_outputs(), session.run(None, $feeds)):
        print(f"{file}: {output.name} {answer.shape}, {answer.min():.6g} to {answer.max():.6g}")
""")

CLASSES_LINE = 'CLASSES = (HERE / "classes.txt").read_text(encoding="utf-8").splitlines()\n'


def run_script(shipment: Bundle, found: LoadSpec) -> str:
    """Return the program."""
    kind = "PICTURE" if shipment.preparation is not None else "ARRAYS.npz"
    parts = [SCRIPT_HEAD.substitute(name=shipment.name, what=kind)]
    if shipment.preparation is None:
        parts[0] = parts[0].replace("import tomllib\n", "")
        parts[0] = parts[0].replace("from PIL import Image, ImageOps\n", "")
    else:
        parts.append(_read_function(shipment.preparation))
    parts.append(session_code(shipment.engine, found))
    parts.append(CLASSES_LINE if shipment.classes else "")
    parts.append("\n" + _print_loop(shipment))
    return "".join(parts)


def _read_function(pictures: ImagePreparation) -> str:
    done, target = pictures.preprocess, pictures.target
    return READ_FUNCTION.substitute(
        mode="L" if target.channels == 1 else "RGB",
        scaled=_scaled_size(done),
        unfit="!=" if done.crop == "none" else "<",
        order="[..., ::-1]" if done.colours == "bgr" else "",
        layout=".transpose(2, 0, 1)" if target.layout == "nchw" else "",
    )


def _scaled_size(done: Preprocess) -> str:
    if isinstance(done.resize, int):
        return '[int(HOW["resize"] * side / min(image.size)) for side in image.size]'
    return 'HOW["resize"]' if isinstance(done.resize, tuple) else "image.size"


def _print_loop(shipment: Bundle) -> str:
    scores, size = shipment.scores, fixed_batch(shipment.inputs) or 1
    picture = "read(file)" if size == 1 else f"np.repeat(read(file), {size}, 0)"
    feeds = "dict(np.load(file))"
    if shipment.preparation is not None:
        feeds = f'{{HOW["input"]: {picture}}}'
    if scores is None or shipment.preparation is None:
        return PRINT_OUTPUTS.substitute(feeds=feeds)
    name = "{CLASSES[at]}" if shipment.classes else "class {at}"
    return PRINT_SCORES.substitute(
        {"output": python_string(scores.name), "feeds": feeds, "class": name}
    )


# A name, extras, releases.
REQUIREMENT_PATTERN = re.compile(r"[\w.-]+(\[[\w,-]+\])?([<>=!~]{1,2}[\w.,<>=!~+*-]+)?")
SCRIPT, README = "run.py", "README.md"

README_TEXT = """\
# {name}

The engine `{engine}` with what it takes to run it, in Python 3.11 or newer:

```sh
pip install {packages}
python run.py {example}
```

`run.py` loads it with the session settings that it was measured with{made}.
"""


def write(shipment: Bundle, folder: Path) -> tuple[str, ...]:
    """Write the folder."""
    engine = shipment.engine
    found = backends.load(engine.backend).load_spec(engine)
    if found.cuda_graph:
        raise UsageError(
            "an engine that replays a CUDA graph runs on memory that is bound to it",
            hint="build it again without `cuda-graph`",
        )
    for name in engine.files:
        shutil.copyfile(engine.folder / name, folder / name)
    if shipment.classes:
        lines = "".join(f"{name}\n" for name in shipment.classes)
        (folder / CLASSES_FILE).write_text(lines, encoding="utf-8")
    if shipment.preparation is not None:
        bundle.write_preprocess_file(shipment, folder)
    (folder / SCRIPT).write_text(run_script(shipment, found), encoding="utf-8")
    (folder / README).write_text(_readme(shipment, found), encoding="utf-8")
    return ()


def _requirement(name: str) -> str:
    """Return a package for the command line of an installer, and nothing that a shell would run."""
    if not REQUIREMENT_PATTERN.fullmatch(name):
        raise UsageError(
            f"the engine was made with `{name}`, which is no package and its release",
            hint="build the engine again: `engine.json` was changed since",
        )
    return f'"{name}"'


def _readme(shipment: Bundle, found: LoadSpec) -> str:
    engine = shipment.engine
    pictures = shipment.preparation
    packages = [_requirement(each) for each in found.packages] + ["numpy"]
    runtime = engine.made_with.get("runtime", "")
    text = README_TEXT.format(
        name=shipment.name,
        engine=f"{engine.backend}-{engine.precision}",
        packages=" ".join([*packages, "pillow"] if pictures is not None else packages),
        example="PICTURE.jpg" if pictures is not None else "ARRAYS.npz",
        made=markdown.escape_text(f"; it was made with {runtime}") if runtime else "",
    )
    return f"{text}\n{bundle.describe_preparation(pictures)}" if pictures is not None else text

"""A folder that runs by itself with ONNX Runtime: the engine, its preprocessing, and a script."""

import re
import shutil
from pathlib import Path

from qconvert import backends
from qconvert.backends.outside import Loading
from qconvert.errors import UsageError
from qconvert.images.classes import CLASSES
from qconvert.report import markdown
from qconvert.serving import preprocess_file, run_script
from qconvert.serving.shipment import Shipment

# A name, extras, releases.
PACKAGE = re.compile(r"[\w.-]+(\[[\w,-]+\])?([<>=!~]{1,2}[\w.,<>=!~+*-]+)?")
SCRIPT, README = "run.py", "README.md"

TEXT = """\
# {name}

The engine `{engine}` with what it takes to run it, in Python 3.11 or newer:

```sh
pip install {packages}
python run.py {example}
```

`run.py` loads it with the session settings that it was measured with{made}.
"""


def write(shipment: Shipment, folder: Path) -> tuple[str, ...]:
    """Write the folder."""
    engine = shipment.engine
    found = backends.load(engine.backend).loading(engine)
    if found.captured:
        raise UsageError(
            "an engine that replays a CUDA graph runs on memory that is bound to it",
            hint="build it again without `cuda-graph`",
        )
    for name in engine.files:
        shutil.copyfile(engine.folder / name, folder / name)
    if shipment.classes:
        lines = "".join(f"{name}\n" for name in shipment.classes)
        (folder / CLASSES).write_text(lines, encoding="utf-8")
    if shipment.pictures is not None:
        preprocess_file.write(shipment, folder)
    (folder / SCRIPT).write_text(run_script.script(shipment, found), encoding="utf-8")
    (folder / README).write_text(_readme(shipment, found), encoding="utf-8")
    return ()


def _package(name: str) -> str:
    """Return a package for the command line of an installer, and nothing that a shell would run."""
    if not PACKAGE.fullmatch(name):
        raise UsageError(
            f"the engine was made with `{name}`, which is no package and its release",
            hint="build the engine again: `engine.json` was changed since",
        )
    return f'"{name}"'


def _readme(shipment: Shipment, found: Loading) -> str:
    engine = shipment.engine
    pictures = shipment.pictures
    packages = [_package(each) for each in found.packages] + ["numpy"]
    runtime = engine.made_with.get("runtime", "")
    text = TEXT.format(
        name=shipment.name,
        engine=f"{engine.backend}-{engine.precision}",
        packages=" ".join([*packages, "pillow"] if pictures is not None else packages),
        example="PICTURE.jpg" if pictures is not None else "ARRAYS.npz",
        made=markdown.text(f"; it was made with {runtime}") if runtime else "",
    )
    return f"{text}\n{preprocess_file.told(pictures)}" if pictures is not None else text

"""docker/lab.py FOLDER: lay out the GPU laboratory as docker/check mounts it into the gpu image.

FOLDER/driver is what a driver brings, FOLDER/nvidia and FOLDER/tensorrt_libs what packages bring.
FOLDER/python holds what computes the answers, and FOLDER/script.json what the machine is.
"""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.gpu_lab.lab import environment, generate
from tests.gpu_lab.lab.script import Script


def main(folder: Path) -> None:
    """Copy the compiled libraries and the modules."""
    for name, library in generate.LIBRARIES.items():
        if library.folder == generate.TENSORRT and not name.endswith(".so.10"):
            continue  # the image has TensorRT 10
        place = folder / library.folder
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(environment.fakes() / name, place)
    shutil.copy(environment.SITE / "tensorrt_libs/__init__.py", folder / generate.TENSORRT)
    modules = folder / "python"
    modules.mkdir()
    for path in environment.SITE.glob("*.py"):
        shutil.copy(path, modules)
    # In a machine of the laboratory a .pth file imports it, which a folder of PYTHONPATH cannot.
    (modules / "sitecustomize.py").write_text("import gpu_lab_cuda\n")
    (folder / "script.json").write_text(Script().text())
    # Compiled libraries are private to their owner; the user of the image is another.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The folders and variables that `docker/check` gives the image for GPUs, tried outside of one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.docs.commands import ROOT
from tests.gpu_lab.lab import environment


def test_doctor_runs_over_the_folders_that_an_image_mounts(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "docker/lab.py", tmp_path / "lab"], check=True)
    # As in the image: real packages, and no file of the laboratory.
    machine = environment.make_host(tmp_path / "machine", libraries=())
    [site] = machine.glob("lib/python3*/site-packages")
    for path in site.glob("gpu_lab*"):
        path.unlink()
    shutil.rmtree(site / "tensorrt_libs")
    for name in ("nvidia", "tensorrt_libs"):
        (site / name).symlink_to(tmp_path / "lab" / name)
    (site / "qconvert").symlink_to(ROOT / "qconvert")
    process = subprocess.run(
        [machine / "bin/python", "-P", "-m", "qconvert", "doctor", "--json"],
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "LD_LIBRARY_PATH": str(tmp_path / "lab/driver"),
            "PYTHONPATH": str(tmp_path / "lab/python"),
            "GPU_LAB_SCRIPT": (tmp_path / "lab/script.json").read_text(),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    backends = json.loads(process.stdout)["backends"]
    assert (backends["cuda"]["runs"], backends["tensorrt"]["runs"]) == (True, True), backends

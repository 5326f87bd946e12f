"""The wheel contains everything that the demo needs."""

import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from qconvert.demo.demo_files import NETWORKS

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
def test_wheel_contains_the_demo_networks_and_their_descriptions(tmp_path: Path) -> None:
    (file,) = WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(file) as wheel:
        for network in NETWORKS.values():
            for path in (network, network.with_suffix(".md")):
                name = path.relative_to(ROOT).as_posix()
                assert wheel.read(name) == path.read_bytes()
        assert not [name for name in wheel.namelist() if name.startswith("calib_data")]

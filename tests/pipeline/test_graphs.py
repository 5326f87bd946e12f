"""What decides a graph is in the recipe by which the store finds it."""

from pathlib import Path

from qconvert.backends.base import EngineVariant
from qconvert.core import config_file
from qconvert.run import calibration_sets
from qconvert.run.calibrate import CalibrationRequest, calibrate
from qconvert.run.variant_graphs import make_graph
from qconvert.run.variants import BuildInputs
from tests.run.test_search_job import STORE, basis, quiet


def test_a_run_that_goes_on_does_not_give_a_new_one_its_graph() -> None:
    new = basis()
    calibrate(new.config, CalibrationRequest(Path("c.npz")), STORE, quiet)
    given = {"model": "m.onnx", "calibration.images": "images"}
    found = calibration_sets.load(new.loaded, config_file.load(None, given), Path("c.npz"))
    resumed = BuildInputs(new.loaded, new.config, found)
    first, second, again = (
        make_graph(EngineVariant("cpu", "int8"), each, STORE, quiet).folder
        for each in (resumed, new, new)
    )
    assert first != second == again

"""What decides a graph is in the recipe by which the store finds it."""

from pathlib import Path

from qconvert import config_file
from qconvert.pipeline import seen
from qconvert.pipeline.calibrate import Job, calibrate
from qconvert.pipeline.graphs import Basis, graph_of
from qconvert.pipeline.variants import Variant
from tests.pipeline.test_sampling import STORE, basis, quiet


def test_a_run_that_goes_on_does_not_give_a_new_one_its_graph() -> None:
    new = basis()
    calibrate(new.config, Job(Path("c.npz")), STORE, quiet)
    given = {"model": "m.onnx", "calibration.images": "images"}
    found = seen.from_file(new.ready, config_file.load(None, given), Path("c.npz"))
    resumed = Basis(new.ready, new.config, found)
    first, second, again = (
        graph_of(Variant("cpu", "int8"), each, STORE, quiet).folder for each in (resumed, new, new)
    )
    assert first != second == again

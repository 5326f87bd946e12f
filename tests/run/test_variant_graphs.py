"""The cache key of a graph holds everything that decides the graph."""

from dataclasses import replace
from pathlib import Path

import pytest

from qconvert.backends.base import EngineVariant
from qconvert.run.calibrate import calibrate, load_calibration_set
from qconvert.run.variants import make_graph
from tests.run.calibrated import calibrated_inputs


@pytest.mark.slow
def test_graph_of_a_resumed_run_is_not_reused_for_a_new_run() -> None:
    new, context = calibrated_inputs()
    calibrate(context, Path("c.npz"))
    resumed = replace(new, calibration=load_calibration_set(new.loaded, context, Path("c.npz")))
    of_resumed, of_new, of_new_again = (
        make_graph(EngineVariant("cpu", "int8"), inputs, context).folder
        for inputs in (resumed, new, new)
    )
    assert of_resumed != of_new == of_new_again

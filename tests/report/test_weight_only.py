"""The sentence about weight-only engines that are not faster than float."""

from dataclasses import replace

from qconvert.core.config import GateConfig
from qconvert.report.verdict import conclude
from tests.report import reports


def test_slower_weight_only_engine_is_for_memory() -> None:
    float_row, _, int8 = reports.cpu()
    row = replace(
        int8,
        name="cpu-int4-weights",
        precision="int4-weights",
        engine=reports.engine("cpu-int4-weights", 3.2),
        latency=(reports.timing(27.5),),
    )
    report = conclude(reports.report(float_row, row), GateConfig())
    assert report.best == "cpu-fp32"
    assert (
        "weight-only INT4 on `cpu` takes 3.2 MB instead of 18.7, and is not faster than FP32 "
        "(27.50 against 24.00 ms): use it only where memory decides, as with large products at "
        "batch 1"
    ) in report.notes
    as_large = replace(row, engine=reports.engine("cpu-int4-weights", 20.0))
    report = conclude(reports.report(float_row, as_large), GateConfig())
    assert any("saves no bytes" in note for note in report.notes)

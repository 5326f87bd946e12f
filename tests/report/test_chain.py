"""The table from file to predictions, and what it says of INT8."""

from dataclasses import replace

from qconvert.core.config import GateConfig
from qconvert.measure.chain import ChainTimes
from qconvert.report.chain import chain_notes, chain_table
from qconvert.report.verdict import conclude
from tests.report import evidence

TIMES = ChainTimes(
    24, 2.0, 1.0, {"cpu-fp32": 9.0, "cpu-int8": 3.0}, {"cpu-fp32": 1.0, "cpu-int8": 1.0}
)


def test_table_has_a_row_for_each_timed_engine_and_the_speed_of_the_whole() -> None:
    report = replace(evidence.explained(), chain=TIMES)
    rows = {row[0]: row[1:] for row in chain_table(report).rows}
    assert rows["cpu-fp32"] == ("2.00", "1.00", "9.00", "1.00", "13.00", "1.00×")
    assert rows["cpu-int8"][-1] == "1.86×"
    assert set(rows) == set(TIMES.network_ms)


def test_note_tells_the_network_from_the_whole_chain() -> None:
    (note,) = chain_notes(replace(evidence.explained(), chain=TIMES))
    assert "the network 3.00× as fast, and the whole chain from file to predictions 1.86×" in note
    assert note in conclude(replace(evidence.explained(), chain=TIMES), GateConfig()).notes


def test_classifiers_have_neither() -> None:
    assert not chain_table(evidence.explained()).rows
    assert not list(chain_notes(evidence.explained()))

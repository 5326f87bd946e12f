"""The ranges of a calibration as a table: what was seen, what each method keeps and clips."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from qconvert.calibrate import methods as registry
from qconvert.calibrate.calibration import Calibration
from qconvert.calibrate.evidence import bars, clipped_share, drift
from qconvert.cli.console import Column, Table
from qconvert.scales import Grid, Range

BLOCKS = " ▁▂▃▄▅▆▇█"
BARS = 16


@dataclass(frozen=True)
class Kept:
    """What one method keeps of a tensor, and the share of values outside."""

    method: str
    low: float
    high: float
    clipped: float


@dataclass(frozen=True)
class Row:
    """One tensor."""

    tensor: str
    low: float
    high: float
    kept: tuple[Kept, ...]
    drift: float
    histogram: tuple[float, ...]


def rows(found: Calibration, methods: Sequence[str], grid: Grid) -> list[Row]:
    """Return a row for each tensor that was counted, in the order of the graph."""
    by_method = {name: registry.ranges(found.summaries, name, grid) for name in methods}
    return [
        Row(
            tensor,
            seen.low,
            seen.high,
            tuple(
                _kept(name, by_method[name][tensor], clipped_share(seen, by_method[name][tensor]))
                for name in methods
            ),
            drift(seen),
            tuple(float(each) for each in bars(seen, BARS)),
        )
        for tensor, seen in found.summaries.items()
        if seen.size
    ]


def table(rows: Sequence[Row], methods: Sequence[str]) -> Table:
    """Return the rows as people read them; the tensor's shape of values comes last."""
    columns = [Column("tensor"), Column("min", "right", rank=2), Column("max", "right", rank=2)]
    for name in methods:
        columns += [Column(name, "right"), Column("clipped", "right", rank=1)]
    columns += [Column("values, log scale", rank=3)]
    return Table(columns, [_cells(row) for row in rows])


def as_json(found: Calibration, rows: Sequence[Row]) -> dict[str, object]:
    """Return everything the table shows, and where it comes from."""
    return {
        "fingerprint": found.origin.fingerprint,
        "images": int(found.done.size),
        "preprocessing": found.origin.preprocessing,
        "runtime": found.origin.runtime,
        "exact": found.origin.exact,
        "tensors": [asdict(row) for row in rows],
    }


def _kept(method: str, kept: Range, clipped: float) -> Kept:
    return Kept(method, kept.low, kept.high, clipped)


def _cells(row: Row) -> list[str]:
    cells = [row.tensor, f"{row.low:.4g}", f"{row.high:.4g}"]
    for kept in row.kept:
        cells += [f"{kept.low:.4g} … {kept.high:.4g}", f"{100 * kept.clipped:.3f} %"]
    return [*cells, sparkline(row.histogram)]


def sparkline(counts: Sequence[float]) -> str:
    """Draw counts as blocks; a block more is a power of ten or so more values."""
    from math import log1p

    top = log1p(max(counts, default=0.0)) or 1.0
    heights = [log1p(max(0.0, count)) / top for count in counts]
    return "".join(BLOCKS[round(height * (len(BLOCKS) - 1))] for height in heights)

"""What a summary says beyond a range: its shape, what a range clips, whether it still moves."""

import numpy as np

from qconvert.calibrate.histogram import Floats, histogram
from qconvert.calibrate.summary import Summary
from qconvert.scales import Range


def bars(summary: Summary, count: int) -> Floats:
    """Return how many values fall in each of `count` equal parts from the lowest to the highest."""
    seen = histogram(summary)
    ends = np.linspace(summary.low, summary.high, count + 1)
    # Rounded a little too low, the last end would leave the highest value out.
    ends[-1] = seen.reach
    bounds = seen.below(ends)
    bounds[0] = 0.0
    return np.diff(bounds)


def clipped_share(summary: Summary, kept: Range) -> float:
    """Return which share of all values lies outside of a range."""
    seen = histogram(summary)
    if not seen.total:
        return 0.0
    # The next number below `low`, so that values on it count as kept.
    ends = np.array([np.nextafter(kept.low, -np.inf), kept.high])
    below, up_to = seen.below(ends)
    return float(np.clip((below + seen.total - up_to) / seen.total, 0.0, 1.0))


def drift(summary: Summary) -> float:
    """Return how far the ends moved from the third quarter of the images to the last.

    Each end is averaged over the images of a quarter; the larger of the two moves is given as a
    share of the span. Below 8 images there are no quarters to speak of, and the answer is 1.
    """
    finite = summary.finite
    ends = np.stack([summary.lows[finite], summary.highs[finite]]).astype(np.float64)
    quarter = ends.shape[1] // 4
    if quarter < 2:
        return 1.0
    before = ends[:, -2 * quarter : -quarter].mean(axis=1)
    after = ends[:, -quarter:].mean(axis=1)
    span = max(before[1], after[1]) - min(before[0], after[0])
    return float(np.abs(after - before).max() / span) if span else 0.0

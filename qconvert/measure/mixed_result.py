"""The result of a search for mixed precision: the cost of each block, and of sets of blocks."""

from dataclasses import dataclass
from typing import Literal

LossMeasure = Literal["top-1", "agreement", "certainty", "metric"]
SearchOutcome = Literal["mixed", "int8", "float", "none"]


@dataclass(frozen=True)
class PredictionLoss:
    """Percentage points lost against FP32, with half the width of the 95 % interval.

    `by` is what was counted: correct predictions, equal predictions, or for each changed prediction
    the probability that FP32 gives up; `metric` is that of a task, such as mAP. `agreement` is in
    percent.
    """

    pp: float
    half_width_pp: float
    by: LossMeasure
    images: int
    agreement: float


@dataclass(frozen=True)
class BlockGain:
    """By how much keeping one block in float lowers the output error.

    `share` is the block's part of all multiplications, `nodes` how many of its nodes are INT8.
    """

    block: str
    nodes: int
    share: float
    gain: float
    half_width: float


@dataclass(frozen=True)
class BlockTime:
    """Milliseconds of the operators of one block in the INT8 engine and in the float engine."""

    block: str
    int8_ms: float
    float_ms: float


@dataclass(frozen=True)
class SearchStep:
    """A set of blocks kept in float (`lifted`): its output error, loss and latency.

    `search` is the loss on the images of the search, `confirmed` that on all evaluation images
    where the set was tried on them. `ms` is None where nothing was timed.
    """

    lifted: tuple[str, ...]
    share: float
    distance: float
    search: PredictionLoss
    confirmed: PredictionLoss | None = None
    ms: float | None = None


@dataclass(frozen=True)
class MixedResult:
    """A whole search: `mixed` found a set, `int8` needs none, `float` is as fast as INT8.

    With `none` no set meets both budget and latency. `why` is the sentence for the user. `rest` is
    the precision of the blocks kept in float; `float_ms` is the latency of that precision alone.
    `times` are those of blocks, where sets were chosen `by_latency` too, and `faster` is the set
    that runs faster in float: every other set includes it.
    """

    outcome: SearchOutcome
    why: str
    budget: float
    by: LossMeasure
    rest: str
    int8: SearchStep
    gains: tuple[BlockGain, ...] = ()
    steps: tuple[SearchStep, ...] = ()
    chosen: SearchStep | None = None
    max_latency: float | None = None
    float_ms: float | None = None
    untimed: str = ""
    by_latency: bool = False
    times: tuple[BlockTime, ...] = ()
    faster: SearchStep | None = None
    notes: tuple[str, ...] = ()

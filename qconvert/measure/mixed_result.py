"""What a search for mixed precision found: the cost of each block, and of sets lifted together."""

from dataclasses import dataclass
from typing import Literal

LossMeasure = Literal["top-1", "agreement", "certainty"]
SearchOutcome = Literal["mixed", "int8", "float", "none"]


@dataclass(frozen=True)
class PredictionLoss:
    """Points that answers lost against FP32, with half the width of the 95 % interval.

    `by` is what was counted: right answers, the same answers, or for each changed answer the
    probability that FP32 itself gives up. `agreement` is in percent.
    """

    pp: float
    half_width_pp: float
    by: LossMeasure
    images: int
    agreement: float


@dataclass(frozen=True)
class BlockGain:
    """What lifting a block alone brings: how much nearer the outputs come to those of FP32.

    `share` is the block's part of all multiplications, `nodes` how many of its nodes are INT8.
    """

    block: str
    nodes: int
    share: float
    gain: float
    half_width: float


@dataclass(frozen=True)
class SearchStep:
    """A set of lifted blocks: how far its outputs are from FP32, what it loses, how long it takes.

    `search` is the loss on the images of the search, `confirmed` on all evaluation images where the
    set was tried on them. Milliseconds are None where nothing was timed.
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

    With `none` no set keeps the budget and the latency. `why` is the sentence for the user.
    `rest` is the precision of what is lifted; the times of it alone and of INT8 stand beside.
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
    notes: tuple[str, ...] = ()

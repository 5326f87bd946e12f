"""Everything a run measured, as one frozen tree: the JSON is this, and renderers only read it.

What was not measured is None, with the reason in `unmeasured` under the name of the field.
"""

from dataclasses import dataclass, field
from typing import Literal

from qconvert.measure.accuracy import Accuracy
from qconvert.measure.evidence import Evidence
from qconvert.measure.latency import Latency
from qconvert.measure.layer_errors import LayerError
from qconvert.measure.mixed_result import MixedResult

SCHEMA = 2


@dataclass(frozen=True)
class EngineInfo:
    """The files of an engine, relative to the run, and what made them.

    `bytes` counts what is loaded at run time, `sha256` is over those files in their order.
    """

    path: str
    files: tuple[str, ...]
    bytes: int
    sha256: str
    build_seconds: float
    stored: bool
    made_with: dict[str, str]


@dataclass(frozen=True)
class UnquantizedNode:
    """A node that could be quantized and was not."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class OperatorCoverage:
    """How many nodes of an operator could be quantized, and how many are."""

    op: str
    nodes: int
    quantized: int


@dataclass(frozen=True)
class MemoryUse:
    """Bytes at work: the peak of a fresh process, and what the device gave."""

    peak_rss_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class VariantResult:
    """One engine: a backend in a precision.

    `by_provider` and `by_precision` count nodes as they really run. `quantized` of `candidates`
    nodes are INT8 in the graph; `unquantized` names the others. `layers` are in the order of the network.
    """

    name: str
    backend: str
    precision: str
    engine: EngineInfo | None
    latency: tuple[Latency, ...] = ()
    accuracy: Accuracy | None = None
    memory: MemoryUse | None = None
    by_provider: dict[str, int] = field(default_factory=dict)
    by_precision: dict[str, int] | None = None
    quantized: int = 0
    candidates: int = 0
    unquantized: tuple[UnquantizedNode, ...] = ()
    unmeasured: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layers: tuple[LayerError, ...] = ()
    operators: tuple[OperatorCoverage, ...] = ()


GateName = Literal["max-drop", "min-agreement", "max-latency", "min-speedup", "max-size"]


@dataclass(frozen=True)
class GateResult:
    """A limit that the user set, judged on one variant; `value` is None where it is unmeasured.

    `value` is in the unit of the limit and judged as it is; `half_width` is half its 95 % interval.
    `why` says why nothing was measured, or what the value was measured on.
    """

    name: GateName
    variant: str
    value: float | None
    limit: float
    passed: bool
    why: str = ""
    half_width: float | None = None


@dataclass(frozen=True)
class ImageSetInfo:
    """Images that were used: where they lie, how many, and one hash over names and contents.

    `prepared` is what was done to them where that is not `preprocess` of the report.
    """

    path: str
    count: int
    sha256: str = ""
    prepared: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A run.

    Sizes and speeds compare with the fp32 engine of the same backend; accuracy compares with the
    FP32 model on the CPU, whose own accuracy is `baseline`. `bytes` of the baseline are those of
    the FP32 ONNX file. `preprocess` is what is done to images for these engines, with every size
    settled.

    `gates`, `notes`, `best` and `verdict` follow from the rest. `run_notes` is what the steps said on
    their way, and comes first in `notes`. `mixes` has by backend what the searches for mixed
    precision found.
    """

    tool: str
    created: str
    model: str
    command: str
    config: dict[str, object]
    machine: dict[str, str]
    baseline: Accuracy | None
    baseline_bytes: int
    variants: tuple[VariantResult, ...]
    gates: tuple[GateResult, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    verdict: str = ""
    best: str = ""
    run_notes: tuple[str, ...] = ()
    preprocess: dict[str, object] = field(default_factory=dict)
    calibration: ImageSetInfo | None = None
    evaluation: ImageSetInfo | None = None
    shared_images: int = 0
    mixes: dict[str, MixedResult] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)
    schema: int = SCHEMA

"""Everything that a run measured, as one frozen tree; the JSON file has the same structure.

A value that was not measured is None, with the reason in `unmeasured` under the name of the field.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

from qconvert.measure.accuracy import Accuracy
from qconvert.measure.chain import ChainTimes
from qconvert.measure.evidence import Evidence
from qconvert.measure.latency import Latency
from qconvert.measure.layer_errors import LayerError
from qconvert.measure.mixed_result import MixedResult
from qconvert.measure.training_curve import TrainingCurve

SCHEMA = 2

GateName = Literal["max-drop", "min-agreement", "max-latency", "min-speedup", "max-size"]


@dataclass(frozen=True)
class EngineInfo:
    """The files of an engine, relative to the run, and the versions that built it.

    `bytes` counts what is loaded at run time; `sha256` hashes those files in their order.
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
    """A node that has integer kernels but stayed in float."""

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
    """Memory at run time in bytes: the peak of a fresh process, and what the device allocated."""

    peak_rss_bytes: int | None = None
    device_bytes: int | None = None


@dataclass(frozen=True)
class VariantResult:
    """One engine: a backend in a precision.

    `by_provider` and `by_precision` count nodes as executed. `quantized` of `candidates`
    nodes are INT8 in the graph; `unquantized` names the others. `layers` follow the network.
    `training` is the course of the training of its weights, if they were trained.
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
    training: TrainingCurve | None = None


@dataclass(frozen=True)
class GateResult:
    """A limit that the user set and how one variant met it; `value` is None where unmeasured.

    `value` and its interval's `half_width` are in the unit of the limit. `why` is the reason why
    nothing was measured, or the conditions of the measurement. `metric` is what `max-drop` counts.
    """

    name: GateName
    variant: str
    value: float | None
    limit: float
    passed: bool
    why: str = ""
    half_width: float | None = None
    metric: str = ""


@dataclass(frozen=True)
class ImageSetInfo:
    """A set of images: its path, its size, and one hash over names and contents.

    `prepared` is their preprocessing where it differs from `preprocess` of the report.
    """

    path: str
    count: int
    sha256: str = ""
    prepared: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A run.

    Sizes and speeds compare with the fp32 engine of the same backend; accuracy compares with the
    FP32 model on the CPU, whose own accuracy is `baseline`. `baseline_bytes` are those of the FP32
    ONNX file. `preprocess` is the preprocessing of the engines, with every size resolved. `mixes`
    has the result of each search for mixed precision by its backend. `chain` has the times from
    file to predictions, of tasks whose outputs are decoded.

    `gates`, `notes`, `best` and `verdict` follow from the rest. `run_notes` are the notes of the
    steps, which come first in `notes`.
    """

    schema: int = field(default=SCHEMA, kw_only=True)
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
    run_notes: Annotated[tuple[str, ...], Field(alias="heard")] = ()
    preprocess: dict[str, object] = field(default_factory=dict)
    calibration: ImageSetInfo | None = None
    evaluation: ImageSetInfo | None = None
    shared_images: int = 0
    mixes: dict[str, MixedResult] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)
    chain: ChainTimes | None = None

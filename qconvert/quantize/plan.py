"""The plan: for every node that could be quantized its quantizers, or the reason it has none.

A plan is data: `plan.json` can be read, edited and replayed on the model it was made for.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pydantic

from qconvert.errors import UsageError, reason
from qconvert.scales import Grid, Range

FORMAT = 1
Rest = Literal["fp32", "fp16", "bf16"]


class Closed:
    """Refuse keys that mean nothing."""

    __pydantic_config__ = pydantic.ConfigDict(extra="forbid")


@dataclass(frozen=True)
class Weight(Closed):
    """Which input of a node is its weight, and the axis whose indices each get a scale."""

    slot: int
    axis: int


@dataclass(frozen=True)
class Layer(Closed):
    """What happens to one node.

    `inputs` are the places of the activations it reads rounded. With `output` everyone reads its
    results rounded. `left` is the reason why nothing happens; `note` says what is special.
    """

    op: str
    inputs: tuple[int, ...] = ()
    weight: Weight | None = None
    output: bool = False
    left: str = ""
    note: str = ""


@dataclass(frozen=True)
class Plan(Closed):
    """Everything that `apply` does to a model; `model` is the fingerprint of that model.

    `tensors` has the range of each tensor that is rounded. `integer_bias` says that biases become
    integers too. `method` and `weight_method` say how ranges and the steps of weights are chosen.
    Steps are exact in the type of `rest`, in which the other operators run. `equalized` has for
    some tensors what each channel is divided by first. `learned` is the digest of the weights that
    were learned with the plan, which lie in a file beside it.
    """

    model: str
    scheme: str
    method: str
    weight_method: Literal["mse", "minmax"]
    activations: Grid
    weights: Grid
    integer_bias: bool
    layers: dict[str, Layer]
    tensors: dict[str, Range]
    rest: Rest = "fp32"
    equalized: dict[str, tuple[float, ...]] = field(default_factory=dict)
    learned: str = ""
    format: int = FORMAT

    def __post_init__(self) -> None:
        if not (self.weights.symmetric and self.weights.signed):
            raise ValueError("weights are symmetric around zero")

    @property
    def quantized(self) -> int:
        """How many nodes are quantized."""
        return sum(not layer.left for layer in self.layers.values())


ADAPTER = pydantic.TypeAdapter(Plan)


def to_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values; what a layer does not have is left out."""
    told: dict[str, Any] = ADAPTER.dump_python(plan, mode="json", exclude_defaults=True)
    grids = {"activations": asdict(plan.activations), "weights": asdict(plan.weights)}
    return {"format": plan.format, **told, **grids}


def dumps(plan: Plan) -> str:
    """Return the plan as text with a line for each layer and tensor, which is easy to edit."""
    told = to_json(plan)
    lines = [f"  {json.dumps(key)}: {_lines(value)}" for key, value in told.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(value: object) -> str:
    if not isinstance(value, dict) or not any(
        isinstance(each, dict | list) for each in value.values()
    ):
        return json.dumps(value, ensure_ascii=False)
    inner = [
        f"    {json.dumps(key, ensure_ascii=False)}: {json.dumps(each, ensure_ascii=False)}"
        for key, each in value.items()
    ]
    return "{\n" + ",\n".join(inner) + "\n  }"


def load(path: Path) -> Plan:
    """Read a plan file; refuse what is not one, with the line or key that is wrong."""
    try:
        return loads(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{path}` cannot be read: {reason(error)}",
            hint="`qconvert quantize --plan-out PLAN.json` writes a plan",
        ) from None


def loads(text: str, name: str) -> Plan:
    """Read a plan; `name` says in errors where it came from."""
    try:
        _require_format(json.loads(text), name)
        plan = ADAPTER.validate_json(text, strict=True)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"`{name}` is not a plan",
            details=[f"file: not JSON: {reason(error)}"],
            hint="`qconvert quantize --plan-out PLAN.json` writes a plan",
        ) from None
    except pydantic.ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in error.errors()
        ]
        raise UsageError(
            f"`{name}` is not a plan",
            details=wrong[:5],
            hint="a plan has the keys that `qconvert quantize --plan-out PLAN.json` writes",
        ) from None
    return plan


def _require_format(told: object, name: str) -> None:
    found = told.get("format", FORMAT) if isinstance(told, dict) else FORMAT
    if found != FORMAT:
        raise UsageError(
            f"`{name}` has plan format {found}, this version reads {FORMAT}",
            hint="make the plan again with this version",
        )

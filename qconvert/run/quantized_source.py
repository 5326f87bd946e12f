"""Models that come quantized: read as a float model, with a plan from what they were trained for."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qconvert import backends
from qconvert.core import onnx_io
from qconvert.core.config import QuantizeConfig
from qconvert.core.errors import QConvertError, UsageError
from qconvert.core.progress import start_step
from qconvert.graph.patterns import is_quantized
from qconvert.quantize.plan import RestPrecision
from qconvert.quantize.plan_files import PLAN_METADATA_KEY
from qconvert.quantize.trained_plan import describe_repairs, describe_training, make_trained_plan
from qconvert.quantize.trained_qdq import TrainedModel, read_qdq
from qconvert.run.context import JobContext, cache_key
from qconvert.run.export import load_and_clean
from qconvert.run.training import TRAIN, TrainedPlan
from qconvert.sources import MODEL_FILE, LoadedModel

ISLANDS_METADATA_KEY = "qconvert.islands"
# What the training has decided; `effort` has nothing to do there.
DECIDED = ("method", "exclude", "only", "keep", "weight_bits", "activation_bits")


@dataclass(frozen=True)
class FloatModel:
    """A float model, and how it is quantized already; `trained` is None for an ordinary model."""

    loaded: LoadedModel
    trained: TrainedModel | None = None


def load_float(context: JobContext, *, quantizing: bool) -> FloatModel:
    """Load a model, of a quantized one the float model inside it.

    One that cannot be read stays as it is where nothing is to be quantized.
    """
    loaded = load_and_clean(context)
    if not is_quantized(loaded.model):
        return FloatModel(loaded)
    end = start_step(context.progress, "read", "reading the quantizers of the model")
    try:
        trained = read_qdq(loaded.model)
    except QConvertError:
        if quantizing:
            raise
        return FloatModel(loaded)

    def make(folder: Path) -> None:
        onnx_io.save(trained.model, folder / MODEL_FILE)

    fingerprint = onnx_io.fingerprint(trained.model)
    metadata = dict(loaded.model.metadata_props)
    key = cache_key(loaded.source.name, fingerprint, metadata=metadata)
    entry, hit = context.cache.get_or_make("read", key, make)
    model = onnx_io.load(entry / MODEL_FILE)
    for name in (PLAN_METADATA_KEY, ISLANDS_METADATA_KEY):
        model.metadata_props.pop(name, None)
    end(describe_repairs(trained), hit)
    loaded = replace(loaded, model=model, path=entry / MODEL_FILE)
    return FloatModel(loaded, replace(trained, model=model))


def plan_of_training(
    trained: TrainedModel, backend: str, rest: RestPrecision, settings: QuantizeConfig
) -> TrainedPlan:
    """Return the plan for a backend that computes what the model was trained to compute."""
    scheme = backends.requirements(backend).schemes.get("int8")
    if scheme is None:
        raise UsageError(f"`{backend}` has no INT8 of its own", hint="choose another backend")
    defaults, chosen = asdict(QuantizeConfig()), asdict(settings)
    if changed := next((name for name in DECIDED if chosen[name] != defaults[name]), ""):
        option = f"--{changed.replace('_', '-')}"
        raise UsageError(
            f"`{option}` is decided by the training: this model is quantized already",
            hint=f"leave `{option}` out, or quantize the float model it was made from",
        )
    if settings.effort == TRAIN:
        raise UsageError(
            "`--effort train` trains what qconvert has quantized, and this model is trained already",
            hint="leave `--effort train` out",
        )
    # Weights stay as they are trained, unless pairs are to be limited.
    scheme = replace(scheme, portable=bool(settings.portable) and scheme.integer_bias)
    saved = make_trained_plan(trained, scheme, rest)
    return TrainedPlan(saved, describe_training(trained, saved), None)

"""Training of a plan, where the settings ask for it; torch is imported only then."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

from qconvert.core.cache import Cache
from qconvert.core.config import QuantizeConfig
from qconvert.core.errors import Unavailable, UsageError
from qconvert.core.number_format import count
from qconvert.core.pip_command import pip_install
from qconvert.measure.training_curve import TrainingCurve
from qconvert.optimize.candidate import Candidate
from qconvert.quantize.plan_files import PlanWithWeights
from qconvert.run.context import JobContext, open_calibration_images
from qconvert.sources import LoadedModel

TRAIN: Literal["train"] = "train"
# The effort at whose result training starts.
BEFORE_TRAINING = "thorough"


@dataclass(frozen=True)
class TrainedPlan:
    """A plan after its training: the plan before it, where training gained nothing."""

    saved: PlanWithWeights
    notes: tuple[str, ...]
    curve: TrainingCurve | None


def require_torch(settings: QuantizeConfig) -> None:
    """Raise where the settings ask for training, and torch is not installed."""
    if settings.effort == TRAIN and find_spec("torch") is None:
        raise Unavailable(
            "training needs PyTorch, which is not installed", hint=pip_install("torch")
        )


def require_trainable(loaded: LoadedModel, context: JobContext) -> None:
    """Raise where the settings ask for training that cannot work, before anything is measured."""
    settings = context.config.calibration
    if context.config.quantize.effort != TRAIN:
        return
    from qconvert.train.distillation import MIN_IMAGES
    from qconvert.train.operators import require_operators

    if settings.images is None:
        raise UsageError(
            "training needs the calibration images", hint="name their folder: `--images PATH`"
        )
    images = len(open_calibration_images(loaded.source, context, settings.count).names)
    if images < MIN_IMAGES:
        raise UsageError(
            f"`{settings.images}` has {count(images, 'image')}; training needs at least "
            f"{MIN_IMAGES}: fewer are learned by heart",
            hint="add images, 100 or more are usual, or leave training out: `--effort thorough`",
        )
    require_operators(loaded.model)


def train(saved: PlanWithWeights, candidate: Candidate, steps: int, cache: Cache) -> TrainedPlan:
    """Train a plan to give the outputs of FP32, and return it if they are nearer."""
    from qconvert.train.distillation import TrainingSettings, train_plan

    return TrainedPlan(*train_plan(saved, candidate, cache, TrainingSettings(steps=steps)))

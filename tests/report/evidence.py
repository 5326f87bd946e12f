"""A hand-written report with all evidence about errors, and images of one pixel."""

from dataclasses import replace

from qconvert.measure.accuracy import ChangedPrediction
from qconvert.measure.evidence import (
    Evidence,
    FeatureMap,
    FeatureMapRow,
    MethodInterval,
    TensorRange,
    Thumbnail,
    WeightRange,
)
from qconvert.measure.layer_errors import LayerError
from qconvert.measure.training_curve import TrainingCurve
from qconvert.report.model import OperatorCoverage, Report
from qconvert.tasks.task import ClassShift
from tests.report import reports

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d4944415478da63fcffff3f030005fe02fea72d9b1f0000000049454e44ae426082"
)


def layer(name: str, own_db: float, arriving_db: float, precision: str = "int8") -> LayerError:
    clipped = None if precision == "fp16" else 0.25
    return LayerError(
        f"{name}_out", name, "Conv", precision, arriving_db, own_db, 0.999, clipped, clipped
    )


def explained(name: str = "/block/Conv", image: str = "a/b.jpg") -> Report:
    """Return a measured run with layers and all evidence; names can be anything."""
    fp32, fp16, int8 = reports.cpu()
    halves = tuple(layer(f"{name}{at}", 60.0 + at, 50.0 - at, "fp16") for at in range(3))
    integers = tuple(layer(f"{name}{at}", 30.0 + at, 25.0 - at) for at in range(3))
    exact = replace(integers[0], tensor="last", node="last", made_db=float("inf"))
    assert int8.accuracy is not None
    accuracy = replace(
        int8.accuracy,
        changed=(ChangedPrediction(image, 3, 3, 4, 12.5, 1.25),),
        shifts=(ClassShift(3, 100.0, 50.0, 2),),
    )
    return reports.report(
        fp32,
        replace(fp16, layers=halves, unmeasured={}),
        replace(
            int8,
            layers=(*integers, exact),
            accuracy=accuracy,
            operators=(OperatorCoverage("Conv", 58, 58), OperatorCoverage("Gemm", 2, 0)),
            training=TrainingCurve((0, 20, 40), (0.5, 0.3, 0.2), (23.5, 24.0, 23.9), 20, kept=True),
        ),
        evidence=Evidence(
            ranges=(
                TensorRange(
                    tensor=f"{name}_out",
                    op="Conv",
                    variant="cpu-int8",
                    why="most clipped",
                    low=-2.0,
                    high=6.0,
                    shares=(0.0, 0.25, 0.5, 0.2, 0.0499, 0.0001),
                    kept=(MethodInterval("minmax", -2.0, 6.0), MethodInterval("mse", -1.5, 4.5)),
                    chosen=MethodInterval("mse", -1.5, 4.5),
                    step=0.0235,
                    clipped=0.01,
                ),
            ),
            weights=(WeightRange(f"{name}0", "Conv", 3, (1.5, 0.5, 0.25)),),
            feature_maps=(
                FeatureMap(
                    tensor=f"{name}_out",
                    node=f"{name}0",
                    image=image,
                    picture="analysis/features/00.png",
                    channels=(4, 2),
                    rows=(
                        FeatureMapRow("fp32"),
                        FeatureMapRow("cpu-int8", sqnr_db=22.5),
                        FeatureMapRow("cpu-int8", True),
                    ),
                    low=0.0,
                    high=6.0,
                    zoom=4.0,
                    why="the end of a stage",
                ),
            ),
            thumbnails=(Thumbnail(image, "analysis/changed/00.jpg"),),
            classes={"3": "cat", "4": "dog"},
        ),
    )


def images() -> dict[str, bytes]:
    """Return the files that the report names."""
    return {"analysis/features/00.png": PNG, "analysis/changed/00.jpg": PNG}

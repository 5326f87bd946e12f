"""The whole workflow in Python: build engines, read the report, run an engine, check the gates."""

from pathlib import Path

import qconvert
from qconvert.demo import generator
from qconvert.demo.demo_files import NETWORK
from qconvert.report import metrics

for name, seed, count in (
    ("calibration", generator.CALIBRATION_SEED, 128),
    ("evaluation", generator.EVALUATION_SEED, 200),
):
    generator.write_images(Path("pictures") / name, seed, count)


def show(progress):
    """Print each finished step."""
    if progress.seconds is not None:
        print(f"{progress.step:10} {progress.text.splitlines()[0]}")


run = qconvert.build(
    NETWORK,
    images="pictures/calibration",
    eval="pictures/evaluation",
    precisions=["fp32", "int8"],
    output="run",
    settings={"bench.seconds": 0.5, "gate.max-drop": 2},
    progress=show,
)

print(f"\n{run.report.verdict}")
for variant in run.report.variants:
    print(
        f"{variant.name:10} {variant.engine.bytes / 1e6:5.2f} MB"
        f"  {metrics.median_ms(variant):6.2f} ms  {variant.accuracy.top1:6.2f} %"
    )

engine = run.engine("cpu-int8")
classes = (run.folder / "classes.txt").read_text().splitlines()
batch = next(engine.read("pictures/evaluation", batch=4))
(scores,) = engine(batch.feeds).values()
print()
for item, row in zip(batch.items, scores, strict=True):
    print(f"{item.name:20} {classes[row.argmax()]}")

try:
    run.require_gates()
except qconvert.GateFailed as error:
    print(error, *error.details, sep="\n")

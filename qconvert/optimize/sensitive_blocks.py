"""The blocks to keep in float because dense outputs, as heads of detectors have them, suffer most.

Many layers in a row add up their errors there, and scores near a threshold show all of it. A few
blocks make most of the error: first layers with a wide range, last layers of a head. Each block is
quantized alone, in an otherwise float network, so that a wide tensor counts for the block that
makes it and for those that read it. Those with the largest error for their share of the work go
back to float, within a limit of all work, until the error is low enough. The error is that of the
boxes where a decoder reads them. The images held out decide whether the blocks stay in float.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qconvert import __version__
from qconvert.backends.ort import ORT_VERSION
from qconvert.core.cache import Cache
from qconvert.core.progress import Progress, start_step
from qconvert.core.tensors import Tensors
from qconvert.graph.describe import describe_model
from qconvert.measure.dense_error import sum_of_scores
from qconvert.measure.output_error import OutputError, has_dense_output
from qconvert.optimize.blocks import Block, find_blocks
from qconvert.optimize.calibration_set import CALIBRATION_BATCH
from qconvert.optimize.candidate import EFFORTS, Candidate, is_better, run_reference
from qconvert.optimize.partial_execution import limit_images
from qconvert.quantize import plan_files
from qconvert.quantize.apply_plan import apply_plan
from qconvert.quantize.placement import restore_float
from qconvert.quantize.plan import LayerPlan, Plan

MAX_TRIAL_IMAGES, TRIALS_OF_SETS = 16, 12
# The share of all multiplications that may go back to float.
MAX_SHARE = 0.2
# What leaving INT8 costs beside the multiplications, as a share of all of them.
CONVERSION_COST = 0.005
# A set grows no further at so low an error of boxes, or of outputs from which none are read.
LOW_BOX_ERROR, LOW_ERROR = 0.02, 0.005
# Of so many times the images of the trials, those that show the most are taken.
SURPLUS = 4
# A larger set must lower the error to this share of that of a smaller one.
MIN_PROGRESS = 0.9
REASON = "kept in {}, because the outputs suffer from it most in 8 bits"


@dataclass(frozen=True)
class SensitivityTrials:
    """A plan whose blocks are tried in float, on batches with their FP32 outputs."""

    candidate: Candidate
    plan: Plan
    batches: Sequence[Tensors]
    reference: Sequence[Tensors]

    def restore(self, blocks: Sequence[Block]) -> Plan:
        """Return the plan with these blocks in float."""
        plan, nodes = self.plan, {node for block in blocks for node in block.nodes}
        model, scheme = self.candidate.loaded.model, self.candidate.scheme
        return restore_float(model, plan, scheme, nodes, REASON.format(plan.rest))

    def compare(self, plan: Plan) -> OutputError:
        """Return the error of a plan on each image."""
        model = apply_plan(self.candidate.loaded.model, plan)
        return self.candidate.compare(model, self.batches, self.reference)

    def quantize_only(self, block: Block) -> Plan:
        """Return the plan with nothing but this block quantized, whatever its neighbours need."""
        layers = {
            name: layer if name in block.nodes else LayerPlan(layer.op, left="not tried")
            for name, layer in self.plan.layers.items()
        }
        return replace(self.plan, layers=layers)


def keep_sensitive_blocks(
    plan: Plan, candidate: Candidate, effort: str, cache: Cache
) -> tuple[Plan, tuple[str, ...]]:
    """Return the plan with the blocks in float that dense outputs need so, and notes.

    Without dense outputs, or where the effort is too low to try blocks, it stays as it is.
    """
    count, model = _count_images(plan, candidate, effort), candidate.loaded.model
    if not count or not has_dense_output(_run_first(candidate)):
        return plan, ()
    end = start_step(candidate.progress, "protect")
    key = {
        "name": f"sensitive blocks, effort {effort}",
        "plan": plan_files.format_plan(plan),
        "calibration": candidate.calibration.full.origin.fingerprint,
        "effort": f"{effort} {EFFORTS[effort]}",
        "qconvert": __version__,
        "numpy": np.__version__,
        "onnxruntime": ORT_VERSION,
    }

    def make(entry: Path) -> None:
        batches = candidate.calibration.training_batches(limit_images(model, SURPLUS * count))
        trials = SensitivityTrials(candidate, plan, batches, run_reference(model, batches))
        trials = _most_telling(trials)
        blocks = choose_blocks(trials, find_blocks(model, plan))
        chosen, note = _accept(trials, blocks)
        (entry / "plan.json").write_text(plan_files.format_plan(chosen), encoding="utf-8")
        (entry / "summary.txt").write_text(note, encoding="utf-8")

    entry, hit = cache.get_or_make("protect", key, make)
    note = (entry / "summary.txt").read_text(encoding="utf-8")
    end(note, hit)
    return plan_files.read_plan(entry / "plan.json"), (note,)


def choose_blocks(trials: SensitivityTrials, blocks: Sequence[Block]) -> list[Block]:
    """Return the fewest of the blocks that lower the error enough, or as far as the work allows."""
    first, progress = trials.compare(trials.plan), trials.candidate.progress
    best, enough = _mean(first), LOW_BOX_ERROR if first.of_boxes else LOW_ERROR
    chosen = list[Block]()
    if best <= enough:
        return chosen
    gains: dict[str, float] = {}
    for number, block in enumerate(blocks, 1):
        error = _mean(trials.compare(trials.quantize_only(block)))
        # Independent errors add up in squares; those of outputs are squares, those of boxes lengths.
        gain = error**2 if first.of_boxes else error
        gains[block.name] = gain / (block.share + CONVERSION_COST)
        progress(Progress("protect", "blocks", done=number, total=len(blocks)))
    affordable, share = list[Block](), 0.0
    for block in sorted(blocks, key=lambda block: -gains[block.name]):
        if share + block.share <= MAX_SHARE:
            affordable.append(block)
            share += block.share
    # Sets grow along the ranking, in steps that become larger.
    size = 1
    while size <= len(affordable) and best > enough:
        error = _mean(trials.compare(trials.restore(affordable[:size])))
        if error <= max(enough, MIN_PROGRESS * best):
            best, chosen = error, affordable[:size]
        size = max(size + 1, min(4 * size // 3, len(affordable)))
    return chosen


def _mean(error: OutputError) -> float:
    return float(error.per_image.mean())


def _count_images(plan: Plan, candidate: Candidate, effort: str) -> int:
    """Return on how many images the effort pays for the trials of all blocks; 0 for too few."""
    if candidate.calibration.images is None or not EFFORTS[effort].max_macs:
        return 0
    model = candidate.loaded.model
    macs = sum(node.macs or 0 for node in describe_model(model).nodes)
    trials = len(find_blocks(model, plan)) + TRIALS_OF_SETS
    images = min(MAX_TRIAL_IMAGES, int(EFFORTS[effort].max_macs / max(1, macs * trials)))
    return images if images >= CALIBRATION_BATCH else 0


def _run_first(candidate: Candidate) -> Tensors:
    """Return the outputs of FP32 on one batch; none if no image of it is readable."""
    outputs = run_reference(candidate.loaded.model, candidate.calibration.training_batches(1))
    return outputs[0] if outputs else {}


def _most_telling(trials: SensitivityTrials) -> SensitivityTrials:
    """Return the trials on those of the batches in which the scores are highest.

    Images on which a network sees nothing tell little of what it does to boxes.
    """
    outputs = zip(trials.batches, trials.reference, strict=False)
    ranked = sorted(outputs, key=lambda pair: -sum_of_scores(pair[1]))
    count = -(-len(ranked) // SURPLUS)
    chosen = ranked[: max(count, min(len(ranked), 2))]
    batches, reference = ([pair[side] for pair in chosen] for side in (0, 1))
    return replace(trials, batches=batches, reference=reference)


def _accept(trials: SensitivityTrials, blocks: Sequence[Block]) -> tuple[Plan, str]:
    """Return the plan with the blocks in float if images held out confirm them, and a note."""
    candidate, plan = trials.candidate, trials.plan
    if not blocks:
        return plan, "no block needs float: the outputs lose little, or no block alone helps"
    holdout = list(candidate.holdout_batches())
    reference = run_reference(candidate.loaded.model, holdout)
    held_out = SensitivityTrials(candidate, plan, holdout[: len(reference)], reference)
    restored = held_out.restore(blocks)
    before, after = held_out.compare(plan), held_out.compare(restored)
    accepted = is_better(before, after, significantly=False)
    share = sum(block.share for block in blocks)
    names = ", ".join(block.name for block in blocks[:3]) + (", ..." if len(blocks) > 3 else "")
    figures = f"{before.name} {before.per_image.mean():.3g} -> {after.per_image.mean():.3g}"
    used = "kept in float" if accepted else "not kept in float"
    images = f"on {after.per_image.size} images"
    note = f"{len(blocks)} blocks with {share:.1%} of the work {used}: {names} ({figures} {images})"
    return restored if accepted else plan, note

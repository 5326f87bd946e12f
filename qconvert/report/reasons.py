"""Why something was not measured, in the words of who did not measure it."""

import math

from qconvert.measure.accuracy import ELSE_IDENTICAL, IDENTICAL, Accuracy
from qconvert.report.model import Variant

# Of timings that were dropped because they compare with no other ones.
ELSEWHERE = "timed at another time than the others: `qconvert bench RUN` times all of them in turns"
UNSAID = "not measured in this run"
NO_LABELS = "top-1, precision, recall and F1 need labels: class folders, or `--labels`"
EXACT = "no error: the outputs are those of FP32 to the last bit"
ZEROS = "no SQNR: the outputs of FP32 are all zero"
NOT_FINITE = "no distance: on no image are all outputs finite"
NO_CLASSES = "no top-1 and no agreement: the outputs are not scores of classes"
DISTANCES = ("sqnr_db", "kl", "cosine")


def why_not(variant: Variant, *names: str) -> str:
    """Return why a field of a variant is empty, by the first of its names that has a reason."""
    reasons = (variant.unmeasured.get(name) for name in (*names, "engine"))
    return next((reason for reason in reasons if reason), UNSAID)


def why_no_score(variant: Variant, name: str) -> str:
    """Return why a score is missing: what is said of it, else what the other scores tell."""
    accuracy = variant.accuracy
    said = variant.unmeasured.get(name) or variant.unmeasured.get("top1")
    if accuracy is None or said:
        return said or why_not(variant, "accuracy")
    if name in DISTANCES and (why := _why_no_distance(accuracy, name)):
        return why
    if accuracy.top1 is not None or accuracy.agreement is not None:
        return UNSAID if accuracy.top1 is not None else NO_LABELS
    return NO_CLASSES


def _why_no_distance(accuracy: Accuracy, name: str) -> str:
    """Return why outputs that were compared have no distance; empty where that is not known."""
    if name == "sqnr_db" and ELSE_IDENTICAL in accuracy.notes:
        return ELSE_IDENTICAL
    if name == "sqnr_db" and (IDENTICAL in accuracy.notes or accuracy.sqnr_db == math.inf):
        return EXACT
    # Outputs that are finite have a cosine, be they zero.
    if name == "sqnr_db" and accuracy.cosine is not None:
        return ZEROS
    return NOT_FINITE if accuracy.agreement is not None or accuracy.kl is not None else ""

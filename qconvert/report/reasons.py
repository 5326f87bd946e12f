"""Why something was not measured, in the words of who did not measure it."""

from qconvert.report.model import Variant

UNSAID = "not measured in this run"
NO_LABELS = "top-1, precision, recall and F1 need labels: class folders, or `--labels`"
EXACT = "no error: the outputs are those of FP32 to the last bit"
NO_CLASSES = "no top-1 and no agreement: the outputs are not scores of classes"


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
    if name == "sqnr_db" and accuracy.kl is not None:
        return EXACT
    if accuracy.top1 is not None or accuracy.agreement is not None:
        return UNSAID if accuracy.top1 is not None else NO_LABELS
    return NO_CLASSES

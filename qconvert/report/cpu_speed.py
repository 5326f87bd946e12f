"""Why INT8 gains little on the CPU of a run: of the machine that it recorded, not of this one."""

from collections.abc import Iterator

from qconvert.backends.int8_class import Int8Class, is_arm, is_x86, recorded_class
from qconvert.core import number_format as fmt
from qconvert.core.formats import FORMATS, format_title
from qconvert.report import metrics
from qconvert.report.model import Report, VariantResult

# INT8 that gains less than this is hardly worth its loss of accuracy.
HARDLY = 1.2


def limiting_class(report: Report, variant: VariantResult) -> Int8Class | None:
    """Return the class of the CPU that timed a variant, if it is what limits INT8."""
    recorded = recorded_class(report.machine.get("int8 instructions", ""))
    if recorded is None or not _activation_sign(variant) or _foreign_speed(report, variant):
        return None
    return recorded if recorded.limit else None


def cpu_limit_note(report: Report) -> str:
    """Say why integers on the CPU gain little; empty where they gain, or the CPU is fit."""
    for variant in report.variants:
        limiting, ratio = limiting_class(report, variant), metrics.headline_speedup(report, variant)
        if variant.precision not in FORMATS or limiting is None:
            continue
        if ratio is None or ratio >= HARDLY:
            continue
        cpu = ", ".join(filter(None, (report.machine.get("cpu", ""), limiting.name)))
        gain = "not faster" if ratio <= 1 else f"hardly faster ({fmt.ratio(ratio)})"
        return f"{format_title(variant.precision)} is {gain} on this CPU ({cpu}): {limiting.limit}"
    return ""


def foreign_notes(report: Report) -> Iterator[str]:
    """Name the engines whose activations suit another architecture than that of the machine."""
    for variant in report.variants:
        speed = _foreign_speed(report, variant)
        if speed and variant.latency:
            yield (
                f"`{variant.name}` was quantized for another architecture: its "
                f"{_activation_sign(variant)} activations are right, but {speed}; quantize again "
                f"on {_architecture(report)}, not with `--from`, which keeps the plan"
            )


def _activation_sign(variant: VariantResult) -> str:
    """Return `signed` or `unsigned`, which only quantized engines of the CPU record."""
    return variant.engine.made_with.get("activations", "") if variant.engine is not None else ""


def _architecture(report: Report) -> str:
    # The description of an operating system ends with it.
    return report.machine.get("os", "").rpartition(" ")[2]


def _foreign_speed(report: Report, variant: VariantResult) -> str:
    """Return how fast a variant is on an architecture it was not made for; empty on its own."""
    sign, architecture = _activation_sign(variant), _architecture(report)
    if sign == "signed" and is_x86(architecture):
        return "slow here, as x86 takes unsigned ones"
    if sign == "unsigned" and is_arm(architecture):
        return "not at their best here, as ARM takes signed ones (not measured)"
    return ""

"""Why INT8 gains little on the CPU of a run: of the machine that it recorded, not of this one."""

from qconvert.backends.int8_class import Int8Class, recorded_class
from qconvert.core import number_format as fmt
from qconvert.report import metrics
from qconvert.report.model import Report, VariantResult

# INT8 that gains less than this is hardly worth its loss of accuracy.
HARDLY = 1.2


def limiting_class(report: Report, variant: VariantResult) -> Int8Class | None:
    """Return the class of the CPU that timed a variant, if it is what limits INT8."""
    recorded = recorded_class(report.machine.get("int8 instructions", ""))
    on_cpu = set(variant.by_provider) == {"CPUExecutionProvider"}
    return recorded if on_cpu and recorded is not None and recorded.limit else None


def cpu_limit_note(report: Report) -> str:
    """Say why the INT8 engine on the CPU gains little; empty where it gains, or the CPU is fit."""
    for variant in report.variants:
        limiting, ratio = limiting_class(report, variant), metrics.headline_speedup(report, variant)
        if variant.precision != "int8" or limiting is None or ratio is None or ratio >= HARDLY:
            continue
        cpu = ", ".join(filter(None, (report.machine.get("cpu", ""), limiting.name)))
        gain = "not faster" if ratio <= 1 else f"hardly faster ({fmt.ratio(ratio)})"
        return f"INT8 is {gain} on this CPU ({cpu}): {limiting.limit}"
    return ""

"""What weight-only formats are for, in a sentence with their figures."""

from qconvert.core import number_format as fmt
from qconvert.core.formats import format_title
from qconvert.report.model import VariantResult


def describe_saving(
    variant: VariantResult, ms: float, fastest: VariantResult, float_ms: float
) -> str:
    """Return what an engine of integer weights saves against a float one that is no slower."""
    sizes = [row.engine.bytes for row in (variant, fastest) if row.engine is not None]
    saved = "saves no bytes"
    if len(sizes) == 2 and sizes[0] < sizes[1]:
        saved = f"takes {fmt.megabytes(sizes[0])} MB instead of {fmt.megabytes(sizes[1])}"
    return (
        f"{format_title(variant.precision)} on `{variant.backend}` {saved}, and is not faster than "
        f"{fastest.precision.upper()} ({fmt.ms(ms)} against {fmt.ms(float_ms)} ms): use it only "
        "where memory decides, as with large products at batch 1"
    )

"""Which variant to ship, in one sentence, and how honest that can be.

The best is the fastest engine that keeps all limits and whose answers are good enough: by the
limits on answers where there are any, else as many as `ENOUGH` percent the same as those of FP32,
or at most `LOST` points of top-1 lost. Where FP32 itself is right on less than `LOW_TOP1` percent
there is nothing to lose, and only the first counts.
"""

from collections.abc import Iterator

from qconvert.measure.stats import stats
from qconvert.report import figures, gates, numerals
from qconvert.report.model import Gate, Report, Variant
from qconvert.report.reasons import ELSEWHERE, UNSAID, why_not

ENOUGH = 97.0
LOST = 1.0
LOW_TOP1 = 25.0
NOT_FASTER = "INT8 is not faster here"
FLOATS = ("fp32", "fp16", "bf16")
OF_FP32 = ("max-latency", "max-size")


def best(report: Report) -> Variant | None:
    """Return the fastest variant that keeps the limits and is known to answer well."""
    found = fastest(report)
    if found is None or not faithful(report, found) or _waits(report, found):
        return None
    return found


def _waits(report: Report, found: Variant) -> list[str]:
    """Name the engines that one would only beat because they were not timed with it.

    Who takes fp32 wants to know all of them; who takes another, those that were timed once.
    """
    beside = [each for each in report.variants if each.backend == found.backend]
    idle = [each for each in beside if figures.headline(each) is None]
    if found.precision != "fp32":
        idle = [each for each in idle if each.unmeasured.get("latency") == ELSEWHERE]
    return [each.name for each in idle if faithful(report, each) is not False]


def fastest(report: Report) -> Variant | None:
    """Return the fastest variant that nothing speaks against, though its answers be unknown."""
    fitting = [
        variant
        for variant in report.variants
        if figures.headline(variant) is not None and fits(report, variant)
    ]
    return min(fitting, key=figures.ms_an_image, default=None)


def fits(report: Report, variant: Variant) -> bool:
    """Say whether nothing speaks against a variant: no limit, and no answers that were judged."""
    return not any(_failed(report, variant)) and faithful(report, variant) is not False


def faithful(report: Report, variant: Variant) -> bool | None:
    """Say whether the answers are good enough; None where nobody looked."""
    judged = [g for g in report.gates if g.variant == variant.name and gates.of_answers(g)]
    if judged:
        return all(gate.passed for gate in judged)
    accuracy = variant.accuracy
    same = accuracy.agreement if accuracy is not None else None
    change = _change(report, variant)
    if same is None and change is None:
        # What others are held against is good enough, unless it was looked at and is not.
        return True if variant.precision == "fp32" else None
    return (same is not None and same >= ENOUGH) or (change is not None and change >= -LOST)


def _change(report: Report, variant: Variant) -> float | None:
    """Return the change of top-1 where it tells anything: labels may be wrong, then it does not."""
    top1 = report.baseline.top1 if report.baseline is not None else None
    if variant.accuracy is None or (top1 is not None and top1 < LOW_TOP1):
        return None
    return variant.accuracy.change_pp


def verdict(report: Report) -> str:
    """Return the sentence."""
    if not any(figures.headline(variant) for variant in report.variants):
        return _untimed(report)
    found = fastest(report)
    if found is None:
        return _nothing(report)
    if faithful(report, found) is None:
        return _unjudged(report, found)
    if waiting := _waits(report, found):
        names = ", ".join(f"`{name}`" for name in waiting)
        return f"Not timed beside `{found.name}`: {names}; `qconvert bench RUN` times all in turns"
    against = _against_int8(report, found)
    lead = f"{against}, so ship" if against else "Ship"
    kept = _kept(report, found)
    facts = ", ".join(_facts(report, found))
    return f"{lead} `{found.name}`: {'; '.join([facts, *kept, *_absent(report)])}"


def _failed(report: Report, variant: Variant) -> Iterator[Gate]:
    """Yield the limits not kept; fp32 is held against those that ask for no comparison."""
    own = [gate for gate in report.gates if gate.variant == variant.name]
    if not own and variant.precision == "fp32":
        wanted = {gate.name: gate.limit for gate in report.gates if gate.name in OF_FP32}
        own = [gates.judged(report, variant, name, limit) for name, limit in wanted.items()]
    return (gate for gate in own if not gate.passed)


def _facts(report: Report, variant: Variant) -> Iterator[str]:
    ratio = figures.headline_speedup(report, variant)
    latency = figures.headline(variant)
    assert latency is not None
    if ratio is None or variant.precision == "fp32":
        yield f"{numerals.ms(stats(latency).median_ms)} ms at batch {latency.batch}"
    else:
        yield f"{numerals.times(ratio)} as fast as fp32"
    size = figures.size_ratio(report, variant)
    if size is not None and variant.precision != "fp32":
        yield f"{size:.0%} of the size".replace("%", " %")
    if variant.precision != "fp32":
        yield from _answers(report, variant)


def _answers(report: Report, variant: Variant) -> Iterator[str]:
    accuracy = variant.accuracy
    if accuracy is None:
        return
    change = _change(report, variant)
    if change is not None:
        yield f"top-1 {numerals.change(change, accuracy.half_width_pp, 1)} pp"
    elif accuracy.agreement is not None:
        yield f"agrees with FP32 on {numerals.percent(accuracy.agreement)} % of the images"
    elif accuracy.sqnr_db is not None:
        yield f"output SQNR {numerals.decibels(accuracy.sqnr_db)} dB"


def _kept(report: Report, variant: Variant) -> list[str]:
    if figures.passed(report, variant) is None:
        return []
    return ["all gates passed" if all(g.passed for g in report.gates) else "its gates passed"]


def _absent(report: Report) -> list[str]:
    """Name the backends that nothing was timed on."""
    backends: dict[str, bool] = {}
    for variant in report.variants:
        timed = figures.headline(variant) is not None
        backends[variant.backend] = timed or backends.get(variant.backend, False)
    absent = [f"`{name}`" for name, timed in backends.items() if not timed]
    return [f"nothing was timed on {', '.join(absent)}"] if absent else []


def _against_int8(report: Report, chosen: Variant) -> str:
    """Say why it is not the INT8 engine beside the one chosen."""
    for variant in report.variants:
        rival = variant.precision == "int8" and variant.backend == chosen.backend
        if not rival or variant is chosen or figures.headline(variant) is None:
            continue
        # A float engine may be faster and keep no limit: then it is no reason for another one.
        beaten = figures.ms_an_image(chosen) <= figures.ms_an_image(variant)
        if beaten and chosen.precision in FLOATS:
            return NOT_FASTER
        return _objection(report, variant)
    return ""


def _objection(report: Report, variant: Variant) -> str:
    failed = next(_failed(report, variant), None)
    if failed is not None and failed.value is None:
        return f"`{variant.name}` fails {failed.name}, which was not measured"
    if failed is not None:
        return f"`{variant.name}` fails {failed.name} ({gates.finding(failed)})"
    if faithful(report, variant) is False:
        return f"`{variant.name}` answers too differently ({', '.join(_answers(report, variant))})"
    return ""


def _unjudged(report: Report, variant: Variant) -> str:
    facts = ", ".join(_facts(report, variant))
    if variant.accuracy is not None and variant.accuracy.sqnr_db is not None:
        return f"Ship `{variant.name}` if its answers are near enough for you: {facts}"
    return (
        f"`{variant.name}` is the fastest ({facts}), but no image judged it: "
        "`qconvert evaluate` does, with `--eval`"
    )


def _nothing(report: Report) -> str:
    timed = [each for each in report.variants if figures.headline(each) is not None]
    others = [each for each in timed if each.precision != "fp32"]
    first = min(others or timed, key=figures.ms_an_image)
    why = _objection(report, first)
    return f"Nothing here to ship: {why}, and no other engine does better"


def _others(report: Report) -> Iterator[Variant]:
    """Yield the variants whose answers say something beside FP32's."""
    others = (each for each in report.variants if each.precision != "fp32")
    return (each for each in others if any(_answers(report, each)))


def _untimed(report: Report) -> str:
    if not report.variants:
        return "Nothing was built"
    why = why_not(report.variants[0], "latency")
    if all(each.engine is None for each in report.variants):
        return f"Nothing was built ({why}): `qconvert build --from RUN` goes on"
    if why == UNSAID:
        told = [f"`{each.name}` {', '.join(_answers(report, each))}" for each in _others(report)]
        return f"Nothing was timed; answers: {'; '.join(told)}" if told else "Nothing was timed"
    return f"Nothing was timed ({why}): run `qconvert bench` where the engines work"

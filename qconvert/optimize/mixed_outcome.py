"""The outcome of a search for mixed precision, and the sentence that gives the reason."""

from dataclasses import replace

from qconvert.measure.mixed_result import MixedResult, SearchStep


def early_result(result: MixedResult) -> MixedResult | None:
    """Return the result of a search that no trial of single blocks can change, else None."""
    rest, ms, float_ms, faster = result.rest, result.int8.ms, result.float_ms, result.faster
    if faster is not None:
        return _early_mix(result, faster)
    if ms is not None and float_ms is not None and float_ms <= ms:
        took = f"{rest} takes {float_ms:.2f} ms and INT8 {ms:.2f}"
        if _is_too_slow(result, float_ms):
            why = f"{took}, both more than the maximum of {result.max_latency:g}"
            return replace(result, outcome="none", why=why)
        return replace(result, outcome="float", why=f"{took}: mixing gains nothing")
    if _is_too_slow(result, ms):
        why = f"INT8 alone takes {ms:.2f} ms, and blocks in {rest} are slower"
        return replace(result, outcome="none", why=why)
    if _keeps_budget(result, result.int8):
        because = f", and no mix with {rest} is faster" if result.times else ""
        return replace(result, why=f"INT8 keeps the budget: no block needs float{because}")
    return None


def _early_mix(result: MixedResult, faster: SearchStep) -> MixedResult | None:
    if _is_too_slow(result, faster.ms):
        why = f"the fastest mix takes {faster.ms:.2f} ms, more than {result.max_latency:g}"
        return replace(result, outcome="none", why=why)
    if _keeps_budget(result, faster):
        return replace(result, outcome="mixed", chosen=faster, why=_describe_mix(result, faster))
    return None


def conclude(result: MixedResult) -> MixedResult:
    """Return the result of a finished search with its outcome."""
    chosen, rest, float_ms = result.chosen, result.rest, result.float_ms
    if _is_int8_better(result):
        why = f"INT8 keeps the budget, and no faster mix with {rest} does"
        return replace(result, outcome="int8", chosen=None, why=why)
    if chosen is None:
        why = f"no mix stays within {result.budget:g} points: ship {rest}, or allow more"
        return replace(result, outcome="none", why=why)
    ms, took = chosen.ms, f"the smallest mix that keeps the budget takes {chosen.ms or 0:.2f} ms"
    is_float_faster = ms is not None and float_ms is not None and float_ms <= ms
    if is_float_faster and not _is_too_slow(result, float_ms):
        return replace(result, outcome="float", why=f"{took}, and {rest} alone {float_ms:.2f}")
    if _is_too_slow(result, ms):
        why = f"{took}, more than the maximum of {result.max_latency:g}"
        return replace(result, outcome="none", why=why)
    return replace(result, outcome="mixed", why=_describe_mix(result, chosen))


def _is_int8_better(result: MixedResult) -> bool:
    """Whether the blocks in float for speed lose predictions, and others for those lose the speed."""
    ms, float_ms, chosen = result.int8.ms, result.float_ms, result.chosen
    if result.faster is None or ms is None or float_ms is None or float_ms <= ms:
        return False
    is_slower = chosen is None or chosen.ms is None or chosen.ms >= ms
    return _keeps_budget(result, result.int8) and is_slower


def _describe_mix(result: MixedResult, chosen: SearchStep) -> str:
    """Return which part is in float, and what it gains where it was chosen for its speed."""
    count, rest = len(chosen.lifted), result.rest
    blocks = f"{count} blocks" if count > 1 else "one block"
    kept = f"{blocks} kept in {rest}, {100 * chosen.share:.1f} % of the compute"
    faster, ms = result.faster, result.int8.ms
    if faster is None or ms is None or chosen.ms is None or result.float_ms is None:
        return kept
    others = f"{ms:.2f} in INT8 and {result.float_ms:.2f} in {rest}"
    needed = count - len(faster.lifted)
    reason = "for speed" if not needed else f"for speed, {needed} of them to keep the budget"
    return f"{kept}, {reason}: {chosen.ms:.2f} ms instead of {others}"


def _keeps_budget(result: MixedResult, step: SearchStep) -> bool:
    return step.confirmed is not None and step.confirmed.pp <= result.budget


def _is_too_slow(result: MixedResult, ms: float | None) -> bool:
    return ms is not None and result.max_latency is not None and ms > result.max_latency

"""Write the table of the zoo into docs/zoo.md, between two markers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"
BEGIN, END = "<!-- zoo: written by `make zoo` -->\n", "<!-- end of zoo -->\n"
FAMILIES = ("timm", "transformers", "packages", "graphs")
ENGINES = ("cpu-fp16", "cpu-int8", "tensorrt-rtx-fp16", "tensorrt-rtx-int8")
HEAD = (
    "| network | opset | fp16 dB | cpu int8 dB | nodes | rtx int8 dB | nodes | 8-bit input dB |"
    " ORT int8 dB | |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---|\n"
)
POOR, SHOWN = 10.0, 140
Result = Mapping[str, Any]


def write(results: Mapping[str, Result], names: Sequence[str]) -> None:
    """Rewrite the section from the results available."""
    available = [results[name] for name in names if name in results]
    text = PAGE.read_text(encoding="utf-8")
    before, _, tail = text.partition(BEGIN)
    _, _, after = tail.partition(END)
    PAGE.write_text(
        f"{before}{BEGIN}\n{section(available, len(names) - len(available))}\n{END}{after}",
        encoding="utf-8",
    )


def section(results: Sequence[Result], missing: int) -> str:
    """Return counts, the table of every family, and the nodes left in float."""
    parts = [_counts(results, missing)]
    for family in FAMILIES:
        members = [result for result in results if result.get("family") == family]
        if members:
            parts.append(
                f"### {family.capitalize()}\n\n{HEAD}" + "\n".join(map(_row, members)) + "\n"
            )
    return "\n".join([*parts, _float_nodes(results)])


def _counts(results: Sequence[Result], missing: int) -> str:
    complete = [result for result in results if all(name in _variants(result) for name in ENGINES)]
    refused = [result for result in results if result not in complete]
    failed = [result["name"] for result in results if "failure" in result]
    times = sum(result["seconds"] for result in results) / 60
    peak = max(result.get("peak_mb", 0) for result in results)
    lines = [
        f"{len(results)} networks: {len(complete)} gave all six engines, "
        f"{len(refused) - len(failed)} were refused in part or whole, {len(failed)} broke off. "
        f"{times:.0f} minutes, on two cores that other work shared; "
        f"the largest process had {peak} MB."
    ]
    if missing:
        lines.append(f"{missing} more are in the list and were not run for this table.")
    poor = [result for result in complete if min(_int8_scores(result)) < POOR]
    if poor:
        names = ", ".join(result["name"] for result in poor)
        lines.append(f"Under {POOR:.0f} dB in INT8 on a backend: {names}.")
    return "\n".join(lines) + "\n"


def _int8_scores(result: Result) -> list[float]:
    scores = [_variants(result)[name]["sqnr_db"] for name in ENGINES if "int8" in name]
    return [float("inf") if score is None else score for score in scores]


def _row(result: Result) -> str:
    if "failure" in result:
        return f"| {result['name']} | | | | | | | | | {_shorten(result['failure'])} |"
    cpu, rtx = (_variants(result).get(f"{name}-int8", {}) for name in ("cpu", "tensorrt-rtx"))
    cells = [
        result["name"],
        str(result.get("opset", "")),
        _db(_variants(result).get("cpu-fp16", {})),
        _db(cpu),
        _nodes(cpu),
        _db(rtx),
        _nodes(rtx),
        _number(result.get("quantized_input_db")),
        _number(result.get("peer_db")),
        _shorten(_error(result)),
    ]
    return "| " + " | ".join(cells) + " |"


def _error(result: Result) -> str:
    """Return the error of the first single build or step that failed, else of the whole build."""
    failed = {step: outcome for step, outcome in result["steps"].items() if outcome["code"]}
    single = [f"{step}: {outcome['error']}" for step, outcome in failed.items() if step != "build"]
    error = single[0] if single else next((outcome["error"] for outcome in failed.values()), "")
    return error.replace("error: ", "").partition(" hint:")[0]


def _float_nodes(results: Sequence[Result]) -> str:
    """Return why nodes stayed in float, over all networks."""
    lines = ["### Left in float\n", "| backend | operator: why | nodes | networks |"]
    lines.append("|---|---|---:|---:|")
    for name in ("cpu-int8", "tensorrt-rtx-int8"):
        nodes: Counter[str] = Counter()
        networks: Counter[str] = Counter()
        for result in results:
            for reason, count in _variants(result).get(name, {}).get("unquantized", ()):
                key = _without_names(reason)
                nodes[key] += count
                networks[key] += 1
        common = nodes.most_common(14)
        lines += [
            f"| {name.removesuffix('-int8')} | {reason} | {count} | {networks[reason]} |"
            for reason, count in common
        ]
    return "\n".join(lines) + "\n"


def _without_names(reason: str) -> str:
    """Return a reason without the names it quotes."""
    parts = reason.split("`")
    return "…".join(parts[::2]) if len(parts) > 2 else reason


def _variants(result: Result) -> Mapping[str, Any]:
    variants: Mapping[str, Any] = result.get("variants", {})
    return variants


def _db(variant: Result) -> str:
    if not variant:
        return ""
    return _number(variant["sqnr_db"]) or "equal"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _nodes(variant: Result) -> str:
    return f"{variant['quantized']} of {variant['candidates']}" if variant else ""


def _shorten(text: str) -> str:
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"

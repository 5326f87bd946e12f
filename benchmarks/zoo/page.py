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
Found = Mapping[str, Any]


def write(results: Mapping[str, Found], names: Sequence[str]) -> None:
    """Write the section anew from the results of the networks that there are."""
    found = [results[name] for name in names if name in results]
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(
        f"{before}{BEGIN}\n{section(found, len(names) - len(found))}\n{END}{after}",
        encoding="utf-8",
    )


def section(found: Sequence[Found], missing: int) -> str:
    """Return counts, the table of every family, and what was left in float."""
    parts = [_counts(found, missing)]
    for family in FAMILIES:
        some = [each for each in found if each.get("family") == family]
        if some:
            parts.append(f"### {family.capitalize()}\n\n{HEAD}" + "\n".join(map(_row, some)) + "\n")
    return "\n".join([*parts, _left(found)])


def _counts(found: Sequence[Found], missing: int) -> str:
    whole = [each for each in found if all(name in _variants(each) for name in ENGINES)]
    said = [each for each in found if each not in whole]
    died = [each["name"] for each in found if "died" in each]
    times = sum(each["seconds"] for each in found) / 60
    peak = max(each.get("peak_mb", 0) for each in found)
    lines = [
        f"{len(found)} networks: {len(whole)} gave all six engines, {len(said) - len(died)} were "
        f"refused in part or whole, {len(died)} broke off. {times:.0f} minutes, on two cores that "
        f"other work shared; the largest process had {peak} MB.",
    ]
    if missing:
        lines.append(f"{missing} more are in the list and were not run for this table.")
    poor = [each for each in whole if min(_worst(each)) < POOR]
    if poor:
        names = ", ".join(each["name"] for each in poor)
        lines.append(f"Under {POOR:.0f} dB in INT8 on a backend: {names}.")
    return "\n".join(lines) + "\n"


def _worst(each: Found) -> list[float]:
    scores = [_variants(each)[name]["sqnr_db"] for name in ENGINES if "int8" in name]
    return [float("inf") if score is None else score for score in scores]


def _row(each: Found) -> str:
    if "died" in each:
        return f"| {each['name']} | | | | | | | | | {_short(each['died'])} |"
    cpu, rtx = (_variants(each).get(f"{name}-int8", {}) for name in ("cpu", "tensorrt-rtx"))
    cells = [
        each["name"],
        str(each.get("opset", "")),
        _db(_variants(each).get("cpu-fp16", {})),
        _db(cpu),
        _nodes(cpu),
        _db(rtx),
        _nodes(rtx),
        _number(each.get("rounded_input_db")),
        _number(each.get("peer_db")),
        _short(_said(each)),
    ]
    return "| " + " | ".join(cells) + " |"


def _said(each: Found) -> str:
    """Return the error of the first step that ended with one, and what the builder says itself."""
    wrong = {step: told for step, told in each["steps"].items() if told["code"]}
    alone = [f"{step}: {told['said']}" for step, told in wrong.items() if step != "build"]
    said = alone[0] if alone else next((told["said"] for told in wrong.values()), "")
    return said.replace("error: ", "").partition(" hint:")[0]


def _left(found: Sequence[Found]) -> str:
    """Return why nodes stayed in float, over all networks."""
    lines = ["### Left in float\n", "| backend | operator: why | nodes | networks |"]
    lines.append("|---|---|---:|---:|")
    for name in ("cpu-int8", "tensorrt-rtx-int8"):
        nodes: Counter[str] = Counter()
        networks: Counter[str] = Counter()
        for each in found:
            for why, count in _variants(each).get(name, {}).get("left", ()):
                key = _plain(why)
                nodes[key] += count
                networks[key] += 1
        common = nodes.most_common(14)
        lines += [
            f"| {name.removesuffix('-int8')} | {why} | {count} | {networks[why]} |"
            for why, count in common
        ]
    return "\n".join(lines) + "\n"


def _plain(why: str) -> str:
    """Return a reason without the names that are in it."""
    parts = why.split("`")
    return "…".join(parts[::2]) if len(parts) > 2 else why


def _variants(each: Found) -> Mapping[str, Any]:
    found: Mapping[str, Any] = each.get("variants", {})
    return found


def _db(variant: Found) -> str:
    if not variant:
        return ""
    return _number(variant["sqnr_db"]) or "equal"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _nodes(variant: Found) -> str:
    return f"{variant['quantized']} of {variant['candidates']}" if variant else ""


def _short(text: str) -> str:
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"

"""Which kernels add pairs in 16 bits, as the table in `docs/concepts/integer-kernels.md`.

`python -m tests.any_cpu.table` runs the layers on every CPU and writes the table;
`python -m tests.any_cpu.table Haswell` prints it for one, and with `"this host"` for the CPU here.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.any_cpu import environment, layers

PAGE = Path(__file__).parents[2] / "docs/concepts/integer-kernels.md"
BEGIN, END = "<!-- Written by `make any-cpu`. -->", "<!-- End of what it writes. -->"
TITLES = {"Haswell": "Haswell (AVX2)", "Nehalem": "Nehalem (SSE4)"}


def table(cpus: Sequence[str]) -> str:
    """Run the layers on these CPUs and return what was seen, in Markdown."""
    columns = {cpu: column(cpu) for cpu in cpus}
    titles = [TITLES.get(cpu, cpu) for cpu in cpus]
    lines = [f"| layer | {' | '.join(titles)} |", "|---" * (len(cpus) + 1) + "|"]
    for layer in layers.LAYERS:
        cells = [columns[cpu][layer.name] for cpu in cpus]
        lines.append(f"| {layer.name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def column(cpu: str) -> dict[str, str]:
    """Return for every layer whether neighbouring products saturate."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = environment.run_files(cpu, layers.files(), Path(folder))
    seen = {}
    for layer in layers.LAYERS:
        (output,) = outputs[layer.name].values()
        saturated = layer.saturated(output)
        if not saturated:
            seen[layer.name] = "exact"
        elif saturated == layer.neighbours():
            seen[layer.name] = "pairs"
        else:
            seen[layer.name] = f"{len(saturated)} of {len(layer.pairs)} pairs, other ones"
    return seen


def write() -> None:
    """Put the table of all emulated CPUs into the page."""
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    text = f"{before}{BEGIN}\n\n{table(list(environment.CPUS))}\n\n{END}{after}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.stdout.write(table(sys.argv[1:]) + "\n")
    else:
        write()

"""Fail when a file, a function or the whole package has outgrown its budget.

A file that grows past it is asking to become two; raising a number here is a decision to defend.
"""

import ast
import statistics
import sys
from pathlib import Path

FILE_LINES = 300
MEDIAN_LINES = 120
FUNCTION_LINES = 40
PACKAGE_LINES = 31_500


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    files = sorted((root / "qconvert").rglob("*.py"))
    sizes = {path.relative_to(root): len(path.read_text().splitlines()) for path in files}
    wrong = [
        f"{path}: {lines} lines, at most {FILE_LINES}"
        for path, lines in sizes.items()
        if lines > FILE_LINES
    ]
    for path in files:
        wrong += [f"{path.relative_to(root)}:{line}" for line in long_functions(path)]
    median = statistics.median(sizes.values())
    if median > MEDIAN_LINES:
        wrong.append(f"the median file has {median} lines, at most {MEDIAN_LINES}")
    if sum(sizes.values()) > PACKAGE_LINES:
        wrong.append(f"the package has {sum(sizes.values())} lines, at most {PACKAGE_LINES}")
    for line in wrong:
        print(line)
    biggest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    print(f"{len(sizes)} files, {sum(sizes.values())} lines, median {median:.0f}; biggest:")
    for path, lines in biggest:
        print(f"  {lines:4} {path}")
    return 1 if wrong else 0


def long_functions(path: Path) -> list[str]:
    """Return the functions of a file that are over the budget."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES:
                found.append(
                    f"{node.lineno}: {node.name} has {lines} lines, at most {FUNCTION_LINES}"
                )
    return found


if __name__ == "__main__":
    sys.exit(main())

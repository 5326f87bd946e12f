"""Show where the package grows: code lines per folder, the longest files, functions, signatures.

It fails nothing. Files over 500 lines, functions over 60 and signatures over 7 parameters are
listed because they deserve a second look.
"""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES = 500
FUNCTION_LINES = 60
PARAMETERS = 7
SHOWN = 5


def main() -> None:
    lines: dict[Path, int] = {}
    folders: dict[str, list[Path]] = defaultdict(list)
    functions: list[tuple[int, int, str]] = []
    for path in sorted((ROOT / "qconvert").rglob("*.py")):
        text = path.read_text()
        relative = path.relative_to(ROOT)
        lines[relative] = len(text.splitlines())
        folders[relative.parts[1] if len(relative.parts) > 2 else "."].append(relative)
        functions += [
            (size, parameters, f"{relative}:{line} {name}")
            for size, parameters, line, name in measure_functions(ast.parse(text))
        ]
    print(f"{sum(lines.values())} lines in {len(lines)} files")
    for folder, paths in sorted(folders.items(), key=lambda item: -total(item[1], lines)):
        print(f"  {total(paths, lines):6} lines {len(paths):4} files  {folder}")
    show("longest files", [(size, str(path)) for path, size in lines.items()], FILE_LINES)
    show("longest functions", [(size, name) for size, _, name in functions], FUNCTION_LINES)
    show("widest signatures", [(count, name) for _, count, name in functions], PARAMETERS)


def total(paths: list[Path], lines: dict[Path, int]) -> int:
    return sum(lines[path] for path in paths)


def measure_functions(tree: ast.Module) -> list[tuple[int, int, int, str]]:
    """Return lines, parameters, place and name of every function."""
    return [
        (
            (node.end_lineno or node.lineno) - node.lineno + 1,
            len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs),
            node.lineno,
            node.name,
        )
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def show(title: str, sizes: list[tuple[int, str]], threshold: int) -> None:
    """Print the largest, and all that are over a threshold."""
    ordered = sorted(sizes, reverse=True)
    over = sum(size > threshold for size, _ in ordered)
    print(f"{title} ({over} over {threshold}):")
    for size, name in ordered[: max(SHOWN, over)]:
        print(f"  {size:6}  {name}")


if __name__ == "__main__":
    main()

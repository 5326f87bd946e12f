"""The rules of ARCHITECTURE.md and the glossary, as far as a program can check them."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.docs.commands import ROOT

PACKAGE = ROOT / "qconvert"
FILES = sorted(PACKAGE.rglob("*.py"))
# Words that say nothing about what a variable holds, and metaphors that the glossary replaced.
BANNED = {
    "each", "found", "wanted", "told", "known", "made", "given", "heard", "lesson", "pupil",
    "teacher", "judge", "exam", "workshop", "shop", "study", "stretch", "shaken", "nearness",
    "lifted", "evened", "taught", "stranger",
}  # fmt: skip


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path, modules: set[str]) -> Iterator[str]:
    """Yield the modules of the package that a file imports, at any level of nesting."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module in modules:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in modules else str(node.module)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)


def test_imports_of_the_package_have_no_cycle() -> None:
    names = {module_name(path) for path in FILES}
    # `qconvert/__init__.py` loads `api` on demand, and everything may read its version.
    graph = {
        module_name(path): set(imported_modules(path, names)) - {"qconvert"}
        for path in FILES
        if module_name(path) != "qconvert"
    }
    while leaves := [name for name, imports in graph.items() if not imports & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == []


def test_configuration_object_is_used_by_few_files() -> None:
    users = [
        path.relative_to(PACKAGE).as_posix()
        for path in FILES
        if re.search(r"\bConfig\b", path.read_text())
    ]
    assert len(users) <= 10, users


def bound_names(tree: ast.Module) -> Iterator[str]:
    """Yield the names that a file binds, except fields, which may be keys of its JSON."""
    fields = [
        statement.target
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    ]
    for node in ast.walk(tree):
        if node in fields:
            continue
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name


def test_package_has_no_filler_variable_names() -> None:
    banned = {
        path.relative_to(PACKAGE).as_posix(): words
        for path in FILES
        if (words := BANNED & set(bound_names(ast.parse(path.read_text()))))
    }
    assert banned == {}


def test_files_on_the_architecture_page_exist() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    names = set(re.findall(r"`([a-z_/0-9]+/[a-z_0-9]+\.py)`", page))
    assert [
        name for name in names if not any((base / name).is_file() for base in (ROOT, PACKAGE))
    ] == []


def test_page_links_every_recipe_and_each_applies() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text()
    for diff in sorted((ROOT / "docs" / "extending").glob("*.diff")):
        assert f"docs/extending/{diff.name}" in page
        check = ["git", "apply", "--check", "--unsafe-paths", str(diff)]
        subprocess.run(check, cwd=ROOT, check=True)

"""The modules of the project as text: where they are, and what they import."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import histocodec

REPOSITORY = Path(histocodec.__file__).parents[1]
FOLDERS = ("histocodec", "formats", "cli", "benchmarks")


@dataclass(frozen=True)
class Import:
    """An imported module, and the line that imports it."""

    module: str
    line: int
    at_once: bool  # when the importing module is imported: neither in a function nor for the type checker alone


@dataclass(frozen=True)
class Module:
    """A file with its dotted name, as it is imported when installed."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def place(self) -> str:
        """The path from the repository's root."""
        return self.path.relative_to(REPOSITORY).as_posix()


@cache
def modules() -> dict[str, Module]:
    """Every module by its dotted name. Each linked folder is listed once, where its files are."""
    found = {}
    for top in FOLDERS:
        for path in sorted((REPOSITORY / top).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            if top == "histocodec" and parts[1] in FOLDERS:
                continue
            parts = parts if top == "histocodec" else ("histocodec", *parts)
            name = ".".join(parts).removesuffix(".__init__")
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def imports(module: Module) -> list[Import]:
    """All imports of a module. `from package import name` is an import of package.name where that is a module."""
    return [
        Import(name, node.lineno, at_once)
        for node, at_once in _import_nodes(module.tree, at_once=True)
        for name in _imported(node)
    ]


def _import_nodes(node: ast.AST, *, at_once: bool) -> Iterator[tuple[ast.stmt, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_once
        else:
            yield from _import_nodes(child, at_once=at_once and not _runs_later(child))


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def _imported(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative imports are not used here"
        assert node.module is not None
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            yield full if full in modules() else node.module

"""Everything public says what it is for."""

import ast
from collections.abc import Iterator

import pytest

from tests.support.modules import Module, modules

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def undocumented(module: Module) -> list[str]:
    """`path:line name` of what is public in a module and has no docstring."""
    missing = [] if ast.get_docstring(module.tree) else [f"{module.place}:1 the module"]
    return missing + [
        f"{module.place}:{node.lineno} {name}"
        for name, node in public(module.tree, "")
        if not ast.get_docstring(node) and not inherits_its_docstring(node)
    ]


def public(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, Definition]]:
    """Classes and functions, methods and properties, whose names and whose classes' names have no underscore first."""
    for child in node.body:
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield prefix + child.name, child
            if isinstance(child, ast.ClassDef):
                yield from public(child, f"{prefix}{child.name}.")


def inherits_its_docstring(node: Definition) -> bool:
    """A setter has that of its property, and an overload that of the function."""
    return any(ast.unparse(decorator).endswith((".setter", "overload")) for decorator in node.decorator_list)


@pytest.mark.parametrize("name", modules())
def test_everything_public_has_a_docstring(name: str) -> None:
    missing = undocumented(modules()[name])
    assert not missing, "\n".join(missing)


def test_what_is_private_or_inherited_needs_none() -> None:
    source = '''
"""A module."""
def _private(): ...
class Public:
    def method(self): ...
    def _helper(self): ...
    @size.setter
    def size(self, value): ...
class _Private:
    def method(self): ...
'''
    module = Module("name", next(iter(modules().values())).path, ast.parse(source))
    assert [line.split()[1] for line in undocumented(module)] == ["Public", "Public.method"]

"""Which branches of some modules were reached: they tell it themselves, by what is written into each at its import.

A tracer would be called for every line. Here each branch, and each further operand of an `and` and an `or`, calls a
set's `add`: 30 ns where it is reached (Python 3.11), nothing where it is not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

__all__ = ["look_at"]

_NAME = "__reached__"


def look_at(modules: Iterable[str]) -> set[int]:
    """The set to which these modules, imported after this, add a number for each branch that is reached."""
    wanted = frozenset(modules)
    early = sorted(wanted & sys.modules.keys())
    if early:
        raise RuntimeError(f"imported before anybody looked: {', '.join(early)}")
    reached: set[int] = set()
    sys.meta_path.insert(0, _Finder(wanted, _Writer(), reached))
    return reached


class _Finder(MetaPathFinder):
    """Finds these modules as Python does, and has them loaded by us."""

    def __init__(self, wanted: frozenset[str], writer: _Writer, reached: set[int]) -> None:
        self._wanted = wanted
        self._writer = writer
        self._reached = reached

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Python's."""
        if fullname not in self._wanted:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            raise ImportError(f"{fullname} is not there to be looked at")
        spec.loader = _Loader(fullname, spec.origin, self._writer, self._reached)
        return spec


class _Loader(SourceFileLoader):
    """Loads a module from its source, with our calls in it."""

    def __init__(self, fullname: str, path: str, writer: _Writer, reached: set[int]) -> None:
        super().__init__(fullname, path)
        self._writer = writer
        self._reached = reached

    def get_code(self, fullname: str) -> CodeType:
        """Python's; of what was compiled before nothing is used, and nothing of this is kept."""
        path = self.get_filename(fullname)
        tree = self._writer.visit(ast.parse(self.get_data(path), path))
        return compile(ast.fix_missing_locations(tree), path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        """Python's."""
        vars(module)[_NAME] = self._reached.add
        super().exec_module(module)


class _Writer(ast.NodeTransformer):
    """Writes a call into each branch, with a number of its own."""

    def __init__(self) -> None:
        self._numbers = 0

    def _call(self) -> ast.Call:
        self._numbers += 1
        return ast.Call(ast.Name(_NAME, ast.Load()), [ast.Constant(self._numbers)], [])

    def _first(self, body: list[ast.stmt]) -> list[ast.stmt]:
        """The same statements behind the call; behind a docstring and what must be first, too."""
        at = int(isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant))
        return [*body[:at], ast.Expr(self._call()), *body[at:]]

    def _value(self, value: ast.expr) -> ast.expr:
        # A set's `add` returns None.
        return ast.BoolOp(ast.Or(), [self._call(), value])

    def generic_visit(self, node: ast.AST) -> ast.AST:
        """Python's: every node that has no method of its own here."""
        super().generic_visit(node)
        if isinstance(node, ast.Module | ast.ClassDef):
            return node
        for name in ("body", "orelse", "finalbody"):
            inside = getattr(node, name, None)
            if isinstance(inside, list) and inside:
                setattr(node, name, self._first(inside))
        return node

    def visit_If(self, node: ast.If) -> ast.AST:
        """Python's; that it was not so is a branch too."""
        self.generic_visit(node)
        node.orelse = node.orelse or [ast.Expr(self._call())]
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        """Python's: `and` and `or`."""
        self.generic_visit(node)
        node.values = [node.values[0], *map(self._value, node.values[1:])]
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        """Python's: `x if y else z`."""
        self.generic_visit(node)
        node.body, node.orelse = self._value(node.body), self._value(node.orelse)
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        """Python's."""
        self.generic_visit(node)
        node.body = self._value(node.body)
        return node

# Licensed under the Apache License, Version 2.0.
"""
What a module declares, read from its source: commands take choices and defaults from records and signatures of
modules that import torch or datasets, for which `--help` cannot wait. Only literals, and names of literals, are read.
"""

import ast
import copy
import functools
from pathlib import Path


ROOT = Path(__file__).parents[1]


class Declarations:
    """What a module assigns at its top level, its functions and classes, and its imports from modules beside it."""

    def __init__(self, path: Path) -> None:
        self.assigned: dict[str, ast.expr] = {}
        self.functions: dict[str, ast.FunctionDef] = {}
        self.classes: dict[str, ast.ClassDef] = {}
        self.imported: dict[str, Path] = {}
        for node in ast.parse(path.read_text(encoding="utf-8"), str(path)).body:
            if isinstance(node, ast.Assign):
                self.assigned.update(
                    {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
                )
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.assigned[node.target.id] = node.value
            elif isinstance(node, ast.FunctionDef):
                self.functions[node.name] = node
            elif isinstance(node, ast.ClassDef):
                self.classes[node.name] = node
            elif isinstance(node, ast.ImportFrom) and node.level and node.module:
                module = path.parents[node.level - 1].joinpath(*node.module.split("."))
                self.imported.update({alias.name: module.with_suffix(".py") for alias in node.names})

    def value(self, name: str):
        """
        The literal that the module assigns to a name, or imports from a module beside it.

        Raises:
            ValueError: if it is no literal.
            KeyError: if there is no such name.
        """
        if name in self.assigned:
            return self._value(self.assigned[name])
        return declarations(self.imported[name]).value(name)

    def names(self, name: str) -> list[str]:
        """The names in a collection of names, such as a tuple of modules."""
        nodes = ast.walk(self.assigned[name])
        return [node.id for node in nodes if isinstance(node, ast.Name)]

    def keys(self, name: str) -> list[str]:
        """The keys of a dictionary, whatever its values are."""
        node = self.assigned[name]
        assert isinstance(node, ast.Dict)
        return [self._value(key) for key in node.keys if key]

    def record(self, name: str) -> dict[str, ast.expr]:
        """The keyword arguments of `NAME = Record(...)`."""
        node = self.assigned[name]
        assert isinstance(node, ast.Call)
        return {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}

    def field(self, record: str, name: str, default=None):
        """The literal that a record is made with."""
        fields = self.record(record)
        return self._value(fields[name]) if name in fields else default

    def name_in(self, record: str, field: str) -> str:
        """The name that a record is made with, such as that of a function."""
        node = self.record(record)[field]
        assert isinstance(node, ast.Name)
        return node.id

    def fields(self, dataclass: str) -> dict[str, str]:
        """The fields of a dataclass with their types, as they are written."""
        body = self.classes[dataclass].body
        return {
            node.target.id: ast.unparse(node.annotation)
            for node in body
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
        }

    def parameters(self, function: str) -> dict[str, object]:
        """A function's parameters with their defaults; `...` for one that must be given."""
        given = self.functions[function].args
        names = [argument.arg for argument in given.args]
        defaults = [self._value(node) for node in given.defaults]
        return dict(zip(names, [...] * (len(names) - len(defaults)) + defaults))

    def _value(self, node: ast.expr):
        return ast.literal_eval(_NamesToLiterals(self).visit(copy.deepcopy(node)))


class _NamesToLiterals(ast.NodeTransformer):
    """Puts the values of names into an expression, and makes one text of an f-string."""

    def __init__(self, module: Declarations) -> None:
        self.module = module

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(self.module.value(node.id))

    def visit_FormattedValue(self, node: ast.FormattedValue) -> ast.expr:
        return self.visit(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.expr:
        return ast.Constant("".join(str(ast.literal_eval(self.visit(part))) for part in node.values))


@functools.cache
def declarations(path: Path) -> Declarations:
    return Declarations(path)


def of_module(name: str) -> Declarations:
    """Those of a module of this project, such as "modeling_tier.data.columns"."""
    return declarations(ROOT.joinpath(*name.split(".")).with_suffix(".py"))

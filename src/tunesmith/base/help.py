"""What a class's fields say of themselves: the docstring that stands under each in its source, read when somebody asks."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from textwrap import dedent
from types import MappingProxyType


@cache
def help_of(kind: type) -> MappingProxyType[str, str]:
    """By the names of fields, those that it inherits too; a class whose source is nowhere says nothing."""
    found = dict[str, str]()
    for each in reversed(kind.__mro__):
        if each.__module__ not in ("builtins", "pydantic.main", "abc"):
            found.update(_own(each))
    return MappingProxyType(found)


def _own(kind: type) -> Iterator[tuple[str, str]]:
    try:
        definition = ast.parse(dedent(inspect.getsource(kind))).body[0]
    except (OSError, TypeError, SyntaxError):
        return
    for field, below in pairwise(definition.body if isinstance(definition, ast.ClassDef) else ()):
        match field, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                yield name, inspect.cleandoc(text)

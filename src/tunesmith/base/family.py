"""A family is a word list that grows when a file is dropped into its package."""

import importlib
import pkgutil
from functools import reduce
from importlib.metadata import entry_points
from operator import or_
from typing import Annotated, Any, Self

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from .errors import ConfigError
from .spec import Spec


class Family(Spec):
    """A field annotated with a family accepts any of its members, told apart by `kind`.

    A member is a subclass that declares `kind`; one that does not is a family of its own.
    """

    kind: str

    @classmethod
    def members(cls) -> list[type[Self]]:
        """Every member, in order of definition."""
        below = [found for child in cls.__subclasses__() for found in (child, *child.members())]
        return list(dict.fromkeys(found for found in below if "kind" in found.__annotations__))

    @classmethod
    def member(cls, kind: str) -> type[Self]:
        """The member called `kind`; ConfigError with those that exist if there is none."""
        for found in cls.members():
            if found.model_fields["kind"].default == kind:
                return found
        names = ", ".join(sorted(str(found.model_fields["kind"].default) for found in cls.members()))
        raise ConfigError(f"{cls.__name__.lower()}.{kind}: does not exist; there are {names}")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if "kind" in cls.__annotations__ and cls.__annotations__["kind"] is not str:
            return handler(source)
        members = cls.members()
        if not members:
            return handler(source)
        if len(members) == 1:
            return handler.generate_schema(members[0])
        return handler.generate_schema(Annotated[reduce(or_, members), Field(discriminator="kind")])


def load_members(package: str, path: list[str]) -> None:
    """Import every module of `package`, and what other distributions register under its name as entry points."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
    for entry in entry_points(group=package):
        entry.load()

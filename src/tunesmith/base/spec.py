"""The one base class of everything a user may write in a recipe, and how a recipe is read."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, LiteralString, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from .errors import ConfigError
from .help import help_of
from .secrets import from_environment, secret_in

SECRET = "secret"
"""Type of the problems whose value is not repeated."""


def secret(message: LiteralString) -> PydanticCustomError:
    """What a validator raises instead of ValueError where the value may hold a password: it is not shown."""
    return PydanticCustomError(SECRET, message)


class Spec(BaseModel):
    """Frozen, closed and self-documenting: the docstring under a field is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _default_kind(cls, given: Any) -> Any:
        """Settings of a family's default member may leave its `kind` out: `adapter: {rank: 8}` is LoRA where LoRA is the default."""
        if not isinstance(given, dict):
            return given
        filled = dict(given)
        for name, field in cls.model_fields.items():
            value, kind = given.get(name), getattr(field.default, "kind", None)
            if kind is not None and isinstance(value, dict) and "kind" not in value:
                filled[name] = {"kind": kind, **value}
        return filled

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With each field's help text as its description; pydantic's own reading of docstrings takes longer than all else that is imported here."""
        found = handler(schema)
        properties = handler.resolve_ref_schema(found).get("properties", {})
        for name in properties.keys() & help_of(cls).keys():
            properties[name].setdefault("description", help_of(cls)[name])
        return found


S = TypeVar("S", bound=Spec)


class Loader(yaml.SafeLoader):
    """YAML in which `1e-4` is a number, as YAML 1.2 has it, and `1.0e-4` alone in the YAML 1.1 that PyYAML reads."""


class Dumper(yaml.SafeDumper):
    """What `Loader` reads back as it was."""


for reader in (Loader, Dumper):
    number = re.compile(r"[-+]?(?:\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$")
    reader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))


def dump_yaml(value: Any) -> str:
    """A JSON value as YAML, in the order that it has."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


LONGEST, MOST = 200_000, 50_000
"""Characters of a YAML text, and values in it with every alias counted as what it stands for."""


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError, RecursionError: it is none, or a name stands twice in a mapping.
        ValueError: a value is none of its type, or the text is too long, or would be with its aliases written out.
    """
    if len(text) > LONGEST:
        raise ValueError(f"longer than {LONGEST:,} characters")
    loader = Loader(text)
    node = loader.get_single_node()
    if node is None:
        return None
    if _values(node, {}) > MOST:
        raise ValueError(f"more than {MOST:,} values with all aliases written out")
    return loader.construct_document(node)


def _values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values a node stands for; each node is looked at once."""
    if node not in known:
        known[node] = MOST  # of a node within itself there is no end
        below = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))] if isinstance(node, yaml.CollectionNode) else []  # fmt: skip
        known[node] = 1 + sum(_values(part, known) for part in below)
        _check_names(node)
    return known[node]


def _check_names(node: yaml.Node) -> None:
    """Refuse a name that stands twice in a mapping: YAML forbids it, and PyYAML takes the last without a word."""
    names = set()
    for name, _ in node.value if isinstance(node, yaml.MappingNode) else ():
        if isinstance(name, yaml.ScalarNode) and name.value != "<<":
            if (name.tag, name.value) in names:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{name.value!r} stands here twice", name.start_mark
                )
            names.add((name.tag, name.value))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds.

    Raises:
        ConfigError: the file is missing, is not YAML, or holds something other than a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; give the path of a recipe, for example recipes/quickstart.yaml"
        ) from None
    except (IsADirectoryError, NotADirectoryError, PermissionError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a recipe ({error}); give the path of a YAML file that you may read") from None
    try:
        found = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(
            f"{where}: not valid YAML: {getattr(error, 'problem', error)}; check indentation and quotes"
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: a recipe is a mapping of stages to settings, this is a {type(found).__name__}")
    return found


def overridden(tree: dict[str, Any], assignments: Sequence[str], *specs: type[Spec]) -> None:
    """Apply every `path.to.field=value` to `tree` in place, in any order: what is further out comes first, and a `kind` before the fields of its member.

    Args:
        tree: settings.
        assignments: what is laid over them.
        specs: as for `merged`.

    Raises:
        ConfigError: an assignment is none.
    """
    for each in sorted(assignments, key=lambda one: one.partition("=")[0].removesuffix(".kind").count(".")):
        override(tree, each, *specs)


def override(tree: dict[str, Any], assignment: str, *specs: type[Spec]) -> None:
    """Apply one `path.to.field=value` (the value is YAML) to `tree` in place.

    A new `kind` replaces the whole member, since the fields of the old one need not exist in the new; one that `tree` leaves out is the default's.
    """
    path, equals, text = assignment.partition("=")
    if not equals or not path:
        raise ConfigError(f"{assignment!r}: an override is written path.to.field=value")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"{assignment!r}: the value is not valid YAML; quote it") from None
    *parents, last = path.split(".")
    default = None
    for place, name in enumerate(parents, 1):
        below = tree.get(name)
        if below is None or (last == "kind" and place == len(parents) and not isinstance(below, dict | list)):
            below = tree[name] = {}  # nothing was chosen yet, or a word that stands for a choice
        if not isinstance(below, dict):
            raise ConfigError(f"{assignment!r}: {name!r} is a value, it has no fields below it")
        tree, (default, specs) = below, _below(specs, name)
    if last == "kind" and tree and tree.get("kind", default) not in (None, value):
        tree.clear()
    tree[last] = value


def _below(specs: Sequence[type[Spec]], name: str) -> tuple[str | None, tuple[type[Spec], ...]]:
    """The kind that a field has where none is given, and what may stand in it."""
    fields = [spec.model_fields[name] for spec in specs if name in spec.model_fields]
    default = next(filter(None, (getattr(field.default, "kind", None) for field in fields)), None)
    return default, tuple(found for field in fields for found in _specs(field.annotation))


def merged(tree: dict[str, Any], changes: dict[str, Any], *specs: type[Spec]) -> dict[str, Any]:
    """`tree` with `changes` in place of what they name. A member of another kind replaces the whole one, whose fields it need not have.

    Args:
        tree: settings.
        changes: what is laid over them.
        specs: what they may be settings of: a `kind` that `tree` leaves out is the default's there.
    """
    found = {**tree, **changes}
    for name in tree.keys() & changes.keys():
        under, over = tree[name], changes[name]
        if isinstance(under, dict) and isinstance(over, dict):
            default, held = _below(specs, name)
            kind = under.get("kind", default)
            if kind is None or over.get("kind", kind) == kind:
                found[name] = merged(under, over, *held)
    return found


def validate(spec: type[S], tree: dict[str, Any], origin: str) -> S:
    """Build `spec` from plain data.

    Raises:
        ConfigError: with the first problem's origin, path, reason and, for a misspelt name, the nearest one; or because a value is a key or a password.
    """
    if found := secret_in(tree, from_environment()):
        raise ConfigError(
            f"{origin}: {found[0]}: holds {found[1]}, and settings are written into the run; take it out, and give it by the environment"
        )
    try:
        return spec.model_validate(tree)
    except ValidationError as error:
        problems = error.errors()
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise ConfigError(f"{origin}: {_explain(spec, tree, first)}{more}") from None


def _explain(spec: type[Spec], tree: dict[str, Any], problem: Any) -> str:
    """One line for one pydantic problem."""
    place, given = problem["loc"], problem["input"]
    dotted = ".".join(_written(tree, place))
    if problem["type"] == "extra_forbidden":
        names = field_names(spec, place[:-1])
        near = difflib.get_close_matches(place[-1], names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"fields here: {', '.join(names)}"
        return f"{dotted}: no such field; {hint}"
    if problem["type"] == "union_tag_invalid":
        context = problem["ctx"]
        near = difflib.get_close_matches(context["tag"], context["expected_tags"].replace("'", "").split(", "), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{dotted}.kind: {context['tag']!r} does not exist; {hint}there are {context['expected_tags']}"
    if problem["type"] == "union_tag_not_found":
        return f"{dotted}: 'kind' is missing; write {dotted}: {{kind: ...}}, see `tunesmith explain {'.'.join(part for part in dotted.split('.') if not part.isdigit())}`"
    if problem["type"] == "missing":
        return f"{'.'.join([*_written(tree, place), place[-1]])}: is required and missing"
    if isinstance(given, str) and (near := difflib.get_close_matches(given, _kinds(_held(spec, place)), n=1)):
        member = f"{{kind: {near[0]}}}"
        return f"{dotted}: takes settings, not the word {given!r}; write {f'[{member}]' if problem['type'] == 'tuple_type' else member}"
    message = problem["msg"].removeprefix("Value error, ")
    said = f"{dotted or 'recipe'}: {message[:1].lower() + message[1:]}"
    if problem["type"] == SECRET:
        return said
    return f"{said}; got {given if isinstance(given, str | int | float | bool | None) else type(given).__name__!r}"


def _written(tree: Any, place: tuple[str | int, ...]) -> list[str]:
    """The parts of pydantic's path that the user wrote; it also holds the tags of unions."""
    parts = []
    below: Any = tree
    for part in place:
        if part in below if isinstance(below, dict) else isinstance(below, list) and isinstance(part, int):
            parts.append(str(part))
            below = below[part]
    return parts


def field_names(spec: type[Spec], place: tuple[str | int, ...]) -> list[str]:
    """Names that exist at pydantic's path `place` below `spec`."""
    return list(dict.fromkeys(name for kind in _held(spec, place) for name in kind.model_fields))


def _held(spec: type[Spec], place: tuple[str | int, ...]) -> list[type[Spec]]:
    """Every spec that may stand at pydantic's path `place` below `spec`; a union's tag is a part of its own there."""
    here = [spec]
    for part in place:
        fields = [kind.model_fields[part] for kind in here if part in kind.model_fields]
        tagged = [kind for kind in here if "kind" in kind.model_fields and kind.model_fields["kind"].default == part]
        if fields:
            here = [found for field in fields for found in _specs(field.annotation)]
        elif tagged:
            here = tagged
    return here


def _kinds(specs: list[type[Spec]]) -> list[str]:
    """What members of a family among `specs` are called."""
    found = [spec.model_fields["kind"].default for spec in specs if "kind" in spec.model_fields]
    return [kind for kind in found if isinstance(kind, str)]


def _specs(annotation: Any) -> list[type[Spec]]:
    """Every spec that a field of this annotation may hold, members of families included."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation, *(found for child in annotation.__subclasses__() for found in _specs(child))]
    return [found for part in get_args(annotation) for found in _specs(part)]

"""Writes docs/reference from the code: every setting, every member of every family, every command.

python docs/generate.py            # write the pages
python docs/generate.py --check    # exit 1 and name them if a page is not what the code says
"""

import re
import sys
from collections.abc import Iterator, Mapping
from inspect import cleandoc
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import click
import typer
import yaml
from pydantic.fields import FieldInfo

from tunesmith.base import Family, Spec
from tunesmith.base.help import help_of
from tunesmith.cli.app import app
from tunesmith.stages.merge import Merge
from tunesmith.stages.recipe import Recipe

FOLDER = Path(__file__).parent / "reference"
NOTE = "<!-- Written by docs/generate.py from the code; change the docstring there, then run it again. -->\n"
WORDS = {
    Any: "any value",
    str: "text",
    int: "integer",
    float: "number",
    bool: "true or false",
    type(None): "null",
    Path: "path",
}
BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def pages() -> dict[str, str]:
    """Every page by file name."""
    found = {"recipe.md": _recipe_page(), "cli.md": _command_page()}
    for name, field in Recipe.model_fields.items():
        spec = field.annotation
        if isinstance(spec, type) and issubclass(spec, Spec):
            found[f"{name}.md"] = _stage_page(name, spec)
    found["merge.md"] = _stage_page("merge", Merge)
    seen: list[type[Spec]] = []
    families = [*_families(Recipe, seen), *_families(Merge, seen)]
    for family in families:
        found[f"{_page_of(family)}.md"] = _family_page(family)
    found["index.md"] = _index(families)
    return {name: f"{NOTE}{text.rstrip()}\n" for name, text in found.items()}


def _families(spec: type[Spec], seen: list[type[Spec]]) -> Iterator[type[Family]]:
    """The families that a recipe may name, in the order of its fields."""
    seen.append(spec)
    for below in (found for field in spec.model_fields.values() for found in _specs(field.annotation)):
        if below in seen:
            continue
        if issubclass(below, Family):
            seen.append(below)
            yield below
            for member in _members(below):
                yield from _families(member, seen)
        else:
            yield from _families(below, seen)


def _specs(annotation: Any) -> list[type[Spec]]:
    """The specs in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return [annotation]
    return [found for part in get_args(annotation) for found in _specs(part)]


def _members(family: type[Family]) -> list[type[Family]]:
    """Members that this distribution holds; others may have been added."""
    return [member for member in family.members() if member.__module__.startswith("tunesmith.")]


def _page_of(family: type[Family]) -> str:
    return family.__name__.lower()


def _kind(member: type[Family]) -> str:
    return str(member.model_fields["kind"].default)


def _index(families: list[type[Family]]) -> str:
    stages = [name for name, field in Recipe.model_fields.items() if _specs(field.annotation)]
    lines = [
        "# Reference",
        "",
        "A recipe is a YAML file. These pages list what it may hold; `tunesmith explain` prints the same.",
        "",
    ]
    lines += ["* [The recipe](recipe.md): the fields at its top.", "* Its sections: " + _links(stages) + "."]
    lines += ["* Of merged runs: [merge](merge.md)."]
    lines += ["* Families, where a field takes one of several `kind`s: " + _links(map(_page_of, families)) + "."]
    return "\n".join([*lines, "* [The commands](cli.md)."])


def _links(names: Any) -> str:
    return ", ".join(f"[{name}]({name}.md)" for name in names)


def _recipe_page() -> str:
    return f"# The recipe\n\n{_prose(Recipe)}\n\n{_table(Recipe)}"


def _stage_page(name: str, spec: type[Spec]) -> str:
    parts = [f"# {name}\n\n{_prose(spec)}\n\n{_table(spec, f'{name}.')}"]
    for place, below in _sections(name, spec):
        parts.append(f"## {place}\n\n{_prose(below)}\n\n{_table(below, f'{place}.')}")
    return "\n\n".join(parts)


def _sections(place: str, spec: type[Spec]) -> Iterator[tuple[str, type[Spec]]]:
    """What stands below a section and is no family, however deep."""
    for field, info in spec.model_fields.items():
        for below in _specs(info.annotation):
            if not issubclass(below, Family):
                yield f"{place}.{field}", below
                yield from _sections(f"{place}.{field}", below)


def _family_page(family: type[Family]) -> str:
    parts = [f"# {_page_of(family)}\n\n{_prose(family)}", "| kind | |\n|---|---|"]
    parts[-1] += "".join(f"\n| [`{_kind(m)}`](#{_kind(m)}) | {_cell(_first(m))} |" for m in _members(family))
    for member in _members(family):
        source = cleandoc(sys.modules[member.__module__].__doc__ or "").splitlines()[0]
        parts.append(f"## {_kind(member)}\n\n{_prose(member)}\n\nSource: {source}\n\n{_table(member)}")
    return "\n\n".join(parts)


def _first(spec: type[Spec]) -> str:
    """The first paragraph of a class's docstring, on one line."""
    return " ".join(cleandoc(spec.__doc__ or "").split("\n\n")[0].split())


def _prose(spec: type[Spec]) -> str:
    return cleandoc(spec.__doc__ or "")


def _table(spec: type[Spec], prefix: str = "") -> str:
    """One line per field."""
    fields = {name: field for name, field in spec.model_fields.items() if name != "kind"}
    if not fields:
        return "It has no fields."
    lines = ["| field | type | default | |", "|---|---|---|---|"]
    for name, field in fields.items():
        kind = ", ".join([_written(field.annotation, f"{prefix}{name}"), *_bounds(field)])
        lines.append(f"| `{name}` | {kind} | {_default(field)} | {_cell(help_of(spec).get(name, ''))} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _written(annotation: Any, place: str) -> str:
    """What a person writes for a value of this annotation."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _written(parts[0], place)
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return " or ".join(_written(part, place) for part in parts)
    if origin in (dict, Mapping):
        return f"mapping from {_written(parts[0], place)} to {_written(parts[1], place)}"
    if origin is tuple:
        inner = [_written(part, place) for part in parts if part is not Ellipsis]
        return f"list of {inner[0]}" if Ellipsis in parts else f"list of {len(inner)}: {', '.join(inner)}"
    if issubclass(annotation, Family):
        return f"[{_page_of(annotation)}]({_page_of(annotation)}.md)"
    if issubclass(annotation, Spec):
        return f"[section]({place}.md)" if "." not in place else f"[section](#{place.replace('.', '')})"
    return WORDS[annotation]


def _bounds(field: FieldInfo) -> list[str]:
    """Limits of a number, as in `> 0`."""
    limits = [(type(limit).__name__.lower(), limit) for limit in field.metadata]
    return [f"{BOUNDS[name]} {getattr(limit, name)}" for name, limit in limits if name in BOUNDS]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, Spec) and not isinstance(value, Family):
        return "its own"
    return f"`{_cell(_yaml(value))}`"


def _yaml(value: Any) -> str:
    """A default as a person would write it; of a member only its kind."""
    if isinstance(value, Family):
        return f"{{kind: {value.kind}}}"
    if isinstance(value, Spec):
        return f"{{{', '.join(f'{name}: {_yaml(getattr(value, name))}' for name in sorted(value.model_fields_set))}}}"
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()


def _command_page() -> str:
    root = typer.main.get_command(app)
    parts = ["# The commands", f"```text\n{_help(root, 'tunesmith')}\n```"]
    for name, command in _commands(root, "tunesmith"):
        parts.append(f"## {name}\n\n```text\n{_help(command, name)}\n```")
    return "\n\n".join(parts)


def _commands(group: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command below a group, by the words that call it."""
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, f"{name} {word}")
        else:
            yield f"{name} {word}", command


def _help(command: Any, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=100)
    return re.sub(r"[ \t]+$", "", command.get_help(context), flags=re.MULTILINE).strip()


def main() -> int:
    """Write the pages, or with --check only compare them; the exit code."""
    wanted = pages()
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    stale = sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))
    if "--check" in sys.argv[1:]:
        for name in stale:
            print(f"docs/reference/{name}: is not what the code says; run python docs/generate.py")
        return 1 if stale else 0
    FOLDER.mkdir(exist_ok=True)
    for name in stale:
        (FOLDER / name).unlink(missing_ok=True)
        if name in wanted:
            (FOLDER / name).write_text(wanted[name], encoding="utf-8")
    print(f"docs/reference: {len(wanted)} pages, {len(stale)} changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Commands that only look: show, plan, explain, schema, preview."""

import json
from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.text import Text

from tunesmith.base import ConfigError, Family, Run, Spec
from tunesmith.base.help import help_of
from tunesmith.stages.headline import cells

console = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


def show_run(folder: Path, as_json: bool) -> None:
    """Every stage's state, artifact, seconds, id and figures.

    Raises:
        ConfigError: the folder is not a run.
    """
    facts = facts_of(folder)
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for name, stage in facts["stages"].items():
        seconds = f"{stage['seconds']:.1f} s" if "seconds" in stage else ""
        told = f" {stage['state']:12} {seconds:>9}  {stage['artifact']}"
        console.print(Text.assemble((f"{name:11}", "bold"), told))
        if "error" in stage:
            console.print(f"    {stage['error']}")
        if "done" in stage:
            console.print(f"    finished before: {stage['done']}")
        for key, value in stage.get("metrics", {}).items():
            if isinstance(value, int | float | str):
                console.print(f"    {key.replace('_', ' ')}: {value}")
    evaluated = facts["stages"].get("evaluate", {}).get("metrics", {})
    if "systems" in evaluated:
        _print_systems(evaluated, "tuned")
    for name, task in evaluated.get("tasks", {}).items():
        console.print(f"    {name}: {task['grader']} in {task['unit']}")
        _print_systems(task, "merged")


def _print_systems(block: dict[str, Any], subject: str) -> None:
    for system, score, span, more, more_span in cells(block, subject):
        apart = f"   {subject} is better by {more} ({more_span})" if more else ""
        console.print(f"    {system:10} {score:>6} ({span}){apart}")


def facts_of(folder: Path) -> dict[str, Any]:
    """What `tunesmith show --json` prints."""
    run = Run(folder)
    if not run.states:
        raise ConfigError(f"{folder}: is not the folder of a run; runs are below runs/ unless --run said otherwise")
    stages = {}
    for name, state in run.states.items():
        found = run.manifest(name)
        damaged = {"state": "damaged"} if found is None and state["state"] == "done" else {}
        kept = ("metrics", "parents", "files", "environment", "created")
        stages[name] = {**state, **damaged, **{key: found[key] for key in kept if found and key in found}}
    return {"run": str(folder), "stages": stages}


def show_plan(given: Path, assignments: tuple[str, ...]) -> int:
    """Print what the recipe and its alternatives need; 1 if the recipe itself does not fit."""
    from tunesmith.stages.pipeline import open_run
    from tunesmith.stages.plan import plan, table

    plans = plan(open_run(given, None, assignments).recipe)
    Console(highlight=False, width=None if console.is_terminal else 140).print(table(plans))
    return 0 if all(each.estimate.fits for each in plans if not each.settings) else 1


def explain_topic(topic: str) -> None:
    """Print a method's or a setting's description, fields and defaults.

    Raises:
        ConfigError: there is no such topic.
    """
    from tunesmith.stages.merged import Merged
    from tunesmith.stages.recipe import Recipe

    families = {family.__name__.lower(): family for family in _families()}
    if not topic:
        console.print(
            f"families: {', '.join(sorted(families))}\nsettings: {', '.join([*Recipe.model_fields, 'merge'])}"
        )
        return
    head, _, rest = topic.partition(".")
    if head in families:
        family = families[head]
        _print_spec(topic, family.member(rest)) if rest else _print_family(family)
        return
    _explain_setting(Merged if head == "merge" else Recipe, topic)


def _families() -> list[type[Family]]:
    import tunesmith.stages.merged
    import tunesmith.stages.recipe  # noqa: F401  (these imports define every family)

    return [family for family in Family.__subclasses__() if family.members()]


def _print_family(family: type[Family]) -> None:
    console.print(Text.assemble((family.__name__.lower(), "bold"), f": {family.__doc__}"))
    for member in family.members():
        console.print(f"  {member.model_fields['kind'].default:18} {_paragraph(member.__doc__)}")


def _paragraph(text: str | None) -> str:
    """The first one of a docstring, as one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def _print_spec(title: str, spec: type[Spec]) -> None:
    console.print(Text.assemble((title, "bold"), f": {spec.__doc__}"))
    import sys

    console.print(f"  source: {_paragraph(sys.modules[spec.__module__].__doc__)}")
    for name, field in spec.model_fields.items():
        console.print(f"  {name} = {_default(field)}\n      {_help(spec, name)}")


def _explain_setting(spec: type[Spec], path: str) -> None:
    current: Any = spec
    within = spec
    *_, last = parts = path.split(".")
    for part in parts:
        if not (isinstance(current, type) and issubclass(current, Spec)) or part not in current.model_fields:
            names = (
                ", ".join(current.model_fields) if isinstance(current, type) and issubclass(current, Spec) else "none"
            )
            raise ConfigError(f"{path}: nothing is called {part!r} there; there are {names}")
        within, field = current, current.model_fields[part]
        classes = [
            kind
            for kind in (field.annotation, *get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, Spec)
        ]
        usual = type(field.default) if isinstance(field.default, Spec) and part is not last else None
        current = usual or (classes[0] if classes else field)
    if isinstance(current, type):
        _print_family(current) if issubclass(current, Family) and len(current.members()) else _print_spec(path, current)
        return
    console.print(f"{path} = {_default(current)}\n  {_help(within, last)}")


def _help(spec: type[Spec], field: str) -> str:
    return " ".join(help_of(spec).get(field, "").split())


def _default(field: Any) -> str:
    return "required" if field.is_required() else repr(field.get_default(call_default_factory=True))


def print_schema() -> None:
    """The recipe's JSON schema."""
    from tunesmith.stages.recipe import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2, ensure_ascii=False))


def preview_rows(given: Path, folder: Path | None, assignments: tuple[str, ...], rows: int) -> None:
    """Prepare if needed, then print rows with the tokens that are learnt marked."""
    from tunesmith.data.prepared import load_split
    from tunesmith.data.preview import preview
    from tunesmith.models.find import load_tokenizer
    from tunesmith.stages.pipeline import open_run

    pipeline = open_run(given, folder, assignments)
    with pipeline.run.lock():
        prepared = pipeline.prepare()
    tokenizer = load_tokenizer(pipeline.recipe.model)
    for row in load_split(prepared.path, "train")[:rows]:
        console.print(preview(row, tokenizer, plain=not console.is_terminal))

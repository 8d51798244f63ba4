"""The space that is searched: values laid into a recipe, and the refusal of what cannot be searched before anything is loaded."""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, TypeVar

from tunesmith.base import ConfigError, Spec
from tunesmith.base.spec import validate

from .settings import ABOVE, BELOW, DEFAULT, DROPOUT, RATE, Search, Values

Settings = Mapping[str, Any]
"""Values by dotted path; of a path with `times`, what the other setting is multiplied by."""
Tree = dict[str, Any]
R = TypeVar("R", bound=Spec)
"""A recipe, whose class imports this file."""

ORIGIN = "search.space"
FREE = ("initialise", "finetune", "precision")
"""Sections that may be searched; all others leave training as it is, or change the rows that trials are compared on."""
FIXED = {
    "prepare": "changes the rows that trials are compared on",
    "evaluate": "changes how the result is measured, which no trial sees",
    "seed": "changes the rows that are held out, and would be a search for luck",
    "model": "changes the tokens that trials are compared on; give each model a run of its own",
    "search": "is the search itself",
}
MOST = "finetune.most_tokens"
VALIDATION = "finetune.validation"
PAID = ("finetune.objective", "finetune.rollouts.rewards")
"""What the validation score is made of, unless a grader says it."""


def space_of(recipe: Any) -> dict[str, Values]:
    """What is searched: the recipe's own space, or those parts of the default one that it has."""
    search: Search = recipe.search
    if search.space:
        return dict(search.space)
    tree = recipe.model_dump(mode="json")
    own = _at(tree, RATE) if _has(tree, RATE) else None
    rate = {RATE: Values(low=own / BELOW, high=own * ABOVE, log=True)} if own else {}
    fixed = {DROPOUT} if recipe.finetune.objective.rollouts else set()  # such objectives learn without
    return rate | {path: values for path, values in DEFAULT.items() if _has(tree, path) and path not in fixed}


def _has(tree: Tree, path: str) -> bool:
    below: Any = tree
    for name in path.split("."):
        if not isinstance(below, dict) or name not in below:
            return False
        below = below[name]
    return True


def given(tree: Tree, space: Mapping[str, Values]) -> dict[str, Any]:
    """The settings that a recipe has itself; those below a member of another kind are left out."""
    found = {}
    for path, values in space.items():
        if _has(tree, path):
            value = _at(tree, path)
            found[path] = value if values.times is None else value / _divisor(tree, path, values.times)
    return found


def _at(tree: Tree, path: str) -> Any:
    below: Any = tree
    for name in path.split("."):
        below = below[name]
    return below


def chosen(recipe: R, settings: Settings) -> R:
    """The recipe that a trial trains by: the given one with the trial's settings, and nothing left to search.

    A new `kind` clears the fields of the old one, so kinds come first; multiples of other settings come last.

    Raises:
        ConfigError: these settings make no sense, or none together.
    """
    space = space_of(recipe)
    tree = recipe.model_dump(mode="json")
    tree["search"] = {}
    plain = [path for path in settings if space[path].times is None]
    for path in sorted(plain, key=lambda path: not path.endswith(".kind")):
        _lay(tree, path, settings[path])
    laid = validate(type(recipe), tree, ORIGIN)
    if len(plain) == len(settings):
        return laid
    tree = laid.model_dump(mode="json")
    for path in (path for path in settings if path not in plain):
        _lay(tree, path, settings[path] * _number(tree, path, str(space[path].times)))
    return validate(type(recipe), tree, ORIGIN)


def _lay(tree: Tree, path: str, value: Any) -> None:
    *parents, last = path.split(".")
    below: Any = tree
    for name in parents:
        below = below.setdefault(name, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{ORIGIN}: {path}: this recipe has no settings below {name!r}")
    if last == "kind" and below.get("kind") != value:
        below.clear()
    below[last] = value


def _number(tree: Tree, path: str, times: str) -> float:
    value = _at(tree, times) if _has(tree, times) else None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{ORIGIN}: {path}: times: {times} is no number of this recipe")
    return value


def _divisor(tree: Tree, path: str, times: str) -> float:
    divisor = _number(tree, path, times)
    if not divisor:
        raise ConfigError(
            f"{ORIGIN}: {path}: times: {times} is 0 in this recipe, and nothing but 0 is a multiple of it"
        )
    return divisor


def told(recipe: Any, settings: Settings) -> dict[str, Any]:
    """Settings as a recipe says them: what is a multiple of another setting comes as the product."""
    tree = chosen(recipe, settings).model_dump(mode="json")
    return {path: _at(tree, path) for path in settings}


def check(recipe: Any) -> None:
    """Refuse a space that cannot be searched.

    Every end and every value is laid into the recipe, with every combination of kinds, and validated.

    Raises:
        ConfigError: says which path, and what is wrong with it.
    """
    space = space_of(recipe)
    if not space:
        raise ConfigError(f"{ORIGIN}: this recipe has none of the settings of the default space; say what to search")
    if not (recipe.prepare.validation_fraction or recipe.prepare.validation):
        raise ConfigError(
            "search: trials are compared on validation rows; set prepare.validation or prepare.validation_fraction"
        )
    if recipe.finetune.most_tokens:
        raise ConfigError(
            f"search: {MOST} ends trials before the shares of all epochs at which they are scored; leave it null and set finetune.epochs"
        )
    for path, values in space.items():
        _check_path(path, recipe)
        if values.times in space and space[values.times].times is not None:
            raise ConfigError(
                f"{ORIGIN}: {path}: times: {values.times} is a multiple itself; name the setting that it is a multiple of"
            )
    given(recipe.model_dump(mode="json"), space)
    for settings in _corners(space):
        _check_shared(recipe, chosen(recipe, settings), settings)


def _check_shared(recipe: Any, laid: Any, settings: Settings) -> None:
    """Refuse what a whole member in a list changes along with itself."""
    own, tree = (each.model_dump(mode="json") for each in (recipe, laid))
    for path in settings:
        for below in (VALIDATION, *PAID):
            if below.startswith(f"{path}.") and _part(own, below) != _part(tree, below):
                _check_path(below, recipe)


def _part(tree: Tree, path: str) -> Any:
    return _at(tree, path) if _has(tree, path) else None


def _check_path(path: str, recipe: Any) -> None:
    section = path.split(".")[0]
    if section not in FREE:
        why = FIXED.get(
            section, "is no part of a training" if section in type(recipe).model_fields else "does not exist"
        )
        raise ConfigError(f"search.space: {path}: {why}; search settings of initialise, finetune, or precision")
    if path == MOST:
        raise ConfigError(f"search.space: {path}: trials are scored at shares of all epochs; search finetune.epochs")
    if path == VALIDATION or path.startswith(f"{VALIDATION}."):
        raise ConfigError(f"search.space: {path}: trials are compared by it, so it has to be the same for all")
    paid = any(path == part or path.startswith(f"{part}.") for part in PAID)
    if paid and recipe.finetune.validation.metric in ("auto", "loss"):
        raise ConfigError(
            f"search.space: {path}: changes what the validation score counts, so trials could not be compared; set finetune.validation.metric "
            "to a grader"
        )


def _corners(space: Mapping[str, Values]) -> Iterator[dict[str, Any]]:
    """Every value of every path alone, beside every combination of kinds."""
    kinds = [path for path in space if path.endswith(".kind")]
    others = [path for path in space if path not in kinds]
    for combination in product(*(space[path].ends for path in kinds)):
        chosen = dict(zip(kinds, combination, strict=True))
        if kinds:
            yield chosen
        for path in others:
            yield from ({**chosen, path: value} for value in space[path].ends)

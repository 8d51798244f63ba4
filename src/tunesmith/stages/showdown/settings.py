"""What a showdown is made of: a start that all roads share, the steps they take besides, and the roads."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from tunesmith.base import ConfigError, Spec
from tunesmith.base.spec import merged, overridden, read_yaml, validate

from ..divergence import Divergence
from ..recipe import Recipe, anchor

START = "start"
"""The run that every road goes on from."""
PRODUCTS = {"model": "deploy", "rows": "sample", "run": "deploy"}
"""What others may take of a run, and the stage that makes it."""
REFERENCE = re.compile(r"\$([^.]*)\.(.*)")
NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")

Tree = dict[str, Any]


class Showdown(Spec):
    """One task, one base model, equal compute: several roads from the same start, compared on one page.

    Each run is a recipe: `base` with the run's own changes. In a change, `$NAME.rows` stands for the rows that the run NAME sampled, `$NAME.model` for the model that it deployed, and
    `$NAME.run` for its folder, with such a model in it; NAME must stand before it.
    """

    base: Tree
    """The recipe that all runs have in common."""
    start: Tree
    """What the run that every road goes on from changes in it. Steps and roads take its model as theirs."""
    steps: dict[str, Tree] = Field(default_factory=dict)
    """Runs that roads need besides, by name: to sample rows, or to learn a reward model. They count for the roads that use them."""
    roads: dict[str, Tree] = Field(min_length=2)
    """The ways to be compared, by name; the last training of each. How long it takes follows from the budget."""
    against: str
    """The road that the others are compared with."""
    budget: int = Field(ge=1)
    """Token passes that each road may spend after the start: a token through the model forwards is one, backwards another, and a third where the
    base's own weights learn. What is sampled, scored or learnt on the way counts."""
    divergence: Divergence = Divergence()
    """How the distance from the start is measured."""
    shown: int = Field(8, ge=1)
    """Test rows whose answers are shown side by side."""

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        before: list[str] = [START]
        for name, changes in (*self.steps.items(), *self.roads.items()):
            if not NAME.fullmatch(name) or name in before:
                raise ValueError(f"{name!r} cannot name a run: take small letters, digits, - and _, and each name once")
            for other, product in references(changes):
                if other not in before or product not in PRODUCTS:
                    raise ValueError(
                        f"{name}: ${other}.{product} stands for nothing; before it there are {', '.join(before)}, each with {', '.join(PRODUCTS)}"
                    )
            before.append(name)
        used = {other for changes in (*self.steps.values(), *self.roads.values()) for other, _ in references(changes)}
        if idle := [name for name in self.steps if name not in used]:
            raise ValueError(f"no road uses the step {idle[0]}; leave it out, or name it as ${idle[0]}.rows or so")
        return self

    @model_validator(mode="after")
    def _roads_are_comparable(self) -> Self:
        if self.against not in self.roads:
            raise ValueError(f"against: {self.against!r} is no road; there are {', '.join(self.roads)}")
        if not _section(self.base, "prepare").get("test"):
            raise ValueError(
                "base.prepare.test is missing: all roads answer the same rows; give them a file of their own"
            )
        for name, changes in self.roads.items():
            for field in ("epochs", "most_tokens"):
                if field in _section(changes, "finetune"):
                    raise ValueError(f"{name}: finetune.{field} follows from the budget; leave it out")
            if {"test", "test_rows", "test_fraction"} & set(_section(changes, "prepare")) or "evaluate" in changes:
                raise ValueError(f"{name}: all roads are measured alike; put prepare.test and evaluate into base")
        return self

    @property
    def changes(self) -> dict[str, Tree]:
        """What each run changes, in the order in which they are made."""
        return {START: self.start, **self.steps, **self.roads}

    def recipe(self, name: str, find: Callable[[str, str], str]) -> Recipe:
        """The recipe of a run.

        Args:
            name: the run's.
            find: from a run's name and one of PRODUCTS to where that is.

        Raises:
            ConfigError: the run's settings make no sense.
        """
        model = {} if name == START else {"model": f"${START}.model"}
        tree = _resolved(merged(merged(self.base, model), self.changes[name], Recipe), find)
        found = validate(Recipe, tree, name)
        if name != START and found.prune.method is not None:
            raise ConfigError(f"{name}: prune: what pruning spends is no part of the budget; prune the start alone")
        return found

    def taken(self, name: str) -> set[str]:
        """What others take of a run: names in PRODUCTS."""
        found = {product for changes in self.changes.values() for other, product in references(changes) if other == name}  # fmt: skip
        return found | ({"model"} if name == START else set())

    def needed(self, name: str) -> list[str]:
        """The steps that a run rests on, the start aside, each once and in order."""
        direct = {other for other, _ in references(self.changes[name])} - {START}
        every = direct.union(*(self.needed(other) for other in direct))
        return [step for step in self.changes if step in every]


def _section(settings: Tree, name: str) -> Tree:
    """A section of settings; nothing of one that is left out, or is none, which is refused as part of a recipe."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def references(tree: Any) -> Iterator[tuple[str, str]]:
    """Every `$name.product` in a tree of settings."""
    for value in _values(tree):
        if found := REFERENCE.fullmatch(value):
            yield found[1], found[2]


def _values(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ():
        yield from _values(below)


def _resolved(tree: Any, find: Callable[[str, str], str]) -> Any:
    """The tree with a path in place of every reference."""
    if isinstance(tree, dict):
        return {name: _resolved(value, find) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_resolved(value, find) for value in tree]
    found = REFERENCE.fullmatch(tree) if isinstance(tree, str) else None
    return find(found[1], found[2]) if found else tree


def read_showdown(path: Path, assignments: tuple[str, ...] = ()) -> Showdown:
    """Read a showdown and apply `path.to.field=value` overrides; paths are relative to its folder.

    Raises:
        ConfigError: the file, an override or the recipe of one of its runs is wrong.
    """
    tree = read_yaml(path)
    _anchor_all(tree, path.parent)
    overridden(tree, assignments)
    _anchor_all(tree, Path.cwd())
    found = validate(Showdown, tree, str(path))
    for name in found.changes:  # what makes no sense is refused before anything is computed
        found.recipe(name, lambda other, product: f"{other}.{product}")
    return found


def _anchor_all(tree: Tree, folder: Path) -> None:
    """Make the paths of every run's settings absolute, as seen from `folder`."""
    several = [tree.get(name) for name in ("steps", "roads")]
    named = [run for runs in several if isinstance(runs, dict) for run in runs.values()]
    for settings in (tree.get("base"), tree.get("start"), *named):
        if isinstance(settings, dict):
            anchor(settings, folder)

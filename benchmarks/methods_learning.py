"""How many weights each recipe in `recipes/methods` teaches, by the model's shapes alone: `python benchmarks/methods_learning.py [NAME ...]`.

Writes the counts into results that are there; nothing is trained.
"""

import sys
from pathlib import Path
from typing import Any

import methods_table as table

from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.pruning.base import decoder_layers, linears
from tunesmith.methods.pruning.sparse import Sparse
from tunesmith.models.heads import attach_head
from tunesmith.models.load import Loaded, load_config, locate, resolve_precision, served
from tunesmith.models.skeleton import skeleton
from tunesmith.stages.recipe import Recipe, read_recipe


def learning(recipe: Recipe) -> dict[str, int]:
    """Weights that learn in the training (`trainable`), what a hybrid moves beside them (`moved`), and those that learn again after pruning (`recovering`)."""
    config, tune, prune = load_config(locate(recipe.model)), recipe.finetune, recipe.prune
    model = attached(config, recipe.precision, recipe.initialise.adapter, recipe.seed, head=tune.objective.head)
    found = {"trainable": size(model)}
    if tune.optimizer.moves_frozen:
        found["moved"] = sum(one.numel() for one in model.parameters()) - found["trainable"]
    if prune.recovery is not None:
        method: Any = prune.method
        if method.smaller:
            layers = method.left(config).get("num_hidden_layers", config.num_hidden_layers)
            config = method.configured(config, range(layers))
        model = attached(config, served(recipe.precision), prune.adapter, recipe.seed)
        found["recovering"] = size(model) - (zeros(method, model) if isinstance(method, Sparse) else 0)
    return found


def attached(config: Any, precision: Any, adapter: Adapter, seed: int, head: bool = False) -> Any:
    """A model without numbers, as it goes into a training."""
    chosen = resolve_precision(precision)
    loaded = Loaded("count", Path(), skeleton(config, chosen), None, chosen)
    adapter.attach(loaded, seed)
    if head:
        attach_head(loaded)
    return loaded.model


def size(model: Any) -> int:
    """Count of the parameters that learn."""
    return sum(one.numel() for one in trainable(model).values())


def zeros(method: Sparse, model: Any) -> int:
    """Count of the weights that pruning sets to zero, which stay it."""
    weights = [linear.weight for layer in decoder_layers(model) for _, linear in linears(layer)]
    return sum(method.count(one) * (one.numel() // method.width(one)) for one in weights)


def recipe_of(name: str, seed: int) -> Recipe:
    """A recipe as if it began with the base's own model: what is tuned before it has the same shapes, and need not be there."""
    model = read_recipe(table.RECIPES / f"{table.BASE}.yaml").model
    return read_recipe(table.RECIPES / f"{name}.yaml", (f"seed={seed}", f"model={model}"))


def main() -> None:
    """Count anew, recipe by recipe."""
    for name in sys.argv[1:] or sorted(path.stem for path in table.RECIPES.glob("*.yaml")):
        known = table.kept(name)
        for run in known["runs"]:
            run.update(learning(recipe_of(name, run["seed"])))
        if known["runs"]:
            table.keep(name, known)
            print(f"{name:18s} {known['runs'][0]['trainable']:,}", flush=True)


if __name__ == "__main__":
    main()

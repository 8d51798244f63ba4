"""What a training reads and writes has to fit into the model's context: what does not is refused before anything is loaded."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from tunesmith.base import Artifact, ConfigError, DataError
from tunesmith.data.example import Example
from tunesmith.data.prepared import SPLITS, load_examples, load_split, rendered_on
from tunesmith.data.render import Renderer
from tunesmith.grading import Grader
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.adapters.prompt import Prompt
from tunesmith.models.find import load_tokenizer, locate
from tunesmith.models.load import load_config, longest

if TYPE_CHECKING:
    from .finetune import Finetune


def check_reach(tune: "Finetune", adapter: Adapter, prepared: Artifact, model: str, name: str = "finetune") -> None:
    """Refuse rows beyond the positions that a model has, an adapter's own tokens before them, and prompts that leave no room for an answer which training samples
    or validation grades; `name` is where a recipe holds the training.

    Raises:
        ConfigError: naming the first, where a setting leaves too few positions, which a trial of a search may have and the recipe not.
        DataError: naming the first, where a row is too long by itself.
    """
    context = longest(load_config(locate(model)))
    if context is None:
        return
    own = adapter.tokens if isinstance(adapter, Prompt) else 0
    left, fewer = context - own, ", or lower initialise.adapter.tokens" if own else ""
    which = f"{context:,}" + (f", {own:,} of which are the adapter's" if own else "")
    for row in (row for split in SPLITS for row in load_split(prepared.path, split)):
        if len(row) > left:
            raise (ConfigError if own else DataError)(
                f"{row.origin}: {len(row):,} tokens, and the model has positions for {which}; set prepare.max_tokens={max(left, 8)}{fewer}"
            )
    for split, most, setting, tokens in _answered(tune):
        examples = load_examples(prepared.path, split, most)
        for example, found in zip(examples, sizes(prepared, split, examples, most, model), strict=True):
            if found is not None and found[0] + tokens > left:
                raise ConfigError(
                    f"{example.origin}: asks in {found[0]:,} tokens, which leaves no room for an answer of {name}.{setting}={tokens} where the model has positions for "
                    f"{which}; lower that{fewer}, or leave such rows out"
                )


def _answered(tune: "Finetune") -> Iterator[tuple[str, int | None, str, int]]:
    """Splits whose prompts are answered: of how many rows at most, which setting says how long answers may be, and what it says."""
    rollouts, validation = tune.rollouts, tune.validation
    if rollouts is not None:
        yield "train", None, "rollouts.max_tokens", rollouts.max_tokens
    if isinstance(validation.metric, Grader):
        yield "validation", validation.rows, "validation.max_tokens", validation.max_tokens
    elif rollouts is not None:
        yield "validation", validation.rows, "rollouts.max_tokens", rollouts.max_tokens


def sizes(
    prepared: Artifact, split: str, examples: list[Example], most: int | None, model: str
) -> Iterator[tuple[int, int] | None]:
    """Tokens of what each row of a split asks, and of its right answer without the token that ends it; None of plain text.

    They are read off the row's own tokens, unless these are cut off or do not tell where the answer begins.
    """
    settings, renderer = prepared.manifest["spec"], None
    for example, row in zip(examples, load_split(prepared.path, split, most), strict=True):
        if example.text is not None:
            yield None
            continue
        whole, asked = row.sequences[0], None
        if settings["supervise"] == "all" or len(row) >= settings["max_tokens"]:
            renderer = renderer or Renderer(load_tokenizer(model), today=rendered_on(prepared.path))
            whole, asked = renderer.row(example).sequences[0], len(renderer.prompt(example.asked, example.tools))
        first = asked or len(whole) - int(np.argmin(whole.learn[::-1]))  # of the last that is learnt in one go
        yield first, len(whole) - first - 1

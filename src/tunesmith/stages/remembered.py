"""Remembered: what a training shows besides the rows, and how much easier to guess that became; see `tunesmith.data.canaries`."""

from typing import Any

from tunesmith.base import Artifact
from tunesmith.data.canaries import Canaries
from tunesmith.data.example import Example, Row
from tunesmith.data.prepared import load_examples, rendered_on
from tunesmith.data.render import Renderer
from tunesmith.grading.exposure import exposures
from tunesmith.models.find import load_tokenizer
from tunesmith.models.load import Loaded

from .judge import likelihoods


def shown_besides(prepared: Artifact, model: str, seed: int) -> tuple[list[Row], list[Example]]:
    """Rows to learn from that are in no file; none where the recipe asks for no canaries."""
    spec, plain = _asked(prepared)
    if spec is None:
        return [], []
    examples = spec.inserted(seed, plain)
    renderer = Renderer(load_tokenizer(model), today=rendered_on(prepared.path))
    return [renderer.row(example) for example in examples], examples


def remembered(prepared: Artifact, loaded: Loaded, seed: int) -> dict[str, Any] | None:
    """Exposure under the tuned model for each count of repeats; None where there were no canaries."""
    spec, plain = _asked(prepared)
    if spec is None:
        return None
    renderer = loaded.renderer()

    def losses(examples: list[Example]) -> list[float]:
        return [one.loss for one in likelihoods(loaded, [renderer.row(example) for example in examples])]

    shown = {count: losses(group) for count, group in zip(spec.repeat, spec.groups(seed, plain), strict=True)}
    controls, candidates = spec.others(seed, plain)
    return exposures(shown, losses(controls), losses(candidates), seed)


def _asked(prepared: Artifact) -> tuple[Canaries | None, bool]:
    """The recipe's canaries, and whether rows are plain text."""
    tree = prepared.manifest["spec"].get("canaries")
    if tree is None:
        return None, False
    return Canaries.model_validate(tree), load_examples(prepared.path, "train")[0].text is not None

"""Answers and likelihoods of a model on held-out rows: what finetune stops by and evaluate reports."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch

from tunesmith.base import Artifact, DataError, Output
from tunesmith.base.files import sha256, write_json
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example, Message, Row
from tunesmith.data.render import Renderer
from tunesmith.grading import Grader, Likelihood
from tunesmith.grading.base import HEADLINE
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.objectives import Objective
from tunesmith.models.forward import token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import DTYPES, Loaded, Precision, cast, load
from tunesmith.models.quantize import KINDS, quantise, round_to
from tunesmith.training.rollouts import Rollouts

T = TypeVar("T")
ROWS = 8
"""Rows scored in one forward pass."""
OPENING = 32
"""Tokens of a plain text that are given to a model to go on from."""


def answer(loaded: Loaded, examples: Sequence[Example], sampling: Sampling, shots: Sequence[Example] = ()) -> list[str]:
    """A greedy or sampled answer to each request, see `requests`."""
    return said(loaded, requests(loaded, examples, sampling.max_tokens, shots)[0], sampling)


def requests(
    loaded: Loaded, examples: Sequence[Example], max_tokens: int, shots: Sequence[Example] = ()
) -> tuple[list[list[int]], int]:
    """What each example asks, as tokens, after as many of the worked examples as fit (`after_shots`); of plain text, its beginning.

    Beside them, how many rows have fewer worked examples than the others.
    """
    renderer, most, prompts, shortened = loaded.renderer(), room(loaded, max_tokens), [], 0
    for example in examples:
        if example.text is not None:
            prompts.append(_opening(renderer, example))
            continue
        prompt, left = after_shots(partial(_request, renderer, example), shots, most)
        prompts.append(prompt)
        shortened += left < len(shots)
    return prompts, shortened


def _request(renderer: Renderer, example: Example, shots: Sequence[Example]) -> list[int]:
    return renderer.prompt(with_shots(example, as_shots(shots)), example.tools)


def after_shots(
    render: Callable[[Sequence[Example]], list[int]], shots: Sequence[Example], most: int
) -> tuple[list[int], int]:
    """A request after its worked examples, as tokens, and how many they are: those that stand first are left out until it has at most `most` tokens."""
    for place in range(len(shots)):
        try:
            prompt = render(shots[place:])
        except DataError:  # the template has no form for them, such as calls without results
            continue
        if len(prompt) <= most:
            return prompt, len(shots) - place
    return render(()), 0


def asked(
    out: Output, system: str, loaded: Loaded, prompts: Sequence[list[int]], sampling: Sampling
) -> tuple[list[str], int]:
    """A system's answers to the test rows, made once (`kept`), and how many of them were cut off before they ended."""

    def make() -> list[str]:
        completions = generate(loaded, prompts, sampling)
        out.events.write("cut_off", system=system, answers=sum(each.finish == "length" for each in completions))
        return [each.text.strip() for each in completions]

    answers = kept(out, system, make)
    told = [event["answers"] for event in out.events.read("cut_off") if event["system"] == system]
    return answers, told[-1] if told else 0


def said(loaded: Loaded, prompts: Sequence[list[int]], sampling: Sampling) -> list[str]:
    """The answer to each prompt, given as tokens."""
    return [completion.text.strip() for completion in generate(loaded, prompts, sampling)]


def room(loaded: Loaded, max_tokens: int) -> int:
    """Tokens that a prompt may have, so that it and an answer fit into the model's context, if it has an end."""
    return (loaded.longest or 1 << 30) - len(loaded.prefix) - max_tokens


def _opening(renderer: Renderer, example: Example) -> list[int]:
    """The first tokens of a plain text, half of it at most."""
    tokens = renderer.row(example).sequences[0].tokens.tolist()
    return list(tokens[: max(1, min(OPENING, len(tokens) // 2))])


def with_shots(example: Example, shots: Sequence[Message]) -> list[Message]:
    """What is asked, with worked examples between its system message, if it has one, and the rest."""
    system = [message for message in example.asked if message["role"] == "system"]
    rest = [message for message in example.asked if message["role"] != "system"]
    return [*system, *shots, *rest]


def worked(train: Sequence[Example], count: int) -> list[Example]:
    """Demonstrations to put before each request: so many of the training rows with a wanted answer, drawn by chance and always the same ones, in their order."""
    train = [example for example in train if example.answers and example.wanted]
    places = sorted(np.random.default_rng(0).permutation(len(train))[:count].tolist())
    return [train[place] for place in places]


def as_shots(examples: Sequence[Example]) -> list[Message]:
    """Demonstrations as turns of a conversation."""
    return [
        message
        for example in examples
        for message in (*example.prompt, *example.answers[0])
        if message["role"] != "system"
    ]


def kept(out: Output, system: str, make: Callable[[], T], rows: str = "test") -> T:
    """Answers, or chances, made once, to test rows or to others: a killed evaluation finds those of the systems it had finished."""
    path = out / (f"{system}.json" if rows == "test" else f"{rows}-{system}.json")
    if path.exists():
        if sha256(path) in (event["sha256"] for event in out.events.read("answered")):
            found: T = json.loads(path.read_text(encoding="utf-8"))
            return found
        out.events.write("damaged", reason=f"{path}: differs from what was written, or was not noted; it is made again")
    out.events.write("answering", system=system, rows=rows)
    made = make()
    write_json(path, made)
    out.events.write("answered", system=system, rows=rows, sha256=sha256(path))
    return made


def load_exact(name: str, precision: Precision, today: str | None = None) -> Loaded:
    """A base in float32, its weights those that a training in `precision` rounds from: what is learnt is merged into it."""
    exact = load(name, "fp32", today=today)
    if precision in KINDS:  # the corrections were learnt beside these, and mend some of their rounding
        round_to(exact.model, precision)
    return exact


def learnt_by(finetuned: Artifact) -> Objective:
    """What a training minimised."""
    tree = finetuned.manifest["spec"]["objective"]
    found: Objective = Objective.member(tree["kind"]).model_validate(tree)
    return found


def merge(
    loaded: Loaded, adapter: dict[str, Any], finetuned: Artifact, precision: Precision, pruned: Artifact | None = None
) -> None:
    """Make a freshly loaded base the tuned model, bit for bit as it is served: merged in float32, or pruned after that, then rounded once."""
    dtype = DTYPES[loaded.precision]
    if pruned is not None:
        exact = load(str(pruned / "model"), "fp32")
    else:
        chosen: Adapter = Adapter.member(adapter["kind"]).model_validate(adapter)
        exact = load_exact(loaded.name, precision)
        chosen.restore(exact, finetuned / "adapter")
        chosen.merge(exact)
    if loaded.precision in KINDS:
        quantise(exact.model, loaded.precision, dtype)
    else:
        cast(exact.model, dtype)
    loaded.model, loaded.forest = exact.model, exact.forest


@torch.no_grad()
def likelihoods(loaded: Loaded, rows: Sequence[Row]) -> list[Likelihood]:
    """Negative log-likelihood of each row's supervised tokens (of its first answer)."""
    loaded.model.eval()
    order = sorted(range(len(rows)), key=lambda number: len(rows[number]))
    found: dict[int, Likelihood] = {}
    for start in range(0, len(order), ROWS):
        chosen = order[start : start + ROWS]
        batch = Batch.of([Row(rows[number].origin, rows[number].sequences[:1]) for number in chosen])
        loss_M = -token_logps(loaded, batch).double().cpu()
        for place, number in enumerate(chosen):
            mine = loss_M[batch.sequence_M == place]
            found[number] = Likelihood(float(mine.sum()), len(mine))
    return [found[number] for number in range(len(rows))]


@torch.no_grad()
def mean_loss(loaded: Loaded, rows: Sequence[Row], objective: Objective, size: int = ROWS) -> float:
    """An objective's loss, for each thing that it counts; `size` rows are computed together."""
    loaded.model.eval()
    order = sorted(rows, key=len)
    batches = [Batch.of(order[start : start + size]) for start in range(0, len(order), size)]
    return sum(float(objective(loaded, batch).total) for batch in batches) / sum(map(objective.count, batches))


def grade(loaded: Loaded, examples: Sequence[Example], grader: Grader, max_tokens: int) -> float:
    """A grader's headline figure for greedy answers."""
    answers = answer(loaded, examples, Sampling(max_tokens=max_tokens))
    return grader.figures(examples, answers)[HEADLINE].point


def earned(loaded: Loaded, examples: Sequence[Example], rollouts: Rollouts) -> float:
    """What a greedy answer earns in the mean, as long as sampled ones may be and cut off as they are."""
    renderer = loaded.renderer()
    prompts = [renderer.prompt(example.asked, example.tools) for example in examples]
    answers = generate(loaded, prompts, Sampling(max_tokens=rollouts.max_tokens))
    paid = rollouts.earned([each.text.strip() for each in answers], examples)
    left = [rollouts.unfinished * (each.finish != "stop") for each in answers]
    return sum(sum(each) - less for each, less in zip(paid, left, strict=True)) / len(paid)

"""Initialise: load the model, attach the adapter, and check that what is about to be trained is what will be served."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from tunesmith.base import Artifact, Output, Spec, Stage
from tunesmith.base.files import write_json
from tunesmith.base.proof import Proof
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example, Row, Sequence
from tunesmith.data.prepared import load_examples, load_split, rendered_on
from tunesmith.data.render import Renderer
from tunesmith.kernels import native
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models.forward import generic_logps, padded_logps, token_logps
from tunesmith.models.fused import misfit
from tunesmith.models.load import Loaded, Precision, fingerprint, load, parameters

SAMPLE = 6
"""Rows that the packed forward pass is compared with the padded one on."""
LOOKED_AT = 64
"""Supervised tokens of each of their answers that are compared."""
PACKED = 1e-3
"""Largest difference of the loss between them: the order of operations is the same, in whatever precision."""
ROUNDED = 0.25
"""Of log-probabilities in bf16, root mean square: fused and plain operations are each 0.05 to 0.07 away from fp32 (SmolLM2-135M)."""


class Initialise(Spec):
    """Which model is trained and which of its weights learn."""

    adapter: Adapter = LoRA()
    """Which weights learn."""


def initialise(
    spec: Initialise, prepared: Artifact, *, out: Output, model: str, precision: Precision, seed: int
) -> None:
    """Write `model.json` (what was loaded), the adapter at its start if it adds weights, and the proof.

    Raises:
        ModelError: the model cannot be had, or is no decoder.
        ProofError: training would not be what it seems.
    """
    examples, rows = load_examples(prepared.path, "train"), load_split(prepared.path, "train")
    loaded = load(model, precision, today=rendered_on(prepared.path))
    proof = Proof()
    check_rows(proof, loaded.renderer(), examples, rows)
    check_packing(proof, loaded, rows)
    base = last_logits(loaded, rows)
    spec.adapter.attach(loaded, seed)
    started = last_logits(loaded, rows)
    if spec.adapter.neutral:
        apart, tolerance = float((base - started).square().mean().sqrt()), tolerated(loaded)
        proof.claim("the adapter starts as the base", apart < tolerance, rms_gap=apart, tolerance=tolerance)
    if spec.adapter.adds_weights:
        spec.adapter.save(loaded, out / "adapter")
    facts = describe(loaded, spec.adapter.adds_weights)
    write_json(out / "model.json", facts)
    for note in facts["notes"]:
        out.events.write("note", reason=note)
    proof.write(out / "proof.json")
    out.metrics.update({name: facts[name] for name in ("precision", "parameters", "learning", "forest")})


def describe(loaded: Loaded, adds_weights: bool) -> dict[str, Any]:
    """What was loaded, for the manifest, the report and the model card."""
    learning = sum(parameter.numel() for parameter in trainable(loaded.model).values())
    training = loaded.model.training
    loaded.model.train()  # as it will learn: dropout may be what has no fused form
    slow = misfit(loaded) if loaded.forest else None
    loaded.model.train(training)
    notes = [*loaded.notes, *([f"operations: transformers' own ({slow})"] if slow else [])]
    return {
        "name": loaded.name,
        "architecture": type(loaded.model).__name__,
        "fingerprint": fingerprint(loaded.folder),
        "precision": loaded.precision,
        "parameters": parameters(loaded.model) - (learning if adds_weights else 0),
        "learning": learning,
        "forest": loaded.forest,
        "notes": notes,
    }


def check_rows(proof: Proof, renderer: Renderer, examples: list[Example], rows: list[Row]) -> None:
    """Claims about tokens: every row teaches something, teaches to stop, and begins with the tokens that will be served."""
    sequences = [sequence for row in rows for sequence in row.sequences]
    taught = sum(bool(sequence.learn.any()) for sequence in sequences)
    proof.claim("every row has supervised tokens", taught == len(sequences), rows=len(sequences), with_tokens=taught)
    last = [
        sequence
        for row, after in pairwise([*rows, None])
        if row and not _goes_on(row, after)
        for sequence in row.sequences
    ]
    ended = sum(bool(sequence.learn[-1]) and int(sequence.tokens[-1]) in renderer.ends for sequence in last)
    share = ended / len(last)  # a truncated row has no end; prepare refuses when there are many
    proof.claim("the end token is supervised", share >= 0.8, rows=len(last), with_end=ended)
    talks = [(example, row) for example, row in zip(examples, rows, strict=True) if example.text is None]
    same = sum(_served(renderer, example, row) for example, row in talks)
    proof.claim("training tokens are serving tokens", same == len(talks), rows=len(talks), equal=same)
    again = sum(_reference(renderer.tokenizer, renderer, example) for example, _ in talks[:50])
    proof.claim("prompts equal the template's own tokens", again == len(talks[:50]), rows=len(talks[:50]), equal=again)


def _goes_on(row: Row, after: Row | None) -> bool:
    """Whether a row holds a part of a text that goes on in the next."""
    return after is not None and row.origin == after.origin


def _served(renderer: Renderer, example: Example, row: Row) -> bool:
    """Whether the prompt as the server makes it is how the row begins."""
    prompt = renderer.prompt(example.prompt, example.tools)
    return all(np.array_equal(sequence.tokens[: len(prompt)], prompt[: len(sequence)]) for sequence in row.sequences)


def _reference(tokenizer: Any, renderer: Renderer, example: Example) -> bool:
    """Whether transformers, reading the rendered text as a whole, makes the same prompt, where nothing in it looks like a special token."""
    text = "".join(example.strings())
    if not tokenizer.chat_template or any(token in text for token in tokenizer.all_special_tokens):
        return True
    (whole,) = renderer.rendered([(example.prompt, True)], example.tools)
    expected = tokenizer(whole, add_special_tokens=False).input_ids
    return bool(expected == renderer.prompt(example.prompt, example.tools))


@torch.no_grad()
def check_packing(proof: Proof, loaded: Loaded, rows: list[Row]) -> None:
    """The claims that a forest batch has the loss of the padded one, by the same arithmetic, and that the arithmetic of training agrees with it."""
    if not loaded.forest:
        return
    few = [_thinned(row) for row in rows[:SAMPLE]]
    batch = Batch.of(few)
    with native.disabled():
        plain_M = generic_logps(loaded, batch)
    alone_M = torch.cat(
        [padded_logps(loaded, Batch.of([row])) for row in few]
    )  # padded to no more than its own answers
    packed, padded = float(-plain_M.mean()), float(-alone_M.mean())
    proof.claim(
        "packed loss = padded loss", abs(packed - padded) < PACKED, packed=packed, padded=padded, tolerance=PACKED
    )
    apart = float((token_logps(loaded, batch) - plain_M).square().mean().sqrt())
    tolerance = tolerated(loaded)
    proof.claim("training computes what the model computes", apart < tolerance, rms_gap=apart, tolerance=tolerance)


def _thinned(row: Row) -> Row:
    """A row with `LOOKED_AT` supervised tokens of each answer at most, evenly spread: transformers' own layers make whole logits of each."""
    return replace(row, sequences=tuple(_spread(one) for one in row.sequences))


def _spread(whole: Sequence) -> Sequence:
    places = np.flatnonzero(whole.learn)
    kept = np.unique(np.linspace(0, len(places) - 1, min(len(places), LOOKED_AT)).astype(int))
    learn = np.zeros_like(whole.learn)
    learn[places[kept]] = True
    return replace(whole, learn=learn, columns={name: column[kept] for name, column in whole.columns.items()})


def tolerated(loaded: Loaded) -> float:
    """By how much log-probabilities of the same model may differ, root mean square, when sums are taken in another order."""
    return 1e-3 if loaded.precision == "fp32" else ROUNDED


@torch.no_grad()
def last_logits(loaded: Loaded, rows: list[Row]) -> torch.Tensor:
    """Log-probabilities of the supervised tokens of a few rows, to compare two states of a model by."""
    loaded.model.eval()
    return token_logps(loaded, Batch.of(rows[:SAMPLE]))


def gap(left: torch.Tensor, right: torch.Tensor) -> float:
    """Largest absolute difference."""
    return float((left - right).abs().max())


STAGE = Stage("initialise", 1, initialise)

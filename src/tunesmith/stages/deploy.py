"""Deploy: one merged model that any program can load, a card written from the run's facts, and the proof that it is what was trained."""

import json
import shutil
from collections.abc import Sequence
from importlib.resources import files
from itertools import zip_longest
from typing import Any, Literal, TypeVar

import jinja2
from pydantic import Field
from torch import Tensor

from tunesmith.base import Artifact, ConfigError, Output, Spec, Stage
from tunesmith.base.files import read_json, write_atomic
from tunesmith.base.proof import Proof
from tunesmith.data.example import Example, Row
from tunesmith.data.prepared import load_examples, load_split, rendered_on
from tunesmith.data.render import Renderer
from tunesmith.methods.adapters import Adapter
from tunesmith.models import gguf, gguf_export, memory, prompt
from tunesmith.models.generate import Sampling
from tunesmith.models.gguf_export import Kind
from tunesmith.models.load import DTYPES, Loaded, Precision, load, load_config, load_tokenizer, locate
from tunesmith.models.prompt import save_model
from tunesmith.models.quantize import KINDS

from .headline import decimals
from .initialise import ROUNDED, gap, last_logits
from .judge import answer, learnt_by, load_exact
from .scoring import deploy_scorer

T = TypeVar("T")


class Deploy(Spec):
    """How the trained model is written out."""

    weights: Literal["fp32", "bf16"] = "fp32"
    """What the merged weights are stored in; bf16 halves the folder and rounds what was learnt."""
    gguf: Kind | None = None
    """Write `model.gguf` too, with matrices in this type: what llama.cpp and programs built on it serve (Ollama, LM Studio)."""
    prompts: int = Field(20, ge=1)
    """Test prompts whose greedy answers, in fp32, the proof compares."""
    ungated: bool = False
    """Deploy although the gate did not promote."""

    def check(self, model: str, adapter: Adapter, scores: bool) -> None:
        """Find out before training what could not be written after it.

        Raises:
            ConfigError: what is learnt does not become a part of the model's weights, or is no text.
            ModelError: the model cannot become such a file.
        """
        if self.gguf is None:
            return
        folder = locate(model)
        beside = next((name for name in (prompt.FILE, memory.FILE) if (folder / name).exists()), None)
        if beside or scores or not adapter.merges:
            kept = f"{beside} of {folder}" if beside else f"what adapter {adapter.kind} learns"
            what = "a model that scores answers" if scores else f"{kept}, which stays beside the weights,"
            raise ConfigError(f"deploy.gguf: {what} has no place in a GGUF file; leave deploy.gguf out")
        gguf_export.check(load_config(folder), load_tokenizer(model), model)


def deploy(
    spec: Deploy, prepared: Artifact, finetuned: Artifact, evaluated: Artifact, pruned: Artifact | None = None, *, out: Output,
    model: str, precision: Precision, adapter: dict[str, Any],
) -> None:  # fmt: skip
    """Write `model/` (safetensors, tokenizer, card) and the proof; of a pruned model, which is merged already, what it claims of storing.

    Raises:
        ConfigError: the gate did not promote the model.
        ProofError: the merged model is not the trained one.
    """
    _ask_the_gate(spec, evaluated)
    said = card(prepared, finetuned, evaluated, pruned, model, adapter)
    if learnt_by(finetuned).scores:
        about: dict[str, Any] = {"model": model, "precision": precision, "adapter": adapter}
        proof = deploy_scorer(spec, prepared, finetuned, out=out, **about)
        write_atomic(out / "model" / "README.md", said)
        proof.write(out / "proof.json")
        return
    rows, examples = load_split(prepared.path, "test"), load_examples(prepared.path, "test")[: spec.prompts]
    tokens = evaluated.manifest["spec"]["max_tokens"]
    proof = _write(spec, out, model, precision, adapter, finetuned, rows, examples, tokens, pruned)
    few = out.metrics["precision"] = evaluated.manifest["spec"]["precision"]
    if few in KINDS:
        _prove_rounding(
            proof, spec, load(str(out / "model"), few, today=rendered_on(prepared.path)), prepared, evaluated
        )
    _conclude(out, said, proof)


def deploy_merged(
    spec: Deploy, merged: Artifact, evaluated: Artifact, *prepared: Artifact, out: Output, model: str, precision: Precision,
    names: list[str],
) -> None:  # fmt: skip
    """As `deploy`, of what several runs learnt; the proof looks at test rows of all of them in turn.

    Raises:
        ConfigError: the gate of a run did not promote the model.
        ProofError: the model that was written is not the merged one.
    """
    _ask_the_gate(spec, evaluated)
    rows = _in_turn([load_split(one.path, "test")[: spec.prompts] for one in prepared])
    examples = _in_turn([load_examples(one.path, "test")[: spec.prompts] for one in prepared])[: spec.prompts]
    said = _render(
        "merged_card.md.j2", base=model, names=names, settings=merged.manifest["spec"], merged=merged.metrics,
        environment=merged.manifest["environment"], table=(evaluated / "comparison.md").read_text(encoding="utf-8"),
    )  # fmt: skip
    adapter, tokens = merged.metrics["adapter"], evaluated.metrics["max_tokens"]
    _conclude(out, said, _write(spec, out, model, precision, adapter, merged, rows, examples, tokens))


def _ask_the_gate(spec: Deploy, evaluated: Artifact) -> None:
    if not (evaluated.metrics["promote"] or spec.ungated):
        raise ConfigError(
            f"deploy: the gate did not promote this model: {' '.join(evaluated.metrics['reasons'])} See the report, or set deploy.ungated=true"
        )


def _in_turn(lists: Sequence[Sequence[T]]) -> list[T]:
    """The first of each, then the second of each."""
    return [one for each in zip_longest(*lists) for one in each if one is not None]


def _write(
    spec: Deploy, out: Output, model: str, precision: Precision, adapter: dict[str, Any], finetuned: Artifact, rows: list[Row],
    examples: list[Example], max_tokens: int, pruned: Artifact | None = None,
) -> Proof:  # fmt: skip
    """Write `model/`; the proof that it is the trained one."""
    chosen: Adapter = Adapter.member(adapter["kind"]).model_validate(adapter)
    spec.check(model, chosen, scores=False)
    if pruned is None:
        loaded = load_exact(model, precision)
        chosen.restore(loaded, finetuned / "adapter")
    else:
        loaded = load(str(pruned / "model"), "fp32")
    beside = last_logits(loaded, rows)
    sampling = Sampling(max_tokens=max_tokens)
    answers = answer(loaded, examples, sampling)
    proof = Proof()
    if pruned is None:
        chosen.merge(loaded)
        merged = gap(beside, last_logits(loaded, rows))
        proof.claim("merged = adapter, in fp32", merged < 1e-3, largest_logp_gap=merged)
    loaded.model.to(DTYPES[spec.weights])
    save_model(loaded.model, out / "model")
    loaded.tokenizer.save_pretrained(out / "model")
    if precision in KINDS and pruned is None:
        _prove_arithmetic(proof, load(model, precision), chosen, finetuned, rows, beside)
    reopened = load(str(out / "model"), "fp32")
    stored = gap(beside, last_logits(reopened, rows))
    proof.claim(
        f"stored in {spec.weights} = trained",
        stored < (1e-3 if spec.weights == "fp32" else 0.5),
        largest_logp_gap=stored,
    )
    exact = spec.weights == "fp32"  # weights rounded to bf16 may tip a close choice
    _prove_answers(
        proof, exact, answers, answer(reopened, examples, sampling), "of the stored model = of the trained one"
    )
    if spec.gguf is not None:
        out.metrics["gguf_gap"] = _export(spec.gguf, reopened, out, proof, rows, examples)
    out.metrics["logp_gap"] = stored
    return proof


def _conclude(out: Output, said: str, proof: Proof) -> None:
    """Write the card and the proof."""
    write_atomic(out / "model" / "README.md", said)
    proof.write(out / "proof.json")
    out.metrics["bytes"] = sum(path.stat().st_size for path in (out / "model").iterdir())


def _prove_arithmetic(
    proof: Proof, loaded: Loaded, chosen: Adapter, finetuned: Artifact, rows: list[Row], served: Tensor
) -> None:
    """The claim that what is served, computed in fp32, is what was trained on a base in int8 or nf4."""
    chosen.restore(loaded, finetuned / "adapter")
    apart = float((last_logits(loaded, rows) - served).square().mean().sqrt())
    proof.claim(f"trained in {loaded.precision} = served", apart < ROUNDED, rms_gap=apart, tolerance=ROUNDED)


def _prove_rounding(proof: Proof, spec: Deploy, loaded: Loaded, prepared: Artifact, evaluated: Artifact) -> None:
    """The claim that the model as it is served in few bits says what the evaluated one said, if that was asked for answers."""
    measured = evaluated.manifest["spec"]
    examples = load_examples(prepared.path, "test", measured["rows"])[: spec.prompts]
    with (evaluated / "answers.jsonl").open(encoding="utf-8") as file:
        said = [json.loads(line)["answers"].get("tuned") for _, line in zip(examples, file, strict=False)]
    if None not in said:
        given = answer(loaded, examples, Sampling(max_tokens=measured["max_tokens"]))
        exact = (
            spec.weights == "fp32" and loaded.decoder() is not None
        )  # without it, what is asked beside may tip one too
        _prove_answers(proof, exact, said, given, f"in {loaded.precision}, as served, = of the evaluated model")


def _export(kind: Kind, loaded: Loaded, out: Output, proof: Proof, rows: list[Row], examples: list[Example]) -> float:
    """Write the GGUF file of the stored model, read it as a stranger's, and claim that it is the same; the gap."""
    expected = last_logits(loaded, rows)
    loaded.release()
    renderer, file, place = loaded.renderer(), out / "model.gguf", out / "read-back"
    prompts = [_read(renderer, example) for example in examples]
    plain = all(example.text is not None for example in examples)  # a chat template writes what a prompt begins with
    begins = plain and bool(renderer.opening)
    ends = renderer.ends - {loaded.tokenizer.eos_token_id}
    gguf_export.write(loaded.model, loaded.tokenizer, file, kind, begins, ends)
    shutil.rmtree(place, ignore_errors=True)  # of one that was killed
    gguf.unpack(file, place)
    again = load(str(place), "fp32")
    found = last_logits(again, rows)
    shutil.rmtree(place)
    own, theirs = prompts, [_read(again.renderer(), example) for example in examples]
    same = sum(map(list.__eq__, own, theirs))
    proof.claim(f"tokens of the GGUF file in {kind} = of the trained model", same == len(own), prompts=len(own))
    if kind == "f32":
        apart = gap(expected, found)
        proof.claim("GGUF file in f32 = stored", apart < 1e-3, largest_logp_gap=apart)
        return apart
    apart = float((expected - found).square().mean().sqrt())
    proof.claim(f"GGUF file in {kind} = stored", apart < ROUNDED, rms_gap=apart, tolerance=ROUNDED)
    return apart


def _read(renderer: Renderer, example: Example) -> list[int]:
    """What a model reads of an example before it answers; of plain text, all but the token that a reader begins it with, as the file says."""
    return renderer.prompt(example.asked, example.tools) if example.text is None else renderer.encode(example.text)


def _prove_answers(proof: Proof, exact: bool, said: list[str], again: list[str], which: str) -> None:
    """The claim that a model says what it said before, nearly always, or mostly where something may tip a close choice."""
    equal = sum(one == other for one, other in zip(said, again, strict=True))
    enough = 0.95 if exact else 0.8
    proof.claim(f"greedy answers {which}", equal >= enough * len(said), prompts=len(said), equal=equal)


def card(
    prepared: Artifact, finetuned: Artifact, evaluated: Artifact, pruned: Artifact | None, model: str, adapter: dict[str, Any]
) -> str:  # fmt: skip
    """The model card, from the facts of the run."""
    return _render(
        "card.md.j2",
        base=model,
        adapter=adapter,
        beside={"prompt": prompt.FILE, "prefix": prompt.FILE, "memory": memory.FILE}.get(adapter["kind"]),
        data=read_json(prepared / "summary.json"),
        training=finetuned.metrics,
        settings=finetuned.manifest["spec"],
        environment=finetuned.manifest["environment"],
        result=evaluated.metrics,
        digits=decimals(evaluated.metrics),
        pruned=pruned.metrics if pruned else None,
        few=precision if (precision := evaluated.manifest["spec"]["precision"]) in KINDS else None,
    )


def _render(name: str, **facts: Any) -> str:
    template = files("tunesmith.stages").joinpath(name).read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(facts)


STAGE = Stage("deploy", 3, deploy)
MERGED = Stage("deploy", 1, deploy_merged)

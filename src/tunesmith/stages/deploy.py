"""Deploy: one merged model that any program can load, a card written from the run's facts, and the proof that it is what was trained."""

from importlib.resources import files
from typing import Any, Literal

import jinja2
from pydantic import Field
from torch import Tensor

from tunesmith.base import Artifact, ConfigError, Output, Spec, Stage
from tunesmith.base.files import read_json, write_atomic
from tunesmith.base.proof import Proof
from tunesmith.data.example import Row
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.methods.adapters import Adapter
from tunesmith.models.generate import Sampling
from tunesmith.models.load import DTYPES, Loaded, Precision, load
from tunesmith.models.prompt import save_model
from tunesmith.models.quantize import KINDS

from .initialise import ROUNDED, gap, last_logits
from .judge import answer, load_exact


class Deploy(Spec):
    """How the trained model is written out."""

    weights: Literal["fp32", "bf16"] = "fp32"
    """What the merged weights are stored in; bf16 halves the folder and rounds what was learnt."""
    prompts: int = Field(20, ge=1)
    """Test prompts whose greedy answers, in fp32, the proof compares."""
    ungated: bool = False
    """Deploy although the gate did not promote."""


def deploy(
    spec: Deploy, prepared: Artifact, finetuned: Artifact, evaluated: Artifact, *, out: Output, model: str, precision: Precision,
    adapter: dict[str, Any],
) -> None:  # fmt: skip
    """Write `model/` (safetensors, tokenizer, card) and the proof.

    Raises:
        ConfigError: the gate did not promote the model.
        ProofError: the merged model is not the trained one.
    """
    if not (evaluated.metrics["promote"] or spec.ungated):
        raise ConfigError(
            f"deploy: the gate did not promote this model: {' '.join(evaluated.metrics['reasons'])} See the report, or set deploy.ungated=true"
        )
    rows, examples = load_split(prepared.path, "test"), load_examples(prepared.path, "test")[: spec.prompts]
    chosen: Adapter = Adapter.member(adapter["kind"]).model_validate(adapter)
    loaded = load_exact(model, precision)
    chosen.restore(loaded, finetuned / "adapter")
    beside = last_logits(loaded, rows)
    sampling = Sampling(max_tokens=evaluated.manifest["spec"]["max_tokens"])
    said = answer(loaded, examples, sampling)
    chosen.merge(loaded)
    proof = Proof()
    merged = gap(beside, last_logits(loaded, rows))
    proof.claim("merged = adapter, in fp32", merged < 1e-3, largest_logp_gap=merged)
    loaded.model.to(DTYPES[spec.weights])
    save_model(loaded.model, out / "model")
    loaded.tokenizer.save_pretrained(out / "model")
    if precision in KINDS:
        _prove_arithmetic(proof, load(model, precision), chosen, finetuned, rows, beside)
    reopened = load(str(out / "model"), "fp32")
    stored = gap(beside, last_logits(reopened, rows))
    proof.claim(
        f"stored in {spec.weights} = trained",
        stored < (1e-3 if spec.weights == "fp32" else 0.5),
        largest_logp_gap=stored,
    )
    _prove_answers(proof, spec.weights, said, answer(reopened, examples, sampling))
    write_atomic(out / "model" / "README.md", card(prepared, finetuned, evaluated, model, adapter))
    proof.write(out / "proof.json")
    out.metrics.update({"logp_gap": stored, "bytes": sum(path.stat().st_size for path in (out / "model").iterdir())})


def _prove_arithmetic(
    proof: Proof, loaded: Loaded, chosen: Adapter, finetuned: Artifact, rows: list[Row], served: Tensor
) -> None:
    """The claim that what is served, computed in fp32, is what was trained on a base in int8 or nf4."""
    chosen.restore(loaded, finetuned / "adapter")
    apart = float((last_logits(loaded, rows) - served).square().mean().sqrt())
    proof.claim(f"trained in {loaded.precision} = served", apart < ROUNDED, rms_gap=apart, tolerance=ROUNDED)


def _prove_answers(proof: Proof, weights: str, said: list[str], stored: list[str]) -> None:
    """The claim that the stored model says what the trained one says, both computed in fp32."""
    equal = sum(one == other for one, other in zip(said, stored, strict=True))
    enough = 0.95 if weights == "fp32" else 0.8  # weights rounded to bf16 may tip a close choice
    proof.claim(
        "greedy answers of the stored model = of the trained one",
        equal >= enough * len(said),
        prompts=len(said),
        equal=equal,
    )


def card(prepared: Artifact, finetuned: Artifact, evaluated: Artifact, model: str, adapter: dict[str, Any]) -> str:
    """The model card, from the facts of the run."""
    template = files("tunesmith.stages").joinpath("card.md.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(template).render(
        base=model,
        adapter=adapter,
        data=read_json(prepared / "summary.json"),
        training=finetuned.metrics,
        settings=finetuned.manifest["spec"],
        environment=finetuned.manifest["environment"],
        result=evaluated.metrics,
    )


STAGE = Stage("deploy", 1, deploy)

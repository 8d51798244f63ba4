"""Several references: identities, bounds and weights of the mixture, and what models with other tokenizers are asked."""

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import tunesmith
from tunesmith.base import ArtifactError, DataError, ModelError, Run, Stage
from tunesmith.base.files import read_json
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer
from tunesmith.methods.objectives.base import reference
from tunesmith.methods.objectives.dpo import DPO
from tunesmith.methods.objectives.mrpo import MRPO
from tunesmith.models.find import locate
from tunesmith.models.forward import padded_logps
from tunesmith.models.load import load
from tunesmith.stages.recipe import read_recipe
from tunesmith.training.others import Others, Split
from tunesmith.training.reference import with_references

PAIRS = [(f"Say {number}.", "yes, " * (number % 3) + "yes", "no") for number in range(6)]


@pytest.fixture
def pairs(build, random_rows):
    """Five pairs with what three models say of them."""
    rows = random_rows(5, answers=2)
    for number in range(3):
        rows = with_references(build("llama", seed=4 + number, vocab_size=97), rows, 5, number)
    return rows


def columns(rows):
    """[K][R][2] as numbers."""
    return [[[row.columns[reference(answer, k)] for answer in range(2)] for row in rows] for k in range(3)]


def found(objective, policy, rows):
    loss = objective(policy, Batch.of(rows)).total
    loss.backward()
    gradient = {name: weight.grad.clone() for name, weight in policy.model.named_parameters()}
    policy.model.zero_grad()
    return float(loss.detach()), gradient


def assert_same(left, right):
    assert left[0] == pytest.approx(right[0], rel=1e-5)
    for name, gradient in right[1].items():
        assert (left[1][name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, name


@pytest.mark.parametrize("settings", [{}, {"weights": "equal"}, {"clip": 0.0}], ids=str)
def test_one_reference_is_dpo_and_so_are_equal_ones(policy, pairs, settings):
    expected = found(DPO(beta=0.3), policy, pairs)
    assert_same(found(MRPO(beta=0.3, **settings), policy, pairs), expected)
    equal = [
        replace(row, columns={**row.columns, **{reference(a, k): row.columns[reference(a)] for a in (0, 1) for k in (1, 2)}})
        for row in pairs
    ]  # fmt: skip
    for others in (("a",), ("a", "b")):
        assert_same(found(MRPO(beta=0.3, models=others, **settings), policy, equal), expected)


@pytest.mark.parametrize("clip", [0.0, 0.1])
@pytest.mark.parametrize("weights", ["adaptive", "equal"])
def test_loss_is_that_of_the_formula(policy, pairs, weights, clip):
    """Written anew with probabilities, number by number: 1 / sum_k (weight_k / p_k), each p_k of the others near the first's."""
    objective = MRPO(beta=0.3, models=("a", "b"), weights=weights, clip=clip)
    total = 0.0
    for number, row in enumerate(pairs):
        said = [model[number] for model in columns(pairs)]
        gaps = [abs(chosen - rejected) if weights == "adaptive" else 1.0 for chosen, rejected in said]
        mean = [abs(sum(one[answer] for one in said)) / 3 for answer in (0, 1)]
        gains = []
        for answer, sequence in enumerate(row.sequences):
            start, inverse = said[0][answer], 0.0
            reach = clip * mean[answer] / sum(mean)
            for gap, one in zip(gaps, said, strict=True):
                logp = one[answer]
                if clip:
                    logp = min(max(logp, (1 + reach) * start), (1 - reach) * start)
                inverse += gap / sum(gaps) / math.exp(logp)
            own = padded_logps(policy, Batch.of([replace(row, sequences=(sequence,))])).double().sum()
            gains.append(own.item() + math.log(inverse))
        total += math.log(1 + math.exp(-0.3 * (gains[0] - gains[1])))
    assert objective(policy, Batch.of(pairs)).total.item() == pytest.approx(total, rel=1e-4)


def test_the_reference_that_tells_answers_apart_counts_more(pairs):
    """The paper's orientation, which the released code has the wrong way round."""
    said = torch.tensor([[[-10.0, -10.5]], [[-12.0, -18.0]]])
    shares = MRPO(models=("a",)).shares(said)
    assert shares[:, 0].tolist() == pytest.approx([0.5 / 6.5, 6 / 6.5], rel=1e-4)
    assert MRPO(models=("a",), weights="equal").shares(said)[:, 0].tolist() == [0.5, 0.5]
    shares = MRPO(models=("a", "b")).shares(torch.tensor(columns(pairs)))
    torch.testing.assert_close(shares.sum(0), torch.ones(5))


def test_others_are_drawn_near_the_start_and_the_start_stays():
    said = torch.tensor([[[-10.0, -30.0]], [[-2.0, -90.0]], [[-10.1, -30.1]]])
    near = MRPO(models=("a", "b"), clip=0.2).clipped(said)
    part = (22.1 / 3) / (22.1 / 3 + 150.1 / 3)
    assert near[0].tolist() == said[0].tolist()
    assert near[1, 0].tolist() == pytest.approx([-10 * (1 - 0.2 * part), -30 * (1 + 0.2 * (1 - part))])
    assert near[2].tolist() == said[2].tolist()
    assert MRPO(models=("a", "b"), clip=0.0).clipped(said) is said


# Who is asked


@pytest.fixture(scope="session")
def stranger(build, tmp_path_factory):
    """A folder with a model that reads bytes, by a template of its own."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0, **{letter: number for number, letter in enumerate(letters, start=1)}}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", pad_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% if m.role == 'assistant' %}<end>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}a:{% endif %}"
    )
    folder = tmp_path_factory.mktemp("stranger")
    build("llama", seed=9, vocab_size=len(vocabulary)).model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def examples():
    say = lambda role, text: {"role": role, "content": text}  # noqa: E731
    return [
        Example(
            f"pairs.jsonl:{number}", (say("user", asked),), ((say("assistant", chosen),), (say("assistant", rejected),))
        )
        for number, (asked, chosen, rejected) in enumerate(PAIRS, start=1)
    ]


@pytest.fixture
def split(examples, short_tokenizer):
    renderer = Renderer(short_tokenizer)
    return Split([renderer.row(example) for example in examples], examples)


def test_a_stranger_reads_the_text_by_its_own_template(split, stranger, tiny_folder):
    """And its log-probabilities are those of its own tokens of the answer, end token included."""
    others = Others(str(tiny_folder), "fp32", 4, "answers")
    (rows,) = others.asked(MRPO(models=(str(stranger), str(tiny_folder))), [split])
    tokenizer, model = (kind.from_pretrained(stranger) for kind in (AutoTokenizer, AutoModelForCausalLM))
    for row, before, (asked, *answers) in zip(rows, split.rows, PAIRS, strict=True):
        assert row.sequences is before.sequences
        for number, answer in enumerate(answers):
            prompt = tokenizer(f"u:{asked}a:").input_ids
            ids = [*prompt, *tokenizer(answer).input_ids, 0]
            logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(logits[place - 1, ids[place]].item() for place in range(len(prompt), len(ids)))
            assert row.columns[reference(number, 1)] == pytest.approx(expected, rel=1e-4)
    own = with_references(load(str(tiny_folder), "fp32"), split.rows, 4)
    for row, alone in zip(rows, own, strict=True):
        assert row.columns[reference(1, 2)] == pytest.approx(alone.columns[reference(1)], rel=1e-5)


def test_what_was_cut_off_is_asked_of_models_with_the_same_tokenizer_only(split, stranger, tiny_folder):
    others = Others(str(tiny_folder), "fp32", 4, "answers")
    first, *rest = split.rows
    cut = tuple(replace(each, tokens=each.tokens[:-1], learn=each.learn[:-1]) for each in first.sequences)
    shorter = Split([replace(first, sequences=cut), *rest], split.examples)
    (rows,) = others.asked(MRPO(models=(str(tiny_folder),)), [shorter])
    assert reference(0, 1) in rows[0].columns
    with pytest.raises(
        DataError, match=r"pairs.jsonl:1: was cut off at \d+ tokens, and .*stranger.*; raise prepare.max_tokens"
    ):
        others.asked(MRPO(models=(str(stranger),)), [shorter])


def test_a_finished_run_is_a_model(tiny_folder, tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ModelError, match=r"has no config.json"):
        locate(str(tmp_path))
    run.once(Stage("prepare", 1, lambda spec, out: None), MRPO())
    with pytest.raises(ArtifactError, match="'deploy' is not started; run `tunesmith run` first"):
        locate(str(tmp_path))
    made = run.once(Stage("deploy", 1, lambda spec, out: shutil.copytree(tiny_folder, out / "model") and None), MRPO())
    assert locate(str(tmp_path)) == made.path / "model"


def test_a_run_is_held_to_another_model(tiny_folder, stranger, tmp_path):
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps({"prompt": f"Say {n}.", "chosen": "yes", "rejected": "no"}) + "\n" for n in range(24))
    )
    recipe = {
        "model": str(tiny_folder),
        "precision": "fp32",
        "prepare": {"source": "pairs.jsonl", "test_fraction": 4, "validation_fraction": 4, "cleaners": []},
        "finetune": {"objective": {"kind": "mrpo", "models": ["other"]}, "batch": 8, "optimizer": {"learning_rate": 0.01}},
    }  # fmt: skip
    (tmp_path / "other").symlink_to(stranger)
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    made = tunesmith.finetune(tmp_path / "recipe.yaml", folder=tmp_path / "run")
    events = list(Run(tmp_path / "run").events.read("step"))
    assert events[-1]["margin"] > events[0]["margin"]
    assert all(claim["holds"] for claim in read_json(made / "proof.json")["claims"])
    found = read_recipe(tmp_path / "recipe.yaml", ("finetune.objective.models=[run, smollm2-135m]",))
    assert found.finetune.objective.models == ("run", "smollm2-135m")

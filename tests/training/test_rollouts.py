import numpy as np
import pytest
import torch

from tunesmith.base import ConfigError, DataError
from tunesmith.base.spec import validate
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer
from tunesmith.grading import AnswerGrader, Score
from tunesmith.grading.exact import Exact
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.base import OLD, START, reward
from tunesmith.methods.objectives.grpo import GRPO
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.forward import padded_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.stages.finetune import Finetune
from tunesmith.training.loop import train
from tunesmith.training.reference import Start
from tunesmith.training.rollouts import OnPolicy, Reward, Rollouts, imagined


class Short(AnswerGrader):
    """Pays for answers of few letters: something that a model without any skill can learn."""

    def score(self, answer: str, example: Example) -> Score:
        return Score(max(0.0, 1 - len(answer) / 40), 1.0)


PAID = Reward.model_construct(grader=Short.model_construct(kind="short"), weight=2.0)


@pytest.fixture
def policy(build):
    loaded = build("llama", seed=2)
    with torch.no_grad():
        loaded.model.lm_head.weight *= 6  # so that it can make up its mind
    LoRA(rank=4).attach(loaded, 0)
    return loaded


@pytest.fixture
def source(policy, rows):
    def make(start=None, count=4, **settings):
        spec = Rollouts.model_construct(**{"rewards": (PAID,), "samples": 4, "max_tokens": 6, "updates": 1, **settings})
        user = {"role": "user", "content": "Say something."}
        examples = [
            Example(row.origin, ({**user, "content": row.origin},), (({"role": "assistant", "content": "a"},),))
            for row in rows
        ]
        return OnPolicy(rows[:count], 2, 1, 2.0, 7, spec=spec, loaded=policy, examples=examples, start=start)

    return make


def answers(rows):
    return [sequence.tokens.tolist() for row in rows for sequence in row.sequences]


def test_answers_depend_on_seed_step_and_weights_alone(source, policy):
    data = source()
    first = answers(data.roll(0))
    assert answers(data.roll(0)) == answers(source().roll(0)) == first
    assert answers(data.roll(1)) != first
    assert len({tuple(answer) for answer in first}) > 4
    with torch.no_grad():
        for weight in trainable(policy.model).values():
            weight += 0.3
    assert answers(data.roll(0)) != first


def test_a_row_is_a_prompt_with_its_answers_and_what_they_earn(source, policy):
    data = source()
    renderer = Renderer(policy.tokenizer)
    for row, place in zip(data.roll(3), data.chosen(3), strict=True):
        prompt = renderer.prompt(data.examples[place].prompt)
        assert row.origin == data.rows[place].origin
        assert len(row.sequences) == 4
        for number, sequence in enumerate(row.sequences):
            assert sequence.tokens[: len(prompt)].tolist() == prompt
            assert sequence.learn.tolist() == [False] * len(prompt) + [True] * (len(sequence) - len(prompt))
            text = renderer.decode(sequence.tokens[len(prompt) :]).strip()
            assert row.columns[reward(number)] == pytest.approx(2 * max(0.0, 1 - len(text) / 40))
    assert data.facts["reward"] > 0
    assert 0 <= data.facts["finished"] <= 1


def test_each_of_two_rewards_by_the_same_grader_is_told(source):
    data = source(rewards=(PAID, PAID.model_copy(update={"weight": -0.5})))
    data.roll(0)
    assert data.facts["reward_short_0"] == pytest.approx(-4 * data.facts["reward_short_1"])
    assert data.facts["reward"] == pytest.approx(data.facts["reward_short_0"] + data.facts["reward_short_1"])


def test_every_prompt_is_asked_once_an_epoch_and_steps_repeat_their_rows(source):
    data = source(updates=2)
    assert (data.steps_per_epoch, data.steps) == (4, 8)
    assert [data.settled(number) for number in range(4)] == [True, False, True, False]
    steps = list(data.from_step(0))
    seen = [[origin for batch in step for origin in batch.origins] for step in steps]
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert sorted(seen[0] + seen[2]) == sorted(row.origin for row in data.rows)
    for left, right in zip(steps[0], steps[1], strict=True):
        assert torch.equal(left.forest.tokens_N, right.forest.tokens_N)
    again = [batch.forest.tokens_N.tolist() for batch in next(data.from_step(2))]
    assert again == [batch.forest.tokens_N.tolist() for batch in steps[2]]


def test_log_probabilities_of_the_sampling_and_the_starting_policy_are_kept(source, policy):
    start = Start(trainable(policy.model))
    before = {name: weight.clone() for name, weight in trainable(policy.model).items()}
    row = source().roll(0)[0]

    def measured():
        return [padded_logps(policy, Batch.of([type(row)("x", (each,))])).detach() for each in found.sequences]

    with torch.no_grad():
        for weight in trainable(policy.model).values():
            weight += 0.05 * torch.sign(weight) + 0.01
    moved = {name: weight.clone() for name, weight in trainable(policy.model).items()}
    found = source(start=start, updates=2).roll(0)[0]
    assert all(torch.equal(weight, moved[name]) for name, weight in trainable(policy.model).items())
    for each, logps in zip(found.sequences, measured(), strict=True):
        assert np.allclose(each.columns[OLD], logps, atol=1e-4)
    with start.back():
        assert all(torch.equal(weight, before[name]) for name, weight in trainable(policy.model).items())
        for each, logps in zip(found.sequences, measured(), strict=True):
            assert np.allclose(each.columns[START], logps, atol=1e-4)
            assert not np.allclose(each.columns[START], each.columns[OLD], atol=1e-3)


@pytest.mark.parametrize("updates", [1, 2])
def test_a_tiny_model_learns_what_pays(source, policy, updates):
    data = source(updates=updates, samples=8, count=2)
    object.__setattr__(data, "epochs", 24.0)
    moves = AdamW(learning_rate=0.02).build(trainable(policy.model))
    earned = []
    for _ in train(policy, GRPO(), data.from_step(0), moves, lambda step: 1.0, seed=0):
        earned.append(data.facts["reward"])
    assert np.mean(earned[-6:]) > np.mean(earned[:6]) + 0.2


def test_samples_are_those_of_each_prompt_alone(policy, rows):
    renderer = Renderer(policy.tokenizer)
    prompts = [renderer.encode(text) for text in ("one", "one", "two and more")]
    samplings = [Sampling(max_tokens=5, temperature=1.0, seed=seed) for seed in (3, 4, 5)]
    together = generate(policy, prompts, samplings)
    alone = [generate(policy, [prompt], [sampling])[0] for prompt, sampling in zip(prompts, samplings, strict=True)]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone]
    assert together[0].tokens != together[1].tokens


def test_what_is_imagined_is_as_large_as_it_can_get(rows):
    spec = Rollouts(rewards=(Reward(grader=Exact()),), samples=3, max_tokens=11)
    batch = Batch.of(imagined(rows[:2], spec))
    assert batch.supervised == 2 * 3 * 11
    assert batch.forest.tokens_N.numel() >= 2 * 3 * 11
    assert torch.isfinite(GRPO(beta=0.1).advantages(batch)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": {"kind": "grpo"}}, "say what they earn"),
        ({"rollouts": {"rewards": [{"grader": {"kind": "exact"}}]}}, "learns from given answers"),
        ({"objective": {"kind": "grpo"}, "rollouts": {"rewards": []}}, "rewards"),
        (
            {"objective": {"kind": "grpo"}, "rollouts": {"rewards": [{"grader": {"kind": "perplexity"}}]}},
            "one answer by itself",
        ),
        (
            {
                "objective": {"kind": "grpo"},
                "rollouts": {"rewards": [{"grader": {"kind": "exact"}}]},
                "validation": {"metric": "loss"},
            },
            "says nothing about answers",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(Finetune, settings, "recipe.yaml")


def test_plain_text_asks_nothing(policy, rows):
    tune = Finetune(objective=GRPO(), rollouts=Rollouts(rewards=(Reward(grader=Exact()),)))
    with pytest.raises(DataError, match=r"notes\.txt:3: plain text has no prompt to answer"):
        tune.source(policy, rows[:1], [Example("notes.txt:3", text="Once.")], 0)

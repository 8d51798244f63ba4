"""Rollouts: answers depend on seed, step and weights alone, earn what the graders say, and what pays is learnt."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tunesmith.data.batch import Batch
from tunesmith.data.example import Example, Row
from tunesmith.data.render import Renderer
from tunesmith.grading import AnswerGrader, Score
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.base import ADVANTAGE, OLD, RETURN, START, VALUE, reward
from tunesmith.methods.objectives.grpo import GRPO
from tunesmith.methods.objectives.ppo import PPO
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.forward import padded_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.heads import attach_head, padded_seen
from tunesmith.training.loop import train
from tunesmith.training.reference import Start
from tunesmith.training.rollouts import OnPolicy, Reward, Rollouts


class Short(AnswerGrader):
    """Pays for answers of few letters: something that a model without any skill can learn."""

    def score(self, answer: str, example: Example) -> Score:
        return Score(max(0.0, 1 - len(answer) / 40), 1.0)


PAID = Reward.model_construct(grader=Short.model_construct(kind="short"), weight=2.0)


@pytest.fixture
def policy(build):
    loaded = build("llama", seed=2)
    with torch.no_grad():
        loaded.model.lm_head.weight *= 4  # so that it can make up its mind
    LoRA(rank=4).attach(loaded, 0)
    return loaded


@pytest.fixture
def source(policy, rows):
    def make(start=None, count=4, objective=None, **settings):
        spec = Rollouts.model_construct(**{"rewards": (PAID,), "samples": 4, "max_tokens": 6, "updates": 1, **settings})
        user = {"role": "user", "content": "Say something."}
        examples = [
            Example(row.origin, ({**user, "content": row.origin},), (({"role": "assistant", "content": "a"},),))
            for row in rows
        ]
        return OnPolicy(
            rows[:count],
            2,
            1,
            2.0,
            7,
            spec=spec,
            loaded=policy,
            examples=examples,
            start=start and start.back,
            objective=objective,
        )

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


def test_what_ppo_learns_from_is_computed_once_for_all_updates(source, policy):
    """Over all answers of the step, however it is cut; the head's values are those of the policy that sampled."""
    torch.nn.init.normal_(attach_head(policy).weight)
    start, objective = Start(trainable(policy.model)), PPO()
    with torch.no_grad():
        for weight in trainable(policy.model).values():
            weight += 0.05 * torch.sign(weight) + 0.01
    data = source(start=start, objective=objective, updates=2)
    rows = data.roll(0)
    sequences = [each for row in rows for each in row.sequences]
    for each in sequences:
        logps, values = padded_seen(policy, Batch.of([Row("x", (replace(each, columns={}),))]), True)
        assert np.allclose(each.columns[OLD], logps.detach(), atol=1e-4)
        assert np.allclose(each.columns[VALUE], values.detach(), atol=1e-4)
    joined = np.concatenate([each.columns[ADVANTAGE] for each in sequences])
    assert (joined.mean(), joined.std(ddof=1)) == (pytest.approx(0, abs=1e-6), pytest.approx(1, abs=1e-5))
    steps = data.from_step(0)
    first = next(steps)
    with torch.no_grad():
        for weight in trainable(policy.model).values():
            weight += 0.1
    for left, right in zip(first, next(steps), strict=True):
        assert {OLD, START, VALUE, ADVANTAGE, RETURN} == set(right.token_columns)
        assert all(torch.equal(left.token_columns[name], right.token_columns[name]) for name in right.token_columns)


def test_answers_that_are_cut_off_cost(source):
    free, dear = source(), source(unfinished=0.75)
    rows = list(zip(free.roll(0), dear.roll(0), strict=True))
    apart = [left.columns[reward(k)] - right.columns[reward(k)] for left, right in rows for k in range(4)]
    assert set(np.round(apart, 6)) <= {0.0, 0.75}
    assert np.mean(np.array(apart) == 0) == pytest.approx(free.facts["finished"])
    assert free.facts["finished"] < 1


def updated(data, policy, epochs, rate=0.005):
    """What each update earned and told, by PPO."""
    object.__setattr__(data, "epochs", epochs)
    moves = AdamW(learning_rate=rate).build(trainable(policy.model))
    steps = train(policy, data.objective, data.from_step(0), moves, lambda step: 1.0, seed=0)
    return [{"reward": data.facts["reward"], **step.stats} for step in steps]


def test_ppo_raises_what_pays_and_its_values_know_it(source, policy):
    attach_head(policy)
    start = Start(trainable(policy.model))
    told = updated(source(start=start, objective=PPO(beta=0.001), updates=2, samples=8, count=2), policy, 14.0)
    first, last = ({name: np.mean([one[name] for one in part]) for name in told[0]} for part in (told[:4], told[-8:]))
    assert last["reward"] > first["reward"] + 0.2
    assert last["value_error"] < 0.3 * last["reward"] ** 2
    assert 0 < last["divergence"] < 12  # nats a token; a random model of 4,096 tokens begins to say one thing


def test_the_price_of_leaving_the_start_brings_the_policy_back(source, policy):
    """Nothing is paid, so that it is all there is to earn."""
    attach_head(policy)
    start = Start(trainable(policy.model))
    with torch.no_grad():
        for name, weight in trainable(policy.model).items():
            if "lora_" in name:
                weight += 0.05 * torch.sign(weight) + 0.02
    free = PAID.model_copy(update={"weight": 0.0})
    data = source(start=start, objective=PPO(beta=0.5), updates=2, samples=8, count=2, rewards=(free,))
    told = [one["divergence"] for one in updated(data, policy, 24.0, 0.002)]
    assert np.mean(told[-6:]) < 0.75 * np.mean(told[:4])

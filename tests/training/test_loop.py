import pytest
import torch

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.forward import token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train


@pytest.fixture
def tuned(build):
    """A model with an adapter attached; equal each time."""

    def make(adapter=None, **fields):
        loaded = build("llama", seed=3, **fields)
        (adapter or LoRA(rank=4)).attach(loaded, 1)
        return loaded

    return make


def run(loaded, steps, rate=1e-3, factor=lambda step: 1.0, **options):
    optimizer = AdamW(learning_rate=rate).build(trainable(loaded.model))
    return list(train(loaded, SFT(), steps, optimizer, factor, **{"seed": 0, **options}))


def weights(loaded):
    return {name: parameter.detach().clone() for name, parameter in trainable(loaded.model).items()}


def gradients(loaded, batches):
    """The gradient that a step is taken with, unclipped."""
    caught = {}

    class Catch(torch.optim.SGD):
        def step(self, closure):
            super().step(closure)
            caught.update({name: p.grad.clone() for name, p in trainable(loaded.model).items()})

    optimizer = Catch(trainable(loaded.model).values(), lr=0.0)
    (step,) = train(loaded, SFT(), [batches], optimizer, lambda _: 1.0, seed=0, clip=0)
    return step, caught


@pytest.mark.parametrize("adapter", [LoRA(rank=4), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_micro_batches_change_nothing(tuned, rows, adapter, micro_batch):
    """Also in the last, short step of an epoch."""
    found = []
    for size in (8, micro_batch):
        loaded = tuned(adapter)
        data = Dataset(rows, 8, size, 1, 0)
        found.append([gradients(loaded, data.step(number)) for number in range(2)])
        assert len(data.rows) % 8 == 5
    for (whole, expected), (split, gradient) in zip(*found, strict=True):
        assert split.loss == pytest.approx(whole.loss, rel=1e-6)
        assert split.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-5)
        assert split.tokens == whole.tokens
        assert split.learnt == whole.learnt == whole.distinct
        gap = torch.cat([(gradient[name] - tensor).flatten() for name, tensor in expected.items()]).norm()
        assert gap <= 3e-6 * whole.gradient_norm


def test_the_loss_is_the_mean_over_supervised_tokens(tuned, rows):
    loaded = tuned()
    batch = Batch.of(rows[:5])
    expected = -float(token_logps(loaded, batch).mean().detach())
    (step,) = run(loaded, [[batch]])
    assert step.loss == pytest.approx(expected, rel=1e-5)
    assert step.tokens == sum(len(row) for row in rows[:5])


def test_it_learns(tuned, rows):
    steps = run(tuned(), Dataset(rows, 13, 13, 25, 0).from_step(0), rate=1e-2)
    assert steps[-1].loss < 0.8 * steps[0].loss
    assert [step.number for step in steps] == list(range(25))


def test_the_rate_follows_the_schedule_and_counts_from_the_first_step(tuned, rows):
    batches = [[Batch.of(rows[:2])]] * 3
    steps = run(tuned(), batches, rate=0.5, factor=lambda step: 1 / (step + 1), first=4)
    assert [step.number for step in steps] == [4, 5, 6]
    assert [step.learning_rate for step in steps] == pytest.approx([0.1, 0.5 / 6, 0.5 / 7])


def test_a_long_gradient_is_clipped(tuned, rows):
    batches = [[Batch.of(rows[:3])]]
    moved = {}
    for clip in (0.0, 1e-3):
        loaded = tuned()
        before = weights(loaded)
        optimizer = torch.optim.SGD(trainable(loaded.model).values(), lr=1.0)
        (step,) = train(loaded, SFT(), batches, optimizer, lambda _: 1.0, seed=0, clip=clip)
        change = torch.cat([(before[name] - p).flatten() for name, p in trainable(loaded.model).items()]).norm()
        moved[clip] = (float(change.detach()), step.gradient_norm)
    assert moved[0.0][0] == pytest.approx(moved[0.0][1], rel=1e-3)
    assert moved[1e-3][0] == pytest.approx(1e-3, rel=1e-2)
    assert moved[1e-3][1] == pytest.approx(moved[0.0][1])  # the norm told is the one before


@pytest.mark.parametrize(
    ("poison", "what"),
    [(lambda p: p.fill_(float("nan")), "loss"), (lambda p: p.fill_(float("inf")), "loss")],
    ids=["nan", "inf"],
)
def test_what_is_not_finite_is_refused_before_it_does_harm(tuned, rows, poison, what):
    loaded = tuned()
    optimizer = AdamW(learning_rate=1e-2).build(trainable(loaded.model))
    steps = train(loaded, SFT(), [[Batch.of(rows[:3])], [Batch.of(rows[3:5])]], optimizer, lambda _: 1.0, seed=0)
    next(steps)
    sound = weights(loaded)
    with torch.no_grad():
        poison(loaded.model.model.norm.weight)  # frozen, so that what learns can be compared
    with pytest.raises(
        ModelError,
        match=rf"the {what} is not finite, the step was not applied; its rows: train.jsonl:4, train.jsonl:5;",
    ):
        next(steps)
    assert all(torch.equal(parameter, sound[name]) for name, parameter in trainable(loaded.model).items())


def test_a_gradient_that_is_not_finite_is_refused_too(tuned, rows):
    loaded = tuned()
    before = weights(loaded)
    loaded.model.model.layers[0].mlp.up_proj.lora_B.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(ModelError, match="the gradient is not finite") as caught:
        run(loaded, [[Batch.of(rows)]])
    assert "and 5 more" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(parameter, before[name]) for name, parameter in trainable(loaded.model).items())


def test_evaluating_between_steps_changes_nothing(tuned, rows):
    """Generating puts a model into evaluation mode; the next step must drop inputs all the same."""
    batches = [[Batch.of(rows[:4])]] * 4
    found = []
    for look in (False, True):
        loaded = tuned(LoRA(rank=4, dropout=0.5))
        optimizer = AdamW(learning_rate=1e-2).build(trainable(loaded.model))
        losses = []
        for step in train(loaded, SFT(), batches, optimizer, lambda _: 1.0, seed=0):
            losses.append(step.loss)
            if look:
                generate(loaded, [[1, 2, 3]], Sampling(max_tokens=2, temperature=1.0))
                torch.rand(3)
        found.append((losses, weights(loaded)))
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[0][1][name], weight) for name, weight in found[1][1].items())


def test_stats_are_means_over_what_is_counted(tuned, rows):
    from tunesmith.methods.objectives import Loss

    class Counting(SFT):
        def __call__(self, loaded, batch):
            total, _ = super().__call__(loaded, batch)
            return Loss(
                total, {"ones": torch.tensor(float(batch.supervised)), "rows": torch.tensor(float(len(batch.origins)))}
            )

    loaded = tuned()
    batches = [Batch.of(rows[:2]), Batch.of(rows[2:5])]
    optimizer = AdamW().build(trainable(loaded.model))
    (step,) = train(loaded, Counting(), [batches], optimizer, lambda _: 1.0, seed=0)
    assert step.stats == pytest.approx({"ones": 1.0, "rows": 5 / sum(batch.supervised for batch in batches)})


def test_each_step_draws_anew_and_a_seed_draws_the_same(tuned, rows):
    loaded = tuned(LoRA(rank=4, dropout=0.5))
    for layer in range(2):
        torch.nn.init.normal_(loaded.model.model.layers[layer].mlp.up_proj.lora_B)
    found = []
    for seed in (1, 1, 2):
        still = torch.optim.SGD(trainable(loaded.model).values(), lr=0.0)
        steps = train(loaded, SFT(), [[Batch.of(rows[:4])]] * 3, still, lambda _: 1.0, seed=seed)
        found.append([step.loss for step in steps])
    assert len(set(found[0])) == 3
    assert found[0] == found[1] != found[2]

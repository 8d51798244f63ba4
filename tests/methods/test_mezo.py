import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import tunesmith
from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.kernels.noise import reference
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.mezo import FILE, MeZO, replay
from tunesmith.methods.optimizers.moves import MOVES, SEEDS
from tunesmith.models.load import load
from tunesmith.training.batches import Dataset
from tunesmith.training.checkpoint import load_newest, restore, save
from tunesmith.training.loop import train


@pytest.fixture
def model(build):
    return lambda: build("llama", spread=0.2, vocab_size=97, tie_word_embeddings=True)


def copies(weights):
    return {name: weight.detach().clone() for name, weight in weights.items()}


def equal(found, expected):
    return all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_small_step_along_many_directions_is_a_step_against_the_gradient(model, random_rows):
    loaded, batch = model(), Batch.of(random_rows(4))
    LoRA(rank=2, targets=("gate_proj", "up_proj")).attach(loaded, 0)
    weights = trainable(loaded.model)
    (SFT()(loaded, batch).total / batch.supervised).backward()
    gradient = torch.cat([weight.grad.flatten() for weight in weights.values()])
    loaded.model.zero_grad()
    before = copies(weights)
    count = len(gradient)
    spec = MeZO(learning_rate=1e-3, epsilon=1e-3, directions=count)
    list(train(loaded, SFT(), [[batch]], spec.build(weights), lambda _: 1.0, seed=0))
    moved = torch.cat([(before[name] - weight).flatten() for name, weight in weights.items()]) / 1e-3
    cosine = torch.nn.functional.cosine_similarity(moved.detach(), gradient, 0)
    assert cosine > 0.65  # sqrt(n / (n + d + 1)) is expected of n directions in d dimensions: 0.71
    assert float((moved.norm() / gradient.norm()).detach()) == pytest.approx(2**0.5, rel=0.1)


@pytest.mark.parametrize("adapter", [Full(), LoRA(rank=2)], ids=["full", "lora"])
def test_both_passes_leave_the_weights_bit_for_bit_as_they_were(model, adapter):
    loaded = model()
    adapter.attach(loaded, 0)
    weights = trainable(loaded.model)
    before, seen = copies(weights), []

    def closure():
        seen.append(copies(weights))
        if len(seen) == 3:
            raise RuntimeError("cut off within a pass")
        return torch.zeros(())

    optimizer = MeZO(epsilon=1e-2).build(weights)
    optimizer.step(closure)  # no slope, no move
    assert equal(weights, before)
    assert not any(equal(one, before) for one in seen)
    for name, weight in before.items():
        torch.testing.assert_close((seen[0][name] + seen[1][name]) / 2, weight, atol=1e-6, rtol=1e-5)
    with pytest.raises(RuntimeError):
        optimizer.step(closure)
    assert equal(weights, before)


def test_tied_weights_are_moved_once_and_together(model, random_rows):
    loaded = model()
    Full().attach(loaded, 0)
    weights = trainable(loaded.model)
    assert not any("lm_head" in name for name in weights)
    before, optimizer = copies(weights), MeZO(learning_rate=1e-2).build(weights)
    list(train(loaded, SFT(), [[Batch.of(random_rows(2))]], optimizer, lambda _: 1.0, seed=0))
    embedding, head = loaded.model.get_input_embeddings().weight, loaded.model.get_output_embeddings().weight
    assert embedding is head
    (seed,), (((_, scale),),) = (
        optimizer.state[next(iter(weights.values()))][name].tolist() for name in (SEEDS, MOVES)
    )
    place = 0
    for name, weight in before.items():  # each number of the direction is taken once
        z = reference(weight.numel(), seed, place, "normal").view_as(weight)
        torch.testing.assert_close(weights[name], weight + scale * z, atol=1e-6, rtol=1e-5)
        place += weight.numel()
    assert abs(scale) > 1e-5


def test_directions_do_not_depend_on_what_else_is_drawn(model, random_rows):
    seeds = []
    for dropout in (0.0, 0.5):
        loaded = model()
        LoRA(rank=2, dropout=dropout).attach(loaded, 0)
        weights = trainable(loaded.model)
        optimizer = MeZO(directions=2).build(weights)
        list(train(loaded, SFT(), [[Batch.of(random_rows(2))]] * 3, optimizer, lambda _: 1.0, seed=0))
        seeds.append(optimizer.state[next(iter(weights.values()))][SEEDS].tolist())
    assert seeds[0] == seeds[1]
    assert len(set(seeds[0])) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_weights_that_do_not_learn_keep_every_bit_and_the_others_come_back(build, random_rows, dtype):
    """With steps of next to nothing; what learns is float32 beside a base in bf16."""
    loaded = build("llama", spread=0.2, vocab_size=97, dtype=dtype)
    LoRA(rank=2).attach(loaded, 0)
    weights, before = trainable(loaded.model), copies(dict(loaded.model.named_parameters()))
    optimizer = MeZO(learning_rate=1e-30, epsilon=1e-2).build(weights)
    list(train(loaded, SFT(), [[Batch.of(random_rows(2))]] * 3, optimizer, lambda _: 1.0, seed=0))
    after = dict(loaded.model.named_parameters())
    assert equal(after, {name: one for name, one in before.items() if name not in weights})
    for name in weights:
        torch.testing.assert_close(after[name], before[name], atol=1e-25, rtol=0)


def test_both_passes_draw_the_same_dropout(model, random_rows):
    loaded, batch = model(), Batch.of(random_rows(2))
    LoRA(rank=2, dropout=0.5).attach(loaded, 0)
    losses = []

    def closure():
        losses.append(float(SFT()(loaded, batch).total))
        return torch.tensor(losses[-1])

    with torch.no_grad():
        for name, weight in trainable(loaded.model).items():
            if "lora_B" in name:
                weight.normal_(0, 0.5)
    loaded.model.train()
    MeZO(epsilon=1e-7).build(trainable(loaded.model)).step(closure)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    before = losses[0]
    MeZO(epsilon=1e-7).build(trainable(loaded.model)).step(closure)
    assert losses[2] != pytest.approx(before, rel=1e-4)


@pytest.mark.parametrize("directions", [1, 2])
def test_the_loss_of_a_step_is_the_mean_of_all_its_passes(model, random_rows, directions):
    """Each is beside the weights, on one side of them."""
    loaded, batches, losses = model(), [Batch.of(random_rows(2)), Batch.of(random_rows(1, seed=4))], []
    LoRA(rank=2).attach(loaded, 0)
    optimizer = MeZO(epsilon=0.3, directions=directions).build(trainable(loaded.model))
    optimizer.register_step_pre_hook(lambda _, given, named: ((given[0], noted(given[1], losses)), named))
    (step,) = train(loaded, SFT(), [batches], optimizer, lambda _: 1.0, seed=0)
    assert len(losses) == 2 * directions
    assert step.loss == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    assert all(abs(step.loss - loss) > 1e-3 for loss in losses)


def noted(closure, losses):
    """The closure, whose losses are kept."""

    def call():
        losses.append(float(loss := closure()))
        return loss

    return call


def test_a_run_is_told_by_its_moves_alone(model, random_rows, tmp_path):
    loaded = model()
    LoRA(rank=2).attach(loaded, 0)
    weights = trainable(loaded.model)
    before = copies(weights)
    spec = MeZO(learning_rate=1e-2, epsilon=1e-2, weight_decay=0.1, rates={"*.lora_B": 4.0}, directions=2)
    optimizer = spec.build(weights)
    steps = Dataset(random_rows(8), 4, 4, 5, 0).from_step(0)
    list(train(loaded, SFT(), steps, optimizer, lambda step: 1 / (step + 1), seed=0))
    after = copies(weights)
    assert not equal(after, before)
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(before[name])
    written = set()
    for _ in range(6):
        optimizer.save(tmp_path)
        written.add((tmp_path / "moves.safetensors").read_bytes())
    assert len(written) == 1
    replay(weights, tmp_path)
    assert equal(weights, after)
    with pytest.raises(ModelError, match="learns on one side only"):
        replay({name: weight for name, weight in weights.items() if "lora_A" in name}, tmp_path)


@pytest.mark.parametrize(
    ("adapter", "kept"),
    [(LoRA(rank=2), "adapter_model.safetensors"), (Full(), "model.safetensors")],
    ids=["lora", "full"],
)
def test_what_a_finished_run_learnt_is_made_again_of_its_moves(adapter, kept, tiny_folder, tmp_path):
    lines = [{"prompt": f"Say {n}.", "completion": "yes" if n % 2 else "no"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    optimizer = {"kind": "mezo", "learning_rate": 0.01, "epsilon": 0.01, "weight_decay": 0.1, "directions": 2}
    recipe = {
        "model": str(tiny_folder), "precision": "fp32", "seed": 5,
        "prepare": {"source": "rows.jsonl", "test_fraction": 8, "validation_fraction": 4, "cleaners": []},
        "initialise": {"adapter": adapter.model_dump(mode="json")},
        "finetune": {"epochs": 2, "batch": 8, "optimizer": optimizer, "checkpoint_every": 3, "validation": {"every": 2}},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    made = tunesmith.finetune(tmp_path / "recipe.yaml", folder=tmp_path / "run") / "adapter"
    assert (made / FILE).stat().st_size < 3000
    loaded = load(str(tiny_folder), "fp32")
    adapter.attach(loaded, 5)
    weights = trainable(loaded.model)
    before, learnt = copies(weights), load_file(made / kept)
    replay(weights, made)
    assert not equal(weights, before)
    adapter.save(loaded, tmp_path / "again")
    assert equal(load_file(tmp_path / "again" / kept), learnt)


def test_a_run_that_was_cut_ends_with_the_same_bits(model, random_rows, tmp_path):
    found = []
    for cut in (False, True):
        loaded = model()
        LoRA(rank=2).attach(loaded, 0)
        weights = trainable(loaded.model)
        data, spec = Dataset(random_rows(8), 4, 4, 4, 0), MeZO(learning_rate=1e-2, epsilon=1e-2)
        optimizer = spec.build(weights)
        for step in train(loaded, SFT(), data.from_step(0), optimizer, lambda _: 1.0, seed=0):
            if cut and step.number == 3:
                save(tmp_path, 4, weights, optimizer, {})
                break
        if cut:
            with torch.no_grad():
                for weight in weights.values():
                    weight.zero_()
            optimizer = spec.build(weights)
            restore(load_newest(tmp_path, print), weights, optimizer)
            list(train(loaded, SFT(), data.from_step(4), optimizer, lambda _: 1.0, seed=0, first=4))
        found.append((copies(weights), optimizer.state_dict()["state"][0]))
    assert equal(*(weights for weights, _ in found))
    assert all(torch.equal(found[0][1][name], found[1][1][name]) for name in ("seeds", "moves"))


def test_it_finds_the_bottom_of_a_bowl():
    weight = nn.Parameter(torch.full((20,), 3.0))
    optimizer = MeZO(learning_rate=0.02, epsilon=1e-3, noise="sign").build({"w": weight})
    torch.manual_seed(0)
    for _ in range(400):
        optimizer.step(lambda: weight.square().sum())
    assert float(weight.abs().max()) < 0.1

import os
import re
from itertools import islice
from pathlib import Path

import pytest
import torch

import tunesmith
from tunesmith.kernels.memory import give_back
from tunesmith.methods.adapters import Adapter, trainable
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers import Optimizer
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.training import checkpoint
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train
from tunesmith.training.schedule import Schedule

STEPS = 10


class Session:
    """All that a process holds of a training; nothing in it outlives it but the checkpoint's folder."""

    def __init__(self, build, rows, adapter, dtype=torch.float32, offload=False, spec=None):
        self.loaded = build("llama", seed=3, dtype=dtype)
        adapter.attach(self.loaded, 1)
        adapter.begin(self.loaded, rows, 1)
        self.parameters = trainable(self.loaded.model)
        frozen = {name: one for name, one in self.loaded.model.named_parameters() if name not in self.parameters}
        spec = spec or AdamW(learning_rate=1e-2, weight_decay=0.1, offload=offload)
        self.optimizer = spec.over(self.parameters, frozen)
        self.data = Dataset(rows, 4, 2, 2.5, 0)
        assert self.data.steps_per_epoch < 5 < STEPS == self.data.steps

    def go(self, first, last):
        factor = lambda step: Schedule(shape="cosine", warmup=3).factor(step, STEPS)  # noqa: E731
        steps = train(self.loaded, SFT(), self.data.from_step(first), self.optimizer, factor, seed=5, first=first)
        return list(islice(steps, last - first))

    def save(self, folder, step, **notes):
        checkpoint.save(folder, step, self.parameters, self.optimizer, notes)

    def restore(self, folder):
        found = checkpoint.load_newest(folder, pytest.fail)
        checkpoint.restore(found, self.parameters, self.optimizer)
        return found


@pytest.fixture
def session(build, rows):
    return lambda adapter=LoRA(rank=4, dropout=0.3), **fields: Session(build, rows, adapter, **fields)  # noqa: B008


RESUMED = {
    "lora-dropout-fp32": (LoRA(rank=4, dropout=0.3), None, torch.float32),
    "lora-bf16": (LoRA(rank=4), None, torch.bfloat16),
    "full-bf16": (Full(), None, torch.bfloat16),
    **{f"adapter-{one.model_fields['kind'].default}": (one(), None, torch.float32) for one in Adapter.members()},
    **{f"optimizer-{one.model_fields['kind'].default}": (LoRA(rank=4, dropout=0.3), one(), torch.float32) for one in Optimizer.members()},
}  # fmt: skip
"""What is resumed: of every family each member."""


@pytest.mark.parametrize(("adapter", "spec", "dtype"), RESUMED.values(), ids=RESUMED)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(session, tmp_path, adapter, spec, dtype):
    whole = session(adapter, dtype=dtype, spec=spec)
    before = {name: one.detach().clone() for name, one in whole.parameters.items()}
    expected = whole.go(0, STEPS)
    assert not all(torch.equal(one, before[name]) for name, one in whole.parameters.items())
    first = session(adapter, dtype=dtype, spec=spec)
    steps = first.go(0, 5)
    first.save(tmp_path, 5, best=0.25)
    del first
    torch.manual_seed(999)  # another process has another state
    torch.rand(7)
    second = session(adapter, dtype=dtype, spec=spec)
    found = second.restore(tmp_path)
    assert (found.step, found.notes) == (5, {"best": 0.25})
    assert steps + second.go(5, STEPS) == expected
    for name, parameter in whole.parameters.items():
        assert torch.equal(second.parameters[name], parameter), name


@pytest.mark.parametrize("adapter", [LoRA(rank=4), Full()], ids=lambda adapter: adapter.kind)
def test_moments_in_a_file_give_the_same_bits_and_resume_either_way(session, tmp_path, adapter):
    whole = session(adapter)
    expected = whole.go(0, STEPS)
    for number, (before, after) in enumerate([(True, True), (True, False), (False, True)]):
        first, second = session(adapter, offload=before), session(adapter, offload=after)
        steps = first.go(0, 5)
        first.save(tmp_path / str(number), 5)
        give_back()
        second.restore(tmp_path / str(number))
        assert steps + second.go(5, STEPS) == expected
        for name, parameter in whole.parameters.items():
            assert torch.equal(second.parameters[name], parameter), name


def test_the_optimizer_s_state_comes_back(session, tmp_path):
    one, other = session(), session()
    one.go(0, 3)
    one.save(tmp_path, 3)
    other.restore(tmp_path)
    expected, found = (own.optimizer.state_dict()["state"] for own in (one, other))
    assert expected.keys() == found.keys()
    for number, slots in expected.items():
        assert slots.keys() == found[number].keys()
        for slot, value in slots.items():
            assert torch.equal(found[number][slot], value)
            assert found[number][slot].dtype == value.dtype
    assert any(value["step"] == 3 for value in found.values())


def test_weights_alone_may_be_restored(session, tmp_path):
    one, other = session(), session()
    one.go(0, 2)
    one.save(tmp_path, 2)
    checkpoint.restore(checkpoint.load_newest(tmp_path, pytest.fail), other.parameters)
    assert all(torch.equal(other.parameters[name], parameter) for name, parameter in one.parameters.items())
    assert not other.optimizer.state_dict()["state"]


def test_two_are_kept(session, tmp_path):
    own = session()
    for step in (1, 2, 3, 12):
        own.save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000012"]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "delete"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(session, tmp_path, file, harm):
    own = session()
    own.go(0, 1)
    own.save(tmp_path, 1)
    own.save(tmp_path, 2)
    path = tmp_path / "step-00000002" / file
    if harm == "cut":
        os.truncate(path, path.stat().st_size // 2)
    elif harm == "flip":
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 4
        path.write_bytes(content)
    else:
        path.unlink()
    said = []
    found = checkpoint.load_newest(tmp_path, said.append)
    assert found.step == 1
    assert len(said) == 1
    assert "step-00000002" in said[0]


def test_a_newest_that_cannot_be_read_falls_back_and_does_not_outlive_what_is_written_next(session, tmp_path):
    """A damaged one does not count among the two that are kept, nor come before those that went on from an older one."""
    own = session()
    own.go(0, 1)
    for step in (1, 2):
        own.save(tmp_path, step)
    own.save(tmp_path, 9)
    (tmp_path / "step-00000009" / "weights.safetensors").unlink()
    (tmp_path / "step-00000009" / "weights.safetensors").mkdir()  # reading it is an error of the system's
    assert checkpoint.load_newest(tmp_path, [].append).step == 2
    own.save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]
    assert checkpoint.load_newest(tmp_path, pytest.fail).step == 3


def test_a_half_written_one_is_not_seen(session, tmp_path):
    own = session()
    own.save(tmp_path, 1)
    partial = tmp_path / "step-00000002.partial"
    partial.mkdir()
    (partial / "weights.safetensors").write_bytes(b"half")
    assert checkpoint.load_newest(tmp_path, pytest.fail).step == 1
    own.save(tmp_path, 2)
    assert checkpoint.load_newest(tmp_path, pytest.fail).step == 2
    assert not partial.exists()


def test_there_may_be_none(tmp_path):
    assert checkpoint.load_newest(tmp_path / "never", pytest.fail) is None


def test_nothing_is_pickled():
    pickling = re.compile(r"torch\.(load|save)\(|(import|from) (pickle|dill|joblib|shelve)|allow_pickle=True")
    sources = list(Path(tunesmith.__file__).parent.rglob("*.py"))
    assert len(sources) > 40
    assert [path for path in sources if pickling.search(path.read_text())] == []

"""R9 in several processes, as torchrun starts them: they learn what one process does that takes the same passes, and one that is lost costs no more than a save."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from subjects import Tunesmith, alone
from test_split_steps import ERROR, SHAPES, apart, attached, expected, taken
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.base import ConfigError
from tunesmith.base.files import read_json, write_json
from tunesmith.data.example import Row, Sequence
from tunesmith.methods.adapters import Adapter
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.kto import KTO
from tunesmith.models import attention
from tunesmith.models.load import Loaded
from tunesmith.stages.finetune import Finetune
from tunesmith.stages.tuning import divided
from tunesmith.training.batches import Dataset
from tunesmith.training.ranks import Ranks

SHARED = {
    "lora": {},
    "full": {"initialise.adapter": {"kind": "full"}, "finetune.optimizer.learning_rate": 0.001},
    "hybrid": {"finetune.optimizer": {"kind": "hybrid"}},
    "mezo": {"finetune.optimizer": {"kind": "mezo", "learning_rate": 0.0001}},
    "memory": {"initialise.adapter": {"kind": "memory", "experts": 8, "rank": 1}},
}
"""What two processes learn: with dropout, with gradients that only some passes have, and without gradients."""


def started(command, count, **environment):
    """That many processes of one command, each told who it is as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    about = {**alone(), **environment, "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(
            command, env={**about, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(count)
    ]  # fmt: skip


def ended(processes):
    """Their exit codes, and what they said."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], said


def learnt(folder, toy, settings, count):
    """Of a training by so many processes."""
    subject = Tunesmith(settings=settings)
    subject.set_up(folder, toy)
    codes, said = ended(started(subject.command(folder), count))
    assert codes == [0] * count, said
    return subject.result(folder)


def test_two_processes_learn_what_one_does(tally, toy, tmp_path, many):
    counted = tally("R9-processes", "two processes end with the bits of one that takes the same passes, dropout and lost gradients included")  # fmt: skip
    for name in list(SHARED)[: many(5, 1)]:
        one = learnt(tmp_path / f"{name}-1", toy, {**SHARED[name], "finetune.micro_batch": 2}, 1)
        two = learnt(tmp_path / f"{name}-2", toy, SHARED[name], 2)
        counted.verdict(name, bool(one) and one == two, reason=f"{one} {two}")


def test_a_lost_process_is_noticed_and_made_up_for(tally, toy, tmp_path, many):
    counted = tally("R1-processes", "of two processes one is killed: the other says so and ends; started again they end with the same bits")  # fmt: skip
    wanted = learnt(tmp_path / "whole", toy, {}, 2)
    for number in range(many(6, 1)):
        subject, folder = Tunesmith(), tmp_path / str(number)
        subject.set_up(folder, toy)
        processes = started(subject.command(folder), 2)
        while not subject.checkpoints(folder):  # it trains
            assert processes[0].poll() is None, processes[0].communicate()[1]
            time.sleep(0.02)
        lost = number % 2 == 0
        processes[lost].send_signal(signal.SIGKILL)
        codes, said = ended(processes)
        noticed = codes[not lost] == 2 and "was lost" in said[not lost]
        again, _ = ended(started(subject.command(folder), 2))
        held = noticed and again == [0, 0] and subject.result(folder) == wanted
        counted.verdict(f"{number}", held, noticed, f"exits {codes} and {again}: {said[not lost].strip()[-200:]}")


def test_a_signal_is_for_the_first_process(toy, tmp_path):
    """torchrun hands it to all; the step under way is finished and saved."""
    subject = Tunesmith()
    subject.set_up(tmp_path, toy)
    processes = started(subject.command(tmp_path), 2)
    while not subject.checkpoints(tmp_path):
        assert processes[0].poll() is None, processes[0].communicate()[1]
        time.sleep(0.02)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    codes, said = ended(processes)
    assert codes[0] == 143, said
    assert codes[1] in (0, 2), said
    assert subject.checkpoints(tmp_path)


ADDING = """
import torch
from tunesmith.cli import leave
from tunesmith.training.ranks import BUCKET, Ranks
ranks = Ranks.joined()
parameters = [torch.nn.Parameter(torch.zeros(3, 5)), torch.nn.Parameter(torch.zeros(7)), torch.nn.Parameter(torch.zeros(2)),
              torch.nn.Parameter(torch.zeros(BUCKET + 1)), torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))]
torch.manual_seed(ranks.rank)
for number, one in enumerate(parameters):
    if number != 1 and (number != 0 or ranks.rank == 2):
        one.grad = torch.randn(one.shape, dtype=one.dtype)
ranks.add_up(parameters)
assert parameters[1].grad is None
torch.manual_seed(2)
assert torch.equal(parameters[0].grad, torch.randn(3, 5))
found = []
for rank in range(3):
    torch.manual_seed(rank)
    if rank == 2:
        torch.randn(3, 5)
    found.append([torch.randn(one.shape, dtype=one.dtype) for one in parameters[2:]])
for one, parts in zip(parameters[2:], zip(*found)):
    torch.testing.assert_close(one.grad, sum(parts))
assert ranks.told({"a": [1, float("inf")]} if ranks.first else None) == {"a": [1, float("inf")]}
assert ranks.gathered(ranks.rank * 1.5) == [0.0, 1.5, 3.0]
assert ranks.share("abcde") == [(0, "a"), (3, "d")] if ranks.first else True
ranks.leave()
leave(0)
"""


def test_gradients_of_three_are_added_up(toy):
    codes, said = ended(started([sys.executable, "-c", ADDING], 3))
    assert codes == [0, 0, 0], said


SHARING = """
import sys
from pathlib import Path
import torch
from test_ranks import share
from tunesmith.cli import leave
from tunesmith.kernels.products import fast_float32
from tunesmith.models import attention
from tunesmith.training.ranks import Ranks
torch.set_num_threads(1)
attention.register()
fast_float32()
ranks = Ranks.joined()
share(Path(sys.argv[1]), Path(sys.argv[2]), ranks)
ranks.leave()
leave(0)
"""


def hand_over(folder, loaded, adapter):
    """Write a model and what learns in it, for other processes to read."""
    loaded.model.config.save_pretrained(folder)
    save_file({name: one.clone() for name, one in loaded.model.state_dict().items()}, folder / "weights.safetensors")
    write_json(folder / "adapter.json", adapter.model_dump(mode="json"))


def taken_over(folder):
    """The same model in another process."""
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).float().eval()
    loaded = Loaded(folder.name, Path(), model, None, "fp32", attention.adopt(model))
    settings = read_json(folder / "adapter.json")
    Adapter.member(settings["kind"])(**settings).attach(loaded, 1)
    loaded.model.load_state_dict(load_file(folder / "weights.safetensors"))
    return loaded


def share(folder, made, ranks):
    """Take every step that is asked for, and write its loss and its gradient."""
    told = read_json(folder / "given.json")
    rows = [
        Row(f"random:{number}", (Sequence(np.array(tokens, np.int32), np.array(learn)),), {})
        for number, (tokens, learn) in enumerate(told["rows"], 1)
    ]
    losses, gradients = {}, {}
    for name, (model, size, step) in told["steps"].items():
        losses[name], found = taken(taken_over(folder / model), Dataset(rows, 8, size, 1, 0).step(step), ranks)
        gradients |= {f"{name}|{part}": one for part, one in found.items()}
    if ranks.first:
        made.mkdir()
        save_file(gradients, made / "gradients.safetensors")
        write_json(made / "losses.json", losses)


def test_shared_passes_have_the_gradient_of_the_whole_step(tally, tiny, random_rows, tmp_path, many):
    """Eight rows in passes of one or two, and five rows, of which some processes get fewer passes than others, or none."""
    counted = tally("R9-ranks", "steps whose passes 1, 2 and 4 processes share: gradient within 1e-6 of float64")
    rows, steps, wanted = random_rows(13), {}, {}
    for kind, fields in list(SHAPES.items())[: many(5, 1)]:
        for adapter in (Adapter.member("full")(), LoRA(rank=4)):
            hand_over(tmp_path / f"{kind}-{adapter.kind}", attached(tiny, kind, fields, adapter), adapter)
            for size in (1, 2):
                data = Dataset(rows, 8, size, 1, 0)
                for step, count in enumerate((8, 5)):
                    name = f"{kind} {adapter.kind}, {count} rows in passes of {size}"
                    steps[name] = f"{kind}-{adapter.kind}", size, step
                    wanted[name] = expected(tiny, kind, fields, adapter, [rows[place] for place in data.chosen(step)])
    told = [(one.tokens.tolist(), one.learn.tolist()) for row in rows for one in row.sequences]
    write_json(tmp_path / "given.json", {"rows": told, "steps": steps})
    for count in (2, 1, 4)[: many(3, 1)]:
        command = [sys.executable, "-c", SHARING, str(tmp_path), str(made := tmp_path / f"of-{count}")]
        codes, said = ended(started(command, count, PYTHONPATH=str(Path(__file__).parent)))
        assert codes == [0] * count, said
        losses, gradients = read_json(made / "losses.json"), load_file(made / "gradients.safetensors")
        for name, loss in losses.items():
            own = {key.partition("|")[2]: one for key, one in gradients.items() if key.startswith(f"{name}|")}
            error, off = apart(own, wanted[name][1]), abs(loss - wanted[name][0]) / wanted[name][0]
            held = error <= ERROR and off <= ERROR
            reason = f"gradient off by {error:.1e}, loss by {off:.1e}"
            counted.note(f"{name}, {count} processes", "held" if held else "silent", reason)
        assert losses.keys() == wanted.keys()


def test_one_alone_says_nothing():
    alone = Ranks.joined()
    assert (alone.first, alone.told(3), alone.gathered("x")) == (True, 3, ["x"])
    parameter = torch.nn.Parameter(torch.zeros(2))
    alone.add_up([parameter])
    assert parameter.grad is None
    assert os.environ.get("WORLD_SIZE") is None


def test_passes_are_as_many_as_processes():
    assert divided(Finetune(batch=8), Ranks(0, 3)).micro_batch == 3
    assert divided(Finetune(batch=8, micro_batch=2), Ranks(0, 2)).micro_batch == 2
    assert divided(Finetune(batch=8), Ranks()).micro_batch is None
    with pytest.raises(ConfigError, match="kto compares the rows of a step"):
        divided(Finetune(objective=KTO()), Ranks(0, 2))

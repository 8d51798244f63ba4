"""One server, one base in memory, several adapters: the `model` of a request chooses."""

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tunesmith.base import ConfigError, MachineError, Run, Spec, Stage
from tunesmith.base.files import write_json
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.several import Several
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.scheduler import cache_bytes
from tunesmith.serving.engine import Engine
from tunesmith.serving.settings import Serve
from tunesmith.stages.merged import Merged
from tunesmith.stages.served import adapters_of, check_cache

from .conftest import serve

NAMES = ("base", "a", "b")
TEXTS = ("the sea", "a long road to the sea", "one")


@pytest.fixture
def folders(tiny, tmp_path):
    made = {}
    for number, name in enumerate(NAMES[1:]):
        loaded = tiny("base", 0)
        LoRA(rank=2 + number).attach(loaded, number)
        with torch.no_grad():
            for parameter in trainable(loaded.model).values():
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        LoRA(rank=2 + number).save(loaded, tmp_path / name)
        made[name] = tmp_path / name
    return made


def test_requests_at_once_get_what_each_adapter_says_alone(tiny, folders, tmp_path, tokenizer):
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    expected = {}
    for number, name in enumerate(NAMES):
        loaded = tiny("base", 0)
        if name in folders:
            LoRA(rank=1 + number).restore(loaded, folders[name])
        expected[name] = [one.text for one in generate(loaded, prompts, Sampling(max_tokens=12))]
    assert len({str(one) for one in expected.values()}) == 3
    settings = Serve(port=0)
    several = Several(tiny("base", 0), folders)
    for running in serve(Engine(several.models, settings), settings, tmp_path / "log.sqlite"):
        found = asked_at_once(running.openai)
    assert found == expected


def test_a_cache_that_does_not_fit_is_told_before_requests_come(tiny, monkeypatch):
    models = {name: tiny(name, 0) for name in ("tuned", "base")}
    needed = sum(cache_bytes(loaded, 640) for loaded in models.values())
    assert needed > 0
    assert check_cache(models, 640, free=2 * needed) is None
    told = r"serve\.cache: keys and values of 640 tokens of each of 2 models take .* GB are free; set it to 256 or less"
    assert re.fullmatch(told, check_cache(models, 640, free=needed // 2))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(MachineError, match=told):
        check_cache(models, 640, free=needed // 2)
    assert check_cache(models, 256, free=needed // 2) is None


class Trained(Spec):
    """What `adapters_of` reads of a training's settings."""

    objective: dict[str, str]
    """What was minimised."""


def finished(
    folder, adapter, *, precision="bf16", objective="sft", stages=("finetune",), again=None, base="abc", merged=()
):
    """A run that deployed what an adapter holds, or was trained `again` since, or was merged from others; folder and deployed artifact."""
    run = Run(folder)

    def made(name, spec, *parents, source=None):
        def write(spec, *parents, out, **about):
            if source is not None:
                shutil.copytree(source, out / "adapter")
            (out / "of.txt").write_text(f"{name} {spec} {source}")
            write_json(out / "model.json", {"name": "base", "fingerprint": base})

        return run.once(Stage(name, 1, write), spec, *parents, model="base", precision=precision)

    spec = Trained(objective={"kind": objective})
    began = [Run(one).artifact("finetune") for one in merged] or [made("initialise", Spec())]
    parents = [made(stage, spec, *began, source=adapter) for stage in stages]
    deployed = made("deploy", Spec(), *parents)
    if merged:
        (folder / "resolved.yaml").write_text(Merged(runs=merged).to_yaml())
    if again is not None:
        made(stages[0], Trained(objective={"kind": "dpo"}), *began, source=again)
    return folder, deployed


def test_the_adapter_that_was_deployed_is_served_not_one_that_was_trained_since(folders, tmp_path):
    runs = [
        finished(tmp_path / "runs" / "a", folders["a"], again=folders["b"]),
        finished(tmp_path / "runs" / "b", folders["b"]),
    ]
    found = adapters_of(*zip(*runs, strict=True))
    for name, adapter in found.items():
        assert (adapter / "adapter_config.json").read_text() == (folders[name] / "adapter_config.json").read_text()
    assert Run(runs[0][0]).artifact("finetune") / "adapter" != found["a"]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"precision": "int8"}, "was trained on a base in int8, so it cannot share a base in memory; serve it alone"),
        ({"precision": "nf4"}, "was trained on a base in nf4, so it cannot share a base in memory; serve it alone"),
        ({"stages": ("finetune", "prune")}, "was pruned, so it cannot share a base in memory; serve it alone"),
        ({"objective": "reward"}, "scores answers and writes none; leave it out"),
    ],
)
def test_what_cannot_share_a_base_is_refused_with_the_reason(folders, tmp_path, about, message):
    runs = [finished(tmp_path / "runs" / name, folders[name], **about) for name in ("a", "b")]
    with pytest.raises(ConfigError, match=f"a: {message}"):
        adapters_of(*zip(*runs, strict=True))


def test_runs_of_bases_that_had_one_name_at_different_times_are_served_apart(folders, tmp_path):
    old = finished(tmp_path / "runs" / "a", folders["a"])
    new = finished(tmp_path / "runs" / "b", folders["b"], base="xyz")
    merged = finished(tmp_path / "runs" / "ab", folders["a"], stages=("merge",), merged=(old[0],))
    assert list(adapters_of(*zip(old, merged, strict=True))) == ["a", "ab"]
    with pytest.raises(ConfigError, match=r"b: was tuned from base \(xyz\), .*a from base \(abc\); serve them apart"):
        adapters_of(*zip(old, new, strict=True))
    with pytest.raises(ConfigError, match=r"ab: was tuned from base \(abc\), .*b from base \(xyz\); serve them apart"):
        adapters_of(*zip(new, merged, strict=True))
    shutil.rmtree(old[0])
    with pytest.raises(ConfigError, match=r"ab: the runs that it was merged from are gone.*serve it alone"):
        adapters_of(*zip(new, merged, strict=True))


def asked_at_once(client):
    """What each model says to each text, all asked together."""

    def ask(name, text):
        return client.completions.create(model=name, prompt=text, max_tokens=12).choices[0].text

    assert [one.id for one in client.models.list()] == list(NAMES)
    with ThreadPoolExecutor(9) as pool:
        futures = {name: [pool.submit(ask, name, text) for text in TEXTS] for name in NAMES}
        return {name: [future.result() for future in each] for name, each in futures.items()}

"""Runs that cannot be one are told apart by what they say of themselves, before anything of them is loaded."""

import json

import pytest

from tunesmith.base import Artifact, ConfigError
from tunesmith.data.example import Example
from tunesmith.methods.merging.cat import Cat
from tunesmith.methods.merging.svd import SVD
from tunesmith.stages.sources import Source, check


@pytest.fixture
def source(tmp_path):
    """Makes what a run tells of itself."""

    def make(name, adapter=None, fingerprint="abc", precision="fp32", rank=4, objective="sft", text=None):
        folder = tmp_path / name
        (folder / "adapter").mkdir(parents=True)
        about = {"name": "model", "fingerprint": fingerprint, "precision": precision}
        (folder / "model.json").write_text(json.dumps(about))
        if adapter is None:
            (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": rank}))
        example = Example("t:1", ({"role": "user", "content": "?"},)) if text is None else Example("t:1", text=text)
        (folder / "test.jsonl").write_text(json.dumps(example.to_json()) + "\n")
        (folder / "summary.json").write_text("{}")
        about = {
            "context": {"adapter": adapter or {"kind": "lora", "rank": rank}},
            "spec": {"objective": {"kind": objective}},
        }
        one = Artifact(folder, about)
        return Source(name, one, one, one, one)

    return make


def test_runs_of_another_base_or_precision_are_refused(source):
    with pytest.raises(
        ConfigError, match=r"b was tuned from model \(xyz\), a from model \(abc\); only runs of one base"
    ):
        check([source("a"), source("b", fingerprint="xyz")], Cat())
    with pytest.raises(ConfigError, match=r"d was tuned in bf16, c in fp32; tune one again with precision=fp32"):
        check([source("c"), source("d", precision="bf16")], Cat())


def test_runs_of_what_writes_no_answers_or_was_asked_for_none_are_refused(source):
    with pytest.raises(ConfigError, match="b learnt to score answers, and a merged run writes them; leave it out"):
        check([source("a"), source("b", objective="reward")], Cat())
    with pytest.raises(ConfigError, match="d was measured on plain text"):
        check([source("c"), source("d", text="Just words.")], Cat())


def test_runs_of_adapters_that_add_nothing_to_weights_are_refused(source):
    with pytest.raises(ConfigError, match="b learnt with the adapter prompt, which adds nothing to weights"):
        check([source("a"), source("b", {"kind": "prompt"})], Cat())


def test_runs_of_whole_weights_where_ranks_are_wanted_or_the_base_is_rounded_are_refused(source):
    with pytest.raises(ConfigError, match="no low-rank correction that svd could cut"):
        check([source("a"), source("b", {"kind": "full"})], SVD())
    for bits in ("int8", "nf4"):
        odd = source(f"d-{bits}", {"kind": "dora"}, precision=bits)
        with pytest.raises(ConfigError, match=f"d-{bits} learnt with the adapter dora on a base in {bits}"):
            check([source(f"c-{bits}", precision=bits), odd], Cat())
    check([source("e"), source("f", {"kind": "full"}), source("g", rank=8)], Cat())

import pytest
import torch
from safetensors.torch import load_file, save_file

from tunesmith.base import ModelError
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.full import Full
from tunesmith.models.load import load

VOCABULARY = 97


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {}),
        ("gpt2", {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 128}),
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
    ids=["llama-tied", "llama", "gpt2", "mixtral"],
)
def test_every_weight_comes_back(build, tmp_path, kind, fields):
    loaded = build(kind, seed=1, vocab_size=VOCABULARY, **fields)
    Full().attach(loaded, 0)
    assert sum(weight.numel() for weight in trainable(loaded.model).values()) == sum(
        weight.numel() for weight in loaded.model.parameters()
    )
    with torch.no_grad():
        for number, parameter in enumerate(loaded.model.parameters()):
            parameter += 0.1 + number / 100
    Full().save(loaded, tmp_path)
    again = build(kind, seed=2, vocab_size=VOCABULARY, **fields)
    Full().restore(again, tmp_path)
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    assert not trainable(again.model)


def test_what_is_saved_is_an_ordinary_model(build, tmp_path):
    loaded = build("llama", seed=1)
    Full().attach(loaded, 0)
    Full().save(loaded, tmp_path)
    again = load(str(tmp_path), "fp32")
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], weight), name
    assert again.tokenizer.chat_template == loaded.tokenizer.chat_template


def test_in_bf16_the_weights_that_learn_are_float32(build, tmp_path):
    loaded = build("llama", vocab_size=VOCABULARY, dtype=torch.bfloat16)
    Full().attach(loaded, 0)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    Full().save(loaded, tmp_path)
    served = build("llama", vocab_size=VOCABULARY, dtype=torch.bfloat16, seed=5)
    Full().restore(served, tmp_path)
    assert {weight.dtype for weight in served.model.parameters()} == {torch.bfloat16}
    for name, weight in loaded.model.state_dict().items():
        assert torch.equal(served.model.state_dict()[name], weight.bfloat16())


@pytest.mark.parametrize("lost", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_weight_that_is_not_in_the_file_is_not_made_up(build, tmp_path, lost):
    loaded = build("llama", seed=1, vocab_size=VOCABULARY)
    Full().attach(loaded, 0)
    Full().save(loaded, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[lost]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=lost):
        Full().restore(build("llama", seed=2, vocab_size=VOCABULARY), tmp_path)

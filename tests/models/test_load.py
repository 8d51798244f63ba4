import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, BertConfig

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.models.forward import padded_logps, token_logps
from tunesmith.models.load import fingerprint, load, load_config, load_tokenizer, locate, parameters


def test_a_folder_is_loaded_ready_for_forests(tiny_folder):
    loaded = load(str(tiny_folder), "fp32")
    assert loaded.forest
    assert loaded.notes == []
    assert loaded.folder == tiny_folder
    assert not loaded.model.training
    assert loaded.precision == "fp32"
    assert next(loaded.model.parameters()).dtype == torch.float32
    assert next(load(str(tiny_folder), "bf16").model.parameters()).dtype == torch.bfloat16
    assert parameters(loaded.model) == sum(p.numel() for p in loaded.model.parameters())


def test_a_model_that_takes_no_forest_says_so(build, tmp_path):
    recurrent = build("mamba", state_size=4)
    recurrent.model.save_pretrained(tmp_path)
    recurrent.tokenizer.save_pretrained(tmp_path)
    loaded = load(str(tmp_path), "fp32")
    assert not loaded.forest
    assert any("sequences are padded instead" in note for note in loaded.notes)


def test_the_fingerprint_is_of_weights_and_tokenizer(tiny_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(tiny_folder, copy)
    assert fingerprint(copy) == fingerprint(tiny_folder)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert fingerprint(copy) != fingerprint(tiny_folder)


def refused(name):
    with pytest.raises(ModelError) as caught:
        load(str(name), "fp32")
    line = str(caught.value)
    assert "\n" not in line
    assert str(name) in line
    return line


class TestRefusals:
    @pytest.fixture
    def folder(self, tiny_folder, tmp_path):
        shutil.copytree(tiny_folder, tmp_path / "model")
        return tmp_path / "model"

    def test_no_such_folder(self, tmp_path):
        assert "not found; give smollm2-135m" in refused(tmp_path / "none")
        assert "not found" in refused("none.gguf")

    def test_a_folder_without_a_config(self, tmp_path):
        assert "no config.json" in refused(tmp_path)

    @pytest.mark.parametrize("content", ["{", "[]", "", "3", '{"model_type": "no-such-model"}', "{}"])
    def test_a_broken_config(self, folder, content):
        (folder / "config.json").write_text(content)
        assert "config.json cannot be used: " in refused(folder)

    def test_an_encoder(self, folder):
        BertConfig(hidden_size=16).save_pretrained(folder)
        assert "'bert' is not a decoder" in refused(folder)

    def test_an_encoder_decoder(self, folder):
        (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
        assert "'t5' is not a decoder" in refused(folder)

    def test_code_of_its_own(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoConfig": "evil.Config"}}))
        (folder / "evil.py").write_text("raise SystemExit('ran')")
        assert "auto_map" in refused(folder)

    @pytest.mark.parametrize(
        ("file", "fields", "reason"),
        [
            ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, r"auto_map"),
            ("config.json", {"vision_config": {"auto_map": {"AutoConfig": "evil.C"}}}, "auto_map"),
            ("config.json", {"_attn_implementation": "evil/kernel"}, "code from the hub"),
            ("config.json", {"quantization_config": {"quant_method": "gptq"}}, "weights are quantised"),
            ("tokenizer_config.json", {"tokenizer_class": "AutoModelForCausalLM"}, "is no tokenizer"),
            ("adapter_config.json", {"base_model_name_or_path": "/elsewhere"}, "an adapter of another model"),
            ("config.json", {"num_hidden_layers": 10**9}, "tensors"),
            ("config.json", {"num_hidden_layers": 0}, "0 layers"),
            ("config.json", {"num_hidden_layers": 1}, "has no place in what config.json describes"),
            ("config.json", {"hidden_size": 10**9}, "of width 1,000,000,000"),
            ("config.json", {"vocab_size": 10**12}, "vocab_size: 1,000,000,000,000"),
        ],
    )
    def test_what_asks_for_code_or_claims_more_than_it_holds(self, folder, file, fields, reason):
        path = folder / file
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))
        assert reason in refused(folder)

    def test_a_weight_that_is_missing_is_not_made_up(self, folder):
        weights = load_file(folder / "model.safetensors")
        del weights["model.layers.1.mlp.down_proj.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert "model.layers.1.mlp.down_proj.weight is missing in its files" in refused(folder)

    @pytest.mark.parametrize("place", ["../outside.safetensors", "/outside.safetensors"])
    def test_weights_elsewhere(self, folder, place):
        names = list(load_file(folder / "model.safetensors"))
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        index = {"weight_map": dict.fromkeys(names, place)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "is not a file in the folder" in refused(folder)

    def test_pickled_weights(self, folder):
        (folder / "model.safetensors").unlink()
        torch.save({}, folder / "pytorch_model.bin")
        assert "its weights cannot be loaded" in refused(folder)

    def test_cut_weights(self, folder):
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        assert "its weights cannot be loaded" in refused(folder)

    def test_weights_of_another_shape(self, folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
        assert "its weights cannot be loaded" in refused(folder)

    @pytest.mark.parametrize("content", ["{", "[]"])
    def test_a_broken_tokenizer(self, folder, content):
        (folder / "tokenizer.json").write_text(content)
        assert "tokenizer" in refused(folder)

    def test_no_tokenizer(self, folder):
        for path in folder.glob("tokenizer*"):
            path.unlink()
        assert "tokenizer" in refused(folder)

    def test_no_end_token(self, folder):
        path = folder / "tokenizer_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({**config, "eos_token": None}))
        assert "no end token" in refused(folder)


def test_a_config_alone_can_be_read(tiny_folder):
    assert load_config(locate(str(tiny_folder))).model_type == "llama"
    assert load_tokenizer(str(tiny_folder)).eos_token == "<|im_end|>"


def test_the_bundled_tokenizer_is_the_one_that_transformers_chooses():
    ours, theirs = load_tokenizer("smollm2-135m"), AutoTokenizer.from_pretrained(locate("smollm2-135m"))
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("gpt2", {"n_embd": 16, "n_head": 4, "n_layer": 2, "n_positions": 128, "resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5}),
        ("opt", {"ffn_dim": 32, "word_embed_proj_dim": 16, "dropout": 0.5}),
        ("starcoder2", {"residual_dropout": 0.5, "embedding_dropout": 0.5}),
    ],
)  # fmt: skip
def test_a_models_own_dropout_is_off_in_every_form(build, random_rows, tmp_path, kind, fields):
    made = build(kind, **fields)
    made.model.save_pretrained(tmp_path)
    made.tokenizer.save_pretrained(tmp_path)
    loaded = load(str(tmp_path), "fp32")
    assert any(note.startswith("dropout") for note in loaded.notes)
    loaded.model.train()
    batch = Batch.of(random_rows(3))
    found = token_logps(loaded, batch)
    assert torch.equal(found, token_logps(loaded, batch))
    torch.testing.assert_close(found, padded_logps(loaded, batch), atol=1e-5, rtol=1e-5)

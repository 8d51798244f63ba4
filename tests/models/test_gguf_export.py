"""A model that is written as GGUF and read back, as a stranger's file, is the same model: weights, tokens, template."""

import copy

import gguf
import pytest
import torch
from tokenizers import Regex, normalizers, pre_tokenizers

from tunesmith.base import ModelError
from tunesmith.data.render import Renderer
from tunesmith.models import attention, gguf_export
from tunesmith.models.gguf import unpack
from tunesmith.models.gguf_export import SPLITS, _split, check, write
from tunesmith.models.load import load

FAMILIES = {
    "llama": {},
    "llama, apart": {"tie_word_embeddings": False, "attention_bias": False},
    "mistral": {"sliding_window": None},
    "qwen2": {"head_dim": 4},
    "qwen3": {"head_dim": 128},  # transformers' reader takes Qwen3's usual one for granted
}
TALK = [
    {"role": "system", "content": "Be kind to 1984."},
    {"role": "user", "content": "It's  late,\n\tisn't it? Ünï 😀"},
]


def logits(model) -> torch.Tensor:
    tokens = torch.tensor([[1, 5, 300, 4000, 2, 7]])
    with torch.no_grad(), attention.plain(model):
        return model(input_ids=tokens).logits.float()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_read_back_is_the_model(build, tmp_path, name):
    loaded = build(name.split(",")[0], seed=3, spread=0.2, **FAMILIES[name])
    write(loaded.model, loaded.tokenizer, tmp_path / "a.gguf", "f32")
    unpack(tmp_path / "a.gguf", tmp_path / "back")
    back = load(str(tmp_path / "back"), "fp32")
    torch.testing.assert_close(logits(back.model), logits(loaded.model), atol=1e-5, rtol=1e-5)
    own, theirs = Renderer(loaded.tokenizer), Renderer(back.tokenizer)
    assert own.prompt(TALK) == theirs.prompt(TALK)
    assert back.tokenizer.chat_template == loaded.tokenizer.chat_template
    assert back.tokenizer.eos_token_id == loaded.tokenizer.eos_token_id


def test_a_whole_vocabulary_is_read_back(build, smollm_tokenizer, tmp_path):
    loaded = build("llama", vocab_size=len(smollm_tokenizer))
    write(loaded.model, smollm_tokenizer, tmp_path / "a.gguf", "f32")
    unpack(tmp_path / "a.gguf", tmp_path / "back")
    back = load(str(tmp_path / "back"), "fp32").tokenizer
    assert back.get_vocab() == smollm_tokenizer.get_vocab()
    text = "It's  late,\n\tisn't it? Ünï 😀 in 1984"
    assert back(text).input_ids == smollm_tokenizer(text).input_ids


@pytest.mark.parametrize(("kind", "bits", "close"), [("f16", 16, 2e-3), ("bf16", 16, 2e-2), ("q8_0", 8.5, 5e-2)])
def test_lower_precisions_take_less_room_and_stay_close(build, tmp_path, kind, bits, close):
    loaded = build("llama", seed=3, spread=0.1, hidden_size=64, intermediate_size=96)
    write(loaded.model, loaded.tokenizer, tmp_path / "a.gguf", kind)
    matrices = [one for one in gguf.GGUFReader(tmp_path / "a.gguf").tensors if len(one.shape) > 1]
    assert {one.tensor_type.name for one in matrices} == {kind.upper()}
    assert sum(int(one.n_bytes) for one in matrices) == sum(int(one.n_elements) for one in matrices) * bits / 8
    unpack(tmp_path / "a.gguf", tmp_path / "back")
    apart = logits(load(str(tmp_path / "back"), "fp32").model) - logits(loaded.model)
    assert 0 < float(apart.square().mean().sqrt()) < close * float(logits(loaded.model).std())


def test_rows_that_blocks_do_not_divide_are_kept_in_f16(build, tmp_path):
    loaded = build("llama", hidden_size=48, intermediate_size=64)
    write(loaded.model, loaded.tokenizer, tmp_path / "a.gguf", "q8_0")
    types = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "a.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.0.ffn_up.weight"] == types["token_embd.weight"] == "F16"
    assert types["output_norm.weight"] == "F32"


def test_a_tokenizer_s_own_words_keep_their_kinds(build, tmp_path):
    loaded = build("llama")
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.add_tokens(["<thought>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|call|>"]})
    loaded.model.resize_token_embeddings(len(tokenizer) + 3)
    write(loaded.model, tokenizer, tmp_path / "a.gguf", "f32")
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    words, kinds = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    found = dict(zip(words, kinds, strict=True))
    assert (found["<thought>"], found["<|call|>"], found["<|im_end|>"], found["a"]) == (4, 3, 3, 1)
    assert words[-1] == f"[PAD{len(tokenizer) + 2}]"
    assert kinds[-3:] == [5, 5, 5]


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        ("llama", {"attention_bias": True}, "biases"),
        ("llama", {"hidden_act": "gelu"}, "activation is 'gelu'"),
        ("qwen2", {}, "heads of another size"),
        ("qwen3", {}, "heads of another size"),
        ("gpt2", {}, "only llama, mistral, qwen2, qwen3 can be written, and it is 'gpt2'"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "positions are scaled"),
        ("mistral", {"sliding_window": 8}, "a window of the text"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "a window of the text"),
    ],
)  # fmt: skip
def test_what_the_format_cannot_say_is_refused(build, tmp_path, kind, fields, said):
    loaded = build(kind, **fields)
    with pytest.raises(ModelError, match=f"cannot become a GGUF file: .*{said}"):
        write(loaded.model, loaded.tokenizer, tmp_path / "a.gguf", "f32")
    assert not list(tmp_path.iterdir())


def test_what_begins_a_prompt_and_ends_an_answer_is_told(build, tmp_path):
    loaded = build("llama")
    write(loaded.model, loaded.tokenizer, tmp_path / "a.gguf", "f32", begins=True, ends={7, 5})
    fields = gguf.GGUFReader(tmp_path / "a.gguf").fields
    told = [fields[f"tokenizer.ggml.{name}"].contents() for name in ("add_bos_token", "eot_token_id", "eom_token_id", "eos_token_id")]  # fmt: skip
    assert told == [True, 5, 7, loaded.tokenizer.eos_token_id]


def test_several_chat_templates_are_refused(build):
    loaded = build("llama")
    loaded.tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    with pytest.raises(ModelError, match="2 chat templates"):
        check(loaded.model.config, loaded.tokenizer, "x")


def test_positions_that_reading_would_lose_are_refused(build, tmp_path):
    loaded = build("llama")
    real = gguf_export._named
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf_export, "_named", lambda *given: [*real(*given), ("rope_freqs.weight", torch.ones(4))])
        write(loaded.model, loaded.tokenizer, tmp_path / "a.gguf", "f32")
    with pytest.raises(ModelError, match="positions are scaled"):
        unpack(tmp_path / "a.gguf", tmp_path / "back")


def test_how_text_is_split_is_told_by_the_tokenizer(build):
    loaded = build("llama")
    steps = {
        "ByteLevel": lambda told: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=told),
        "Digits": pre_tokenizers.Digits,
        "Split": lambda pattern: pre_tokenizers.Split(Regex(pattern), "isolated"),
    }
    backend = loaded.tokenizer.backend_tokenizer
    for (whole, normal, split), name in SPLITS.items():
        backend.pre_tokenizer = pre_tokenizers.Sequence([steps[kind](told) for kind, told in split])
        backend.model.ignore_merges = whole
        backend.normalizer = normalizers.NFC() if normal else None
        check(loaded.model.config, loaded.tokenizer, "x")
        assert _split(loaded.tokenizer) == name
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(ModelError, match="splits text in a way that has no name"):
        check(loaded.model.config, loaded.tokenizer, "x")
    backend.normalizer, backend.pre_tokenizer = None, pre_tokenizers.Whitespace()
    with pytest.raises(ModelError, match="splits text in a way that has no name"):
        check(loaded.model.config, loaded.tokenizer, "x")


def test_scaled_positions_that_reading_would_lose_are_refused(build, tmp_path, monkeypatch):
    loaded, real = build("llama"), gguf_export._describe

    def scaled(writer, *given):
        real(writer, *given)
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    monkeypatch.setattr(gguf_export, "_describe", scaled)
    write(loaded.model, loaded.tokenizer, tmp_path / "a.gguf", "f32")
    with pytest.raises(ModelError, match=r"positions are scaled \(linear\)"):
        unpack(tmp_path / "a.gguf", tmp_path / "back")


def test_biases_that_reading_would_lose_are_refused(build, tmp_path, monkeypatch):
    loaded, real = build("llama"), gguf_export._named
    monkeypatch.setattr(gguf_export, "_named", lambda *given: [*real(*given), ("blk.0.attn_q.bias", torch.ones(32))])
    write(loaded.model, loaded.tokenizer, tmp_path / "a.gguf", "f32")
    with pytest.raises(ModelError, match="holds 1 biases"):
        unpack(tmp_path / "a.gguf", tmp_path / "back")


@pytest.mark.parametrize(
    ("name", "whole", "told"), [("tekken", True, "pass merges by"), ("deepseek-llm", False, "is unknown")]
)
def test_how_text_is_split_is_read_back_or_doubted(build, tmp_path, monkeypatch, name, whole, told):
    loaded = build("llama")
    monkeypatch.setattr(
        gguf.GGUFWriter, "add_tokenizer_pre", lambda self, _: self.add_string("tokenizer.ggml.pre", name)
    )
    write(loaded.model, loaded.tokenizer, tmp_path / "a.gguf", "f32")
    notes = unpack(tmp_path / "a.gguf", tmp_path / "back")
    assert any(told in note for note in notes)
    backend = load(str(tmp_path / "back"), "fp32").tokenizer.backend_tokenizer
    assert backend.model.ignore_merges == whole

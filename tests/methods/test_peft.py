"""Every adapter whose files are peft's, both ways: logits of what the other wrote, and one step's gradients, in float32."""

from types import SimpleNamespace

import pytest
import torch
from beside_peft import COMMON, IDS, VOCABULARY, disturbed, logits
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.dora import DoRA
from tunesmith.methods.adapters.ia3 import IA3
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.adapters.prefix import Prefix
from tunesmith.methods.adapters.prompt import Prompt
from tunesmith.methods.merging.peft_file import rank_of
from tunesmith.methods.objectives.sft import SFT
from tunesmith.models.attention import plain
from tunesmith.models.forward import generic_logps, padded_logps, token_logps
from tunesmith.models.generate import Sampling, generate

PAIRS = {
    "lora": (LoRA(rank=4, alpha=6), LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, **COMMON)),
    "rslora": (
        LoRA(rank=4, alpha=6, scaling="root"),
        LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, use_rslora=True, **COMMON),
    ),
    "dora": (DoRA(rank=4, alpha=6), LoraConfig(r=4, lora_alpha=6, init_lora_weights=False, use_dora=True, **COMMON)),
    "ia3": (
        IA3(),
        IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
            init_ia3_weights=False,
            task_type="CAUSAL_LM",
        ),
    ),
}


@pytest.fixture(params=PAIRS)
def pair(request):
    return PAIRS[request.param]


@pytest.fixture(params=["llama", "qwen2"])
def fresh(request, build):
    return lambda: build(request.param, seed=3, vocab_size=VOCABULARY)


def test_peft_loads_what_we_write(fresh, pair, tmp_path):
    adapter, _ = pair
    loaded = disturbed(fresh(), adapter)
    adapter.save(loaded, tmp_path)
    theirs = PeftModel.from_pretrained(fresh().model, tmp_path)
    found, expected = logits(theirs), logits(loaded.model)
    assert not torch.allclose(expected, logits(fresh().model), atol=1e-2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_we_load_what_peft_writes(fresh, pair, tmp_path):
    adapter, config = pair
    torch.manual_seed(0)
    theirs = get_peft_model(fresh().model, config)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "magnitude" in name or "ia3" in name:
                parameter += 0.3 * torch.rand(parameter.shape)
    theirs.save_pretrained(tmp_path)
    loaded = fresh()
    adapter.restore(loaded, tmp_path)
    torch.testing.assert_close(logits(loaded.model), logits(theirs), atol=1e-5, rtol=1e-5)


def test_gradients_are_peft_s(fresh, pair, random_rows, tmp_path):
    """Ours on the forest, theirs row by row."""
    adapter, _ = pair
    loaded = disturbed(fresh(), adapter)
    adapter.save(loaded, tmp_path)
    rows = random_rows(4)
    SFT()(loaded, Batch.of(rows)).total.backward()
    theirs = PeftModel.from_pretrained(fresh().model, tmp_path, is_trainable=True)
    with plain(theirs.base_model.model):
        for row in rows:
            tokens, learn = torch.tensor(row.sequences[0].tokens).long(), torch.tensor(row.sequences[0].learn)
            labels = tokens.masked_fill(~learn, -100)
            out = theirs(input_ids=tokens[None], use_cache=False).logits[0]
            torch.nn.functional.cross_entropy(out[:-1], labels[1:], reduction="sum").backward()
    expected = {
        name.removeprefix("base_model.model."): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.requires_grad
    }
    ours = trainable(loaded.model)
    assert len(ours) == len(expected) > 0
    for name, parameter in ours.items():
        same = {
            name,
            f"{name}.default",
            f"{name}.default.weight",
            name.replace("magnitude", "lora_magnitude_vector.default.weight"),
        }
        (gradient,) = (expected[other] for other in same if other in expected)
        assert (parameter.grad - gradient.view_as(parameter)).norm() <= 1e-5 * gradient.norm(), name


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"alpha_pattern": {"q_proj": 60}}, "alpha_pattern is"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    ],
)
def test_what_peft_would_compute_otherwise_is_refused(build, tmp_path, settings, said):
    """Not read as an ordinary adapter, whose answers would be others."""
    fresh = lambda: build("llama", seed=3, vocab_size=VOCABULARY)  # noqa: E731
    torch.manual_seed(0)
    theirs = get_peft_model(
        fresh().model, LoraConfig(**{"r": 4, "lora_alpha": 6, "init_lora_weights": False, **COMMON, **settings})
    )
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=said):
        LoRA(rank=4, alpha=6).restore(fresh(), tmp_path)
    assert rank_of(tmp_path) is None


@pytest.mark.parametrize("adapter", [Prompt(tokens=5), Prefix(tokens=5)], ids=lambda adapter: adapter.kind)
class TestPrompts:
    @pytest.fixture
    def theirs(self, fresh, adapter, tmp_path):
        loaded = disturbed(fresh(), adapter)
        adapter.save(loaded, tmp_path)
        return loaded, PeftModel.from_pretrained(fresh().model, tmp_path)

    def test_peft_loads_what_we_write_and_has_our_gradient(self, theirs, adapter, random_rows):
        loaded, theirs = theirs
        before = 5 if adapter.kind == "prompt" else 0  # peft's prefix has no logits
        theirs.prompt_encoder.requires_grad_(True)
        rows, total = random_rows(4), 0.0
        loss = SFT()(loaded, Batch.of(rows)).total
        loss.backward()
        with plain(theirs.base_model):
            for row in rows:
                tokens, learn = torch.tensor(row.sequences[0].tokens).long(), torch.tensor(row.sequences[0].learn)
                out = theirs(input_ids=tokens[None], use_cache=False).logits[0, before:]
                labels = tokens.masked_fill(~learn, -100)
                one = torch.nn.functional.cross_entropy(out[:-1], labels[1:], reduction="sum")
                one.backward()
                total += float(one.detach())
        assert float(loss.detach()) == pytest.approx(total, rel=1e-5)
        (ours,), (gradient,) = (
            [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
            for model in (loaded.model, theirs)
        )
        assert (ours - gradient).norm() <= 1e-5 * gradient.norm()

    def test_every_way_agrees_and_answers_follow_it(self, theirs, adapter, random_rows):
        loaded, theirs = theirs
        batch = Batch.of(random_rows(4))
        expected = padded_logps(loaded, batch)
        assert (loaded.decoder() is not None) == (adapter.kind == "prompt")
        torch.testing.assert_close(token_logps(loaded, batch), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(generic_logps(loaded, batch), expected, atol=1e-5, rtol=1e-5)
        prompts = [[5, 6, 7], [5, 6, 8, 9]]
        answers = [answer.tokens for answer in generate(loaded, prompts, Sampling(max_tokens=6))]
        for prompt, answer in zip(prompts, answers, strict=True):
            tokens = list(prompt)
            with torch.no_grad(), plain(theirs.base_model):
                for token in answer:
                    assert (
                        int(theirs(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].argmax()) == token
                    )
                    tokens.append(token)

    def test_layers_computed_again_have_the_same_gradient(self, theirs, random_rows):
        loaded, found = theirs[0], []
        loaded.model.train()
        for loaded.checkpointing in (False, True):
            loaded.model.zero_grad()
            SFT()(loaded, Batch.of(random_rows(4))).total.backward()
            found.append(loaded.model.get_input_embeddings().prompt.grad.clone())
        torch.testing.assert_close(*found, atol=0, rtol=1e-6)

    def test_one_after_the_other_answers_are_the_same(self, theirs, adapter):
        loaded, prompts = theirs[0], [[5, 6, 7], [5, 6, 8, 9]]
        expected = [answer.tokens for answer in generate(loaded, prompts, Sampling(max_tokens=6))]
        loaded.forest = False
        with plain(loaded.model):
            assert [answer.tokens for answer in generate(loaded, prompts, Sampling(max_tokens=6))] == expected


class TestStarts:
    def test_it_starts_as_words_that_are_given(self, fresh):
        loaded = fresh()
        expected = loaded.model.get_input_embeddings().weight[[5, 6, 5]].detach()
        loaded.tokenizer = lambda text, add_special_tokens: SimpleNamespace(input_ids=[5, 6])
        Prompt(tokens=3, text="two words").attach(loaded, 0)
        assert torch.equal(loaded.model.get_input_embeddings().prompt.detach(), expected)

    def test_a_prefix_starts_as_what_the_model_computes_of_them(self, fresh):
        """With the words before every sequence, the base says the same."""
        loaded = fresh()
        with torch.no_grad(), plain(loaded.model):
            words = torch.tensor([[5, 6, 5]]).expand(len(IDS), -1)
            expected = loaded.model(input_ids=torch.cat([words, IDS], 1), use_cache=False).logits[:, 3:]
        loaded.tokenizer = lambda text, add_special_tokens: SimpleNamespace(input_ids=[5, 6])
        Prefix(tokens=3, text="two words").attach(loaded, 0)
        with torch.no_grad(), plain(loaded.model):
            before = torch.tensor([loaded.prefix]).expand(len(IDS), -1)
            found = loaded.model(input_ids=torch.cat([before, IDS], 1), use_cache=False).logits[:, 3:]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_a_prompt_that_peft_wrote_is_read(self, fresh, tmp_path):
        torch.manual_seed(0)
        theirs = get_peft_model(fresh().model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5))
        theirs.save_pretrained(tmp_path)
        loaded = fresh()
        Prompt(tokens=5).restore(loaded, tmp_path)
        with torch.no_grad(), plain(theirs.base_model):
            expected = theirs(input_ids=IDS, use_cache=False).logits[:, 5:]
        with torch.no_grad(), plain(loaded.model):
            before = torch.tensor([loaded.prefix]).expand(len(IDS), -1)
            found = loaded.model(input_ids=torch.cat([before, IDS], 1), use_cache=False).logits[:, 5:]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_a_prefix_that_peft_wrote_is_read(self, fresh, random_rows, tmp_path):
        torch.manual_seed(0)
        sizes = {"token_dim": 32, "num_attention_heads": 4, "num_layers": 2}
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5, **sizes)
        theirs = get_peft_model(fresh().model, config)
        theirs.save_pretrained(tmp_path)
        loaded = fresh()
        Prefix(tokens=5).restore(loaded, tmp_path)
        with torch.no_grad(), plain(theirs.base_model):
            expected = theirs(input_ids=IDS, use_cache=False).logits
        with torch.no_grad(), plain(loaded.model):
            before = torch.tensor([loaded.prefix]).expand(len(IDS), -1)
            found = loaded.model(input_ids=torch.cat([before, IDS], 1), use_cache=False).logits[:, 5:]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

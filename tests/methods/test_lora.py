import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from tunesmith.base import ModelError
from tunesmith.data.batch import Batch
from tunesmith.kernels.lora_linear import LoRALinear
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.attention import plain
from tunesmith.models.forward import token_logps
from tunesmith.training.loop import train

VOCABULARY = 97
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(3, 27).view(3, 8)


@pytest.fixture
def fresh(build):
    return lambda kind="llama", **fields: build(kind, seed=3, vocab_size=VOCABULARY, **fields)


def logits(loaded):
    with torch.no_grad(), plain(loaded.model):
        return loaded.model(input_ids=IDS, use_cache=False).logits


def set_up(loaded, adapter):
    """Attach, with corrections that are not zero."""
    adapter.attach(loaded, 1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in trainable(loaded.model).items():
            if name.endswith("lora_B"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return loaded


@pytest.mark.parametrize(("kind", "fields"), [("gpt_neox", {"attention_bias": True})])
class TestPeft:
    """Beside `test_peft.py`, on a model that has no fused form and whose projections are one layer with biases."""

    def test_loads_what_we_write(self, fresh, tmp_path, kind, fields):
        loaded = set_up(fresh(kind, **fields), LoRA(rank=4, alpha=6))
        LoRA(rank=4, alpha=6).save(loaded, tmp_path)
        theirs = PeftModel.from_pretrained(fresh(kind, **fields).model, tmp_path)
        with torch.no_grad(), plain(theirs.base_model.model):
            found = theirs(input_ids=IDS, use_cache=False).logits
        torch.testing.assert_close(found, logits(loaded), atol=1e-5, rtol=1e-5)

    def test_writes_what_we_load(self, fresh, tmp_path, kind, fields):
        config = LoraConfig(
            r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
        )
        torch.manual_seed(0)
        theirs = get_peft_model(fresh(kind, **fields).model, config)
        theirs.save_pretrained(tmp_path)
        with torch.no_grad(), plain(theirs.base_model.model):
            expected = theirs(input_ids=IDS, use_cache=False).logits
        loaded = fresh(kind, **fields)
        assert not torch.allclose(logits(loaded), expected, atol=1e-2)
        LoRA(rank=4, alpha=6).restore(loaded, tmp_path)
        torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=1e-5)


def test_the_config_beside_the_weights_is_peft_s(fresh, tmp_path):
    adapter = LoRA(rank=2, alpha=3, targets=("q_proj", "v_proj"))
    loaded = fresh()
    adapter.attach(loaded, 0)
    adapter.save(loaded, tmp_path)
    config = LoraConfig.from_pretrained(tmp_path)
    assert (config.r, config.lora_alpha, config.target_modules) == (2, 3, {"q_proj", "v_proj"})
    assert sum(isinstance(layer, LoRALinear) for layer in loaded.model.modules()) == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lora_alpha": 16}, "lora_alpha"),
        ({"use_rslora": True}, "use_rslora"),
        ({"use_dora": True}, "."),
        ({"r": 8}, "rank"),
        ({"target_modules": ["q_proj"]}, "targets"),
    ],
)
def test_an_adapter_of_another_shape_or_scale_is_refused(fresh, tmp_path, config, message):
    """A scale read wrong would go unnoticed: the model answers, only worse."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": LINEAR, "task_type": "CAUSAL_LM", **config}
    get_peft_model(fresh().model, LoraConfig(**settings)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message) as caught:
        LoRA(rank=4, alpha=6).restore(fresh(), tmp_path)
    assert "\n" not in str(caught.value)


def test_targets_that_do_not_exist_are_refused_with_those_that_do(fresh):
    with pytest.raises(
        ModelError, match=r"adapter\.targets: no layer is called .*'nope'.*down_proj, gate_proj.*"
    ) as caught:
        LoRA(targets=("nope",)).attach(fresh(), 0)
    assert "lm_head" not in str(caught.value)


def test_one_misspelt_target_among_good_ones_is_refused(fresh):
    with pytest.raises(ModelError, match="'v_prj'"):
        LoRA(targets=("q_proj", "v_prj")).attach(fresh(), 0)


def test_an_architecture_without_linear_layers_is_refused(build):
    loaded = build("gpt2", vocab_size=VOCABULARY, n_embd=16, n_head=4, n_layer=2, n_positions=128)
    with pytest.raises(ModelError, match=r"no nn\.Linear layers"):
        LoRA().attach(loaded, 0)


def test_the_head_is_never_adapted(fresh):
    loaded = fresh()
    LoRA().attach(loaded, 0)
    assert type(loaded.model.lm_head) is torch.nn.Linear


def test_the_base_is_kept_once(fresh, random_rows):
    """The fused product's weight is the base weights' own memory, until it is released."""
    loaded = fresh()
    before = {name: w.clone() for name, w in loaded.model.state_dict().items()}
    LoRA().attach(loaded, 0)
    token_logps(loaded, Batch.of(random_rows(2)))
    layer, group = loaded.model.model.layers[0].mlp, loaded.decoder().blocks[0].gate_up
    assert layer.gate_proj.base.weight.data_ptr() == group.weight_OJ.data_ptr()
    loaded.release()
    assert layer.gate_proj.base.weight.data_ptr() != group.weight_OJ.data_ptr()
    assert torch.equal(layer.up_proj.base.weight, before["model.layers.0.mlp.up_proj.weight"])


class TestDropout:
    def test_is_off_when_evaluating_and_drops_the_corrections_input_when_training(self, fresh):
        adapter = LoRA(rank=4, dropout=0.5)
        loaded = set_up(fresh(), adapter)
        steady = logits(loaded)
        assert torch.equal(logits(loaded), steady)
        loaded.model.train()
        torch.manual_seed(0)
        first, second = logits(loaded), logits(loaded)
        assert not torch.allclose(first, second)
        torch.manual_seed(0)
        assert torch.equal(logits(loaded), first)
        with adapter.disabled(loaded):
            assert torch.equal(logits(loaded), logits(fresh()))

    def test_keeps_the_mean(self, build):
        base = torch.nn.Linear(8, 3)
        layer = LoRALinear(base, 4, 2.0, 0.5, torch.Generator().manual_seed(0))
        torch.nn.init.normal_(layer.lora_B, generator=torch.Generator().manual_seed(1))
        x = torch.ones(20000, 8)
        layer.eval()
        expected = layer(x)[0]
        layer.train()
        torch.manual_seed(0)
        torch.testing.assert_close(layer(x).mean(0), expected, atol=0.05, rtol=0)


def test_two_passes_may_come_before_the_backward_one(fresh, random_rows):
    """As an objective needs that compares the model with itself, or with its base."""
    batch = Batch.of(random_rows(3))
    adapter = LoRA(rank=4)
    loaded = set_up(fresh(), adapter)
    once = token_logps(loaded, batch).sum()
    once.backward()
    single = {name: p.grad.clone() for name, p in trainable(loaded.model).items()}
    loaded.model.zero_grad()
    first = token_logps(loaded, batch).sum()
    with adapter.disabled(loaded):
        base = token_logps(loaded, batch).sum()
    (first + token_logps(loaded, batch).sum() - base).backward()
    for name, parameter in trainable(loaded.model).items():
        torch.testing.assert_close(parameter.grad, 2 * single[name], rtol=1e-4, atol=1e-5)


def test_a_fused_optimizer_is_noticed(fresh, random_rows):
    """The correction in the joint weight is that of the last step, though fused steps leave no trace on a tensor."""
    batch = Batch.of(random_rows(3))
    loaded = fresh()
    LoRA(rank=4).attach(loaded, 0)
    list(
        train(
            loaded,
            SFT(),
            [[batch]] * 2,
            AdamW(learning_rate=1e-2).build(trainable(loaded.model)),
            lambda _: 1.0,
            seed=0,
        )
    )
    loaded.model.eval()
    before = logits(loaded)
    LoRA(rank=4).merge(loaded)
    torch.testing.assert_close(logits(loaded), before, atol=1e-5, rtol=1e-5)


def test_in_bf16_the_first_updates_are_not_lost(fresh, random_rows):
    """Five steps at a rate at which a correction rounded on its own disappears: bf16 follows fp32."""
    batch = Batch.of(random_rows(6))
    losses = {}
    for dtype in (torch.float32, torch.bfloat16):
        loaded = fresh(dtype=dtype, hidden_size=64, intermediate_size=128)
        LoRA(rank=8).attach(loaded, 0)
        optimizer = AdamW(learning_rate=2e-4).build(trainable(loaded.model))
        steps = train(loaded, SFT(), [[batch]] * 6, optimizer, lambda _: 1.0, seed=0)
        losses[dtype] = [step.loss for step in steps]
    exact, rounded = losses[torch.float32], losses[torch.bfloat16]
    assert exact[5] < exact[0] - 1e-3
    assert rounded[0] - rounded[5] == pytest.approx(exact[0] - exact[5], rel=0.1)


def test_what_is_saved_is_what_peft_names(fresh, tmp_path):
    from safetensors.torch import load_file

    loaded = fresh()
    LoRA(rank=2).attach(loaded, 0)
    LoRA(rank=2).save(loaded, tmp_path)
    names = set(load_file(tmp_path / "adapter_model.safetensors"))
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight" in names
    assert len(names) == 2 * 7 * 2
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "LORA"

"""LoRA that starts from the principal part of each weight (PiSSA): the start, gradients and files of peft."""

import torch
from beside_peft import COMMON, VOCABULARY, disturbed, logits
from peft import LoraConfig, PeftModel, get_peft_model

from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.sft import SFT
from tunesmith.models.attention import plain


class TestPrincipalStart:
    adapter = LoRA(rank=4, alpha=6, start="principal")

    def test_it_is_the_start_of_peft(self, build):
        """Scaled product and what is left of the weight; the factors' signs are nobody's."""
        ours, theirs = (build("llama", seed=3, vocab_size=VOCABULARY) for _ in range(2))
        self.adapter.attach(ours, 0)
        get_peft_model(theirs.model, LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa", **COMMON))
        layers = {path: layer for path, layer in theirs.model.named_modules() if hasattr(layer, "get_delta_weight")}
        assert layers
        for path, layer in layers.items():
            mine, part = ours.model.get_submodule(path), layer.get_delta_weight("default")
            found = (mine.scale * mine.lora_B @ mine.lora_A).detach()
            assert (found - part).norm() <= 1e-3 * part.norm(), path

    def test_its_gradients_are_those_of_peft_s_layers_around_what_is_left_of_the_weights(self, build, random_rows):
        fresh, rows = (lambda: build("llama", seed=3, vocab_size=VOCABULARY)), random_rows(3)
        ours = fresh()
        self.adapter.attach(ours, 0)
        theirs = get_peft_model(fresh().model, LoraConfig(r=4, lora_alpha=6, **COMMON))
        layers = {
            path: layer for path, layer in theirs.base_model.model.named_modules() if hasattr(layer, "get_delta_weight")
        }
        with torch.no_grad():
            for path, layer in layers.items():
                mine = ours.model.get_submodule(path)
                layer.lora_A["default"].weight.copy_(mine.lora_A)
                layer.lora_B["default"].weight.copy_(mine.lora_B)
                layer.base_layer.weight -= mine.scale * mine.lora_B @ mine.lora_A
        SFT()(ours, Batch.of(rows)).total.backward()
        with plain(theirs.base_model.model):
            for row in rows:
                tokens, learn = torch.tensor(row.sequences[0].tokens).long(), torch.tensor(row.sequences[0].learn)
                out = theirs(input_ids=tokens[None], use_cache=False).logits[0]
                labels = tokens.masked_fill(~learn, -100)
                torch.nn.functional.cross_entropy(out[:-1], labels[1:], reduction="sum").backward()
        assert layers
        for path, layer in layers.items():
            mine = ours.model.get_submodule(path)
            for name in ("lora_A", "lora_B"):
                expected = getattr(layer, name)["default"].weight.grad
                assert (getattr(mine, name).grad - expected).norm() <= 1e-5 * expected.norm(), (path, name)

    def test_corrections_begin_with_the_largest_singular_values_and_change_nothing(self, build):
        loaded = build("llama", seed=3, vocab_size=VOCABULARY)
        before = logits(loaded.model)
        weight = loaded.model.model.layers[0].mlp.down_proj.weight.clone()
        self.adapter.attach(loaded, 0)
        layer = loaded.model.model.layers[0].mlp.down_proj
        left, values, right = torch.linalg.svd(weight)
        part = left[:, :4] @ torch.diag(values[:4]) @ right[:4]
        found = (layer.scale * layer.lora_B @ layer.lora_A).detach()
        assert (found - part).norm() <= 1e-3 * part.norm()
        torch.testing.assert_close(logits(loaded.model), before, atol=1e-5, rtol=1e-5)
        with self.adapter.disabled(loaded):
            assert torch.equal(logits(loaded.model), before)

    def test_what_it_learnt_is_an_ordinary_adapter_of_twice_the_rank(self, build, tmp_path):
        fresh = lambda: build("llama", seed=3, vocab_size=VOCABULARY)  # noqa: E731
        loaded = disturbed(fresh(), self.adapter)
        self.adapter.save(loaded, tmp_path)
        assert LoraConfig.from_pretrained(tmp_path).r == 8
        torch.testing.assert_close(
            logits(PeftModel.from_pretrained(fresh().model, tmp_path)), logits(loaded.model), atol=1e-5, rtol=1e-5
        )
        again = fresh()
        self.adapter.restore(again, tmp_path)
        torch.testing.assert_close(logits(again.model), logits(loaded.model), atol=1e-5, rtol=1e-5)

    def test_the_fused_and_the_generic_way_agree(self, build, random_rows):
        batch, found = Batch.of(random_rows(4)), []
        for fuse in (True, False):
            loaded = disturbed(build("llama", seed=3, vocab_size=VOCABULARY), self.adapter)
            loaded.fuse = fuse
            assert (loaded.decoder() is not None) == fuse
            SFT()(loaded, batch).total.backward()
            found.append({name: weight.grad for name, weight in trainable(loaded.model).items()})
        for name, gradient in found[0].items():
            assert (gradient - found[1][name]).norm() <= 1e-5 * gradient.norm(), name

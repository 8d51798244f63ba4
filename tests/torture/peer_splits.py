"""R9 on the peer, `peer_splits.py FOLDER`: the gradient of each step of its SFTTrainer, however the step is split, against float64 for all rows of it at once."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

SPLITS = {"8x1": 1, "4x2": 2, "2x4": 4, "1x8": 8}
"""Forward and backward passes of a step, by rows of one pass; the second step of thirteen rows has five."""
ADAPTERS = {
    "full": None, "lora": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"),
}  # fmt: skip
Learnt = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens of a row, and its labels, as the peer's own collator made them."""


class Watched(SFTTrainer):
    """Keeps what each pass learns from and its part of the loss."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        kept = [inputs[name].clone() for name in ("input_ids", "labels", "attention_mask")]
        loss = super().training_step(model, inputs, num_items_in_batch)
        for ids, labels, mask in zip(*kept, strict=True):
            self.learnt.append(tuple(tuple(one[mask.bool()].tolist()) for one in (ids, labels)))
        self.said += float(loss)
        return loss


class Catch(TrainerCallback):
    """Keeps the gradient that a step is taken with, and what its passes were."""

    def __init__(self, trainer: Watched) -> None:
        self.trainer, self.steps = trainer, list[tuple[list[Learnt], float, dict[str, torch.Tensor]]]()
        trainer.learnt, trainer.said = [], 0.0

    def on_pre_optimizer_step(self, args, state, control, **named) -> None:
        learning = {name: one for name, one in self.trainer.model.named_parameters() if one.requires_grad}
        found = {name: one.grad.clone() for name, one in learning.items()}
        self.steps.append((self.trainer.learnt, self.trainer.said, found))
        self.trainer.learnt, self.trainer.said = [], 0.0


def trained(folder: Path, model: Path, adapter: str, split: str) -> tuple[Any, Catch]:
    """One epoch at a learning rate of 0 and without clipping, so that each step shows the gradient of the same weights."""
    settings = SFTConfig(
        output_dir=str(folder / "run"), num_train_epochs=1, per_device_train_batch_size=8 // SPLITS[split],
        gradient_accumulation_steps=SPLITS[split], optim="sgd", learning_rate=0.0, max_grad_norm=0.0,
        completion_only_loss=True, save_strategy="no", report_to=[], use_cpu=True, bf16=False, seed=0, disable_tqdm=True,
    )  # fmt: skip
    rows = load_dataset("json", data_files=str(folder / "rows.jsonl"), cache_dir=str(folder / "cache"), split="train")
    trainer = Watched(
        model=str(model), args=settings, train_dataset=rows, peft_config=ADAPTERS[adapter],
        processing_class=AutoTokenizer.from_pretrained(folder / "tokenizer"),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():  # away from zero, where nothing of the other factor would show
        for name, one in trainer.model.named_parameters():
            if "lora_B" in name:
                one.copy_(0.02 * torch.randn(one.shape, generator=generator))
    caught = Catch(trainer)
    trainer.add_callback(caught)
    trainer.train()
    return trainer.model, caught


def reference(weights: Any, model: Path, adapter: str, rows: list[Learnt]) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean loss of all learnt tokens and its gradients in float64: sequences padded on the right, transformers' own layers and attention."""
    whole = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager")
    whole = get_peft_model(whole, ADAPTERS[adapter]) if ADAPTERS[adapter] else whole
    whole.load_state_dict(weights.state_dict())
    whole.double()
    width = max(len(ids) for ids, _ in rows)
    ids_BT, labels_BT = torch.zeros(len(rows), width, dtype=torch.int64), torch.full((len(rows), width), -100)
    for place, (ids, labels) in enumerate(rows):
        ids_BT[place, : len(ids)], labels_BT[place, : len(ids)] = torch.tensor(ids), torch.tensor(labels)
    mask_BT = torch.arange(width) < torch.tensor([len(ids) for ids, _ in rows])[:, None]
    logits_BTV = whole(input_ids=ids_BT, attention_mask=mask_BT.long(), use_cache=False).logits
    assert logits_BTV.dtype == torch.float64
    logp_BT = logits_BTV[:, :-1].log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
    loss = -logp_BT[labels_BT[:, 1:] != -100].mean()
    loss.backward()
    return float(loss.detach()), {name: one.grad for name, one in whole.named_parameters() if one.grad is not None}


def apart(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Length of the difference of two gradients, relative to the second's."""
    assert set(found) == set(wanted)
    off, whole = (
        torch.cat([one.flatten() for one in each]).norm()
        for each in ([found[name].double() - wanted[name] for name in wanted], list(wanted.values()))
    )
    return float(off / whole)


def main() -> None:
    """Try every model of a folder; what came of each step is written beside them."""
    folder, came = Path(sys.argv[1]), []
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    for model, adapter, split in itertools.product(sorted((folder / "models").iterdir()), ADAPTERS, SPLITS):
        weights, caught = trained(folder, model, adapter, split)
        for number, (rows, said, found) in enumerate(caught.steps):
            loss, wanted = reference(weights, model, adapter, rows)
            came.append(
                {
                    "model": model.name, "adapter": adapter, "split": split, "step": number, "rows": sorted(rows),
                    "error": apart(found, wanted), "off": abs(said - loss) / loss,
                }
            )  # fmt: skip
    (folder / "came.json").write_text(json.dumps(came))


if __name__ == "__main__":
    main()

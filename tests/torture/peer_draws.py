"""The peer's training with a collator that draws random numbers, killed after a step: `peer_draws.py WAY CUT FOLDER ...`; 0 lets it end."""

import os
import signal
import sys

import peer
import torch
from transformers import TrainerCallback
from trl import SFTTrainer


class Kill(TrainerCallback):
    """kill -9 after a step, when what the step left has been saved."""

    def __init__(self, cut: int) -> None:
        self.cut = cut

    def on_step_begin(self, args, state, control, **named) -> None:
        if self.cut and state.global_step == self.cut:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train as `peer.py` does; with `collator` a tenth of the tokens are not learnt, others each time."""
    way, cut = sys.argv[1], int(sys.argv[2])
    del sys.argv[1:3]
    begin = SFTTrainer.__init__

    def drawing(self, *given, **named):
        begin(self, *given, **named)
        self.add_callback(Kill(cut))
        collate = self.data_collator

        def masked(rows):
            batch = collate(rows)
            batch["labels"] = batch["labels"].masked_fill(torch.rand(batch["labels"].shape) < 0.1, -100)
            return batch

        self.data_collator = masked if way == "collator" else collate

    SFTTrainer.__init__ = drawing
    peer.main()


if __name__ == "__main__":
    main()

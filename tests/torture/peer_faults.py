"""The faults of `faults.py` in the peer's training: `peer_faults.py PLACE VALUE STEP FIRED FOLDER ...`, by wrapping how its trainer computes the loss."""

import sys
from pathlib import Path

import peer
import torch
from trl import SFTTrainer


def main() -> None:
    """Train as `peer.py` does, with one number spoilt at one step."""
    place, value, at, fired = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    del sys.argv[1:5]
    compute = SFTTrainer.compute_loss

    def faulty(self, model, *given, **named):
        learning = next(one for one in model.parameters() if one.requires_grad)
        if self.state.global_step != at or not model.training:
            return compute(self, model, *given, **named)
        fired.write_text("1")
        with torch.no_grad():
            if place == "weight":
                learning.view(-1)[0] = value
            if place == "state":
                self.optimizer.state[learning]["exp_avg"].view(-1)[0] = value
        handle = learning.register_hook(lambda one: one * value) if place == "gradient" else None
        loss = compute(self, model, *given, **named)
        if handle is not None:
            self.spoilt = handle
        if place != "loss":
            return loss
        return (loss[0] * value, *loss[1:]) if isinstance(loss, tuple) else loss * value

    step = SFTTrainer.training_step

    def once(self, *given, **named):
        loss = step(self, *given, **named)
        if getattr(self, "spoilt", None) is not None:
            self.spoilt.remove()
            self.spoilt = None
        return loss

    SFTTrainer.compute_loss, SFTTrainer.training_step = faulty, once
    peer.main()


if __name__ == "__main__":
    main()

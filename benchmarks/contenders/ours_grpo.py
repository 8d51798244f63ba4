"""tunesmith's side of the GRPO benchmark: `python ours_grpo.py --model FOLDER`; sampling counts as part of each step."""

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402  the clock starts before anything is imported

from rows import ALPHA, ANSWER, LEARNING_RATE, RANK, SAMPLES, SEED, messages, report  # noqa: E402

from tunesmith.data.example import Example  # noqa: E402
from tunesmith.data.render import Renderer  # noqa: E402
from tunesmith.grading.chrf import Chrf  # noqa: E402
from tunesmith.methods.adapters import trainable  # noqa: E402
from tunesmith.methods.adapters.lora import LoRA  # noqa: E402
from tunesmith.methods.objectives.grpo import GRPO  # noqa: E402
from tunesmith.methods.optimizers.adamw import AdamW  # noqa: E402
from tunesmith.models.load import load  # noqa: E402
from tunesmith.training.loop import train  # noqa: E402
from tunesmith.training.rollouts import OnPolicy, Reward, Rollouts  # noqa: E402


def main() -> None:
    """Train and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--model", default="smollm2-135m")
    given = parser.parse_args()
    loaded = load(given.model, "bf16")
    renderer = Renderer(loaded.tokenizer)
    examples = [
        Example(f"train:{number}", tuple(talk[:-1]), ((talk[-1],),))
        for number, talk in enumerate(messages()[: given.steps])
    ]
    LoRA(rank=RANK, alpha=ALPHA).attach(loaded, SEED)
    optimizer = AdamW(learning_rate=LEARNING_RATE, weight_decay=0.0).build(trainable(loaded.model))
    spec = Rollouts(rewards=(Reward(grader=Chrf()),), samples=SAMPLES, max_tokens=ANSWER)
    data = OnPolicy(renderer.rows(examples), 1, 1, 1, SEED, spec=spec, loaded=loaded, examples=examples)
    steps, losses, rewards, first = [], [], [], 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    for step in train(loaded, GRPO(), data.from_step(0), optimizer, lambda _: 1.0, seed=SEED):
        now, used = time.perf_counter(), time.process_time()
        first = first or now
        sampling = data.facts["sampling_seconds"]
        steps.append({"tokens": step.tokens, "seconds": now - wall, "cpu": used - cpu, "sampling": sampling})
        losses.append(step.loss)
        rewards.append(data.facts["reward"])
        wall, cpu = now, used
    report(steps, STARTED, first, losses, rewards=rewards)


if __name__ == "__main__":
    main()

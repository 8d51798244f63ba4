"""tunesmith's side of the generation benchmark: `python ours_generate.py --model FOLDER --batch 16`."""

import argparse

from rows import answered, messages, report_generation

from tunesmith.data.render import Renderer
from tunesmith.models.generate import Sampling, stream
from tunesmith.models.load import load


def main() -> None:
    """Answer and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--precision", default="bf16")
    given = parser.parse_args()
    loaded = load(given.model, given.precision)
    renderer = Renderer(loaded.tokenizer)
    prompts = [renderer.prompt(talk[:-1]) for talk in messages()[: given.batch]]

    def once(most: int) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        for piece in stream(loaded, prompts, [Sampling(max_tokens=most)] * len(prompts)):
            answers[piece.index].append(piece.token)
        return answers

    report_generation(*answered(once), sum(map(len, prompts)))


if __name__ == "__main__":
    main()

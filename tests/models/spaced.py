"""Tokenizers that come from SentencePiece, which begin texts with a space."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPACED = {
    "first": (pre_tokenizers.Metaspace(prepend_scheme="first", split=False), None),
    "always": (pre_tokenizers.Metaspace(prepend_scheme="always", split=False), None),
    "legacy": (None, normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])),
}
"""How tokenizers that come from SentencePiece put a space before a text."""


def sentencepiece(kind: str, template: str) -> PreTrainedTokenizerFast:
    """A tokenizer of single letters and a few words of that kind."""
    pre, normal = SPACED[kind]
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *dict.fromkeys("▁\n<|>/abcdefghijklmnopqrstuvwxyzYN?!0123456789 "),
        "▁y",
        "▁Y",
        "Ye",
        "▁Ye",
        "es",
        "hi",
        "▁hi",
    ]
    merges = [("▁", "y"), ("▁", "Y"), ("Y", "e"), ("▁", "Ye"), ("e", "s"), ("h", "i"), ("▁", "hi")]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges, unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    if pre is not None:
        backend.pre_tokenizer = pre
    if normal is not None:
        backend.normalizer = normal
    found = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    found.chat_template = template
    return found

"""Single tokens as they are told to clients: their text and their bytes."""

import re
from functools import cached_property

from tunesmith.data.render import Renderer
from tunesmith.models.sampling import BROKEN

PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1))
HIDDEN = [byte for byte in range(256) if byte not in PRINTABLE]
BYTES = {chr(byte): byte for byte in PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(HIDDEN)}
"""How byte-level tokenizers spell bytes (Radford et al., 2019: GPT-2)."""
BYTE = re.compile("<0x([0-9A-F]{2})>")
"""How tokenizers that come from SentencePiece spell a byte of what is not in their vocabulary."""


class Spelling:
    """A tokenizer's tokens one by one."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer

    @cached_property
    def _anchor(self) -> list[int]:
        """A token behind which others are read: a decoder may take a space from what a text begins with. Looked up, as another thread may be encoding."""
        found = self.renderer.tokenizer.convert_tokens_to_ids("a")
        return [] if found is None else [found]

    def text(self, token: int) -> str:
        """A token within a text; a part of a character has no text of its own and shows as U+FFFD."""
        return self._decoded([*self._anchor, token])[len(self._decoded(self._anchor)) :]

    def bytes(self, token: int) -> list[int] | None:
        """The bytes that a token stands for; None where a part of a character does not tell them."""
        text = self.text(token)
        if BROKEN not in text:
            return list(text.encode())
        piece: str = self.renderer.tokenizer.convert_ids_to_tokens(token)
        if found := BYTE.fullmatch(piece):
            return [int(found[1], 16)]
        return [BYTES[each] for each in piece] if BYTES.keys() >= set(piece) else None

    def name(self, token: int) -> str:
        """A token's text, or its bytes (`bytes:\\xe2\\x82`) where it is a part of a character: told apart from every other part."""
        text, told = self.text(token), self.bytes(token)
        if BROKEN not in text or told is None:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in told)

    def _decoded(self, tokens: list[int]) -> str:
        found: str = self.renderer.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        return found

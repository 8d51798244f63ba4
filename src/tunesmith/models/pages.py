"""Which page holds whose keys and values: a trie of pages, shared by prompts that begin alike and kept until others need the room."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tunesmith.kernels.decode import PAGE


@dataclass(eq=False)
class Page:
    """Keys and values of the tokens that follow those of its parents."""

    number: int
    parent: "Page | None"
    tokens: list[int] = field(default_factory=list)
    """Those computed so far, at most `PAGE`."""
    children: dict[int, list["Page"]] = field(default_factory=dict)
    """By their first token; several may begin with the same tokens, each being written by a sequence of its own."""
    users: int = 0
    """Sequences under way whose tokens it holds."""


@dataclass(eq=False)
class Held:
    """The pages of one sequence under way."""

    pages: list[Page]
    promised: int
    """Pages that it may still take."""
    length: int = 0
    """Tokens whose keys and values are there."""

    @property
    def numbers(self) -> list[int]:
        """Of its pages, in order."""
        return [page.number for page in self.pages]


class Pages:
    """A bounded number of pages.

    A sequence is let in only when all the pages it may ever need are free or hold nothing that is in use, so none that has begun ever waits for memory.

    Args:
        count: how many there are.
        copy: copies a page's content, given the numbers of source and target.
        keep: whether what nobody uses any more stays until its room is needed, the oldest first.
        share: whether prompts that begin alike share pages at all.
    """

    def __init__(self, count: int, copy: Callable[[int, int], None], keep: bool = True, share: bool = True) -> None:
        self.count, self.copy, self.keep, self.share = count, copy, keep, share
        self.root = Page(-1, None)
        self.in_use = self.promised = self.fresh = 0
        self.free: list[int] = []
        self.unused: dict[Page, None] = {}  # kept, in the order they were left; of a prefix its end first

    @staticmethod
    def needed(tokens: int) -> int:
        """Pages of so many tokens."""
        return -(-tokens // PAGE)

    @property
    def available(self) -> int:
        """Pages that can still be promised."""
        return self.count - self.in_use - self.promised

    def match(self, tokens: Sequence[int]) -> tuple[list[Page], Page | None, int]:
        """Whole pages that hold the tokens from their start, a page that begins with what follows, and how many tokens that are in all."""
        whole: list[Page] = []
        page, done = self.root, 0
        while self.share:
            rest = tokens[done : done + PAGE]
            found = max(
                page.children.get(rest[0], ()) if rest else (), key=lambda one: agreeing(one.tokens, rest), default=None
            )
            common = agreeing(found.tokens, rest) if found else 0
            done += common
            if found is None or common < PAGE:
                return whole, found, done
            whole.append(found)
            page = found
        return whole, None, 0

    def open(self, prompt: Sequence[int], tokens: int) -> Held | None:
        """Pages for a sequence of at most so many tokens, with what is there of its prompt; None while there is no room.

        The last token of the prompt is never taken from there, since what follows from it is still to be computed.
        """
        whole, source, length = self.match(prompt[:-1])
        self._pin(whole)
        needed = self.needed(tokens) - len(whole)
        if self.available < needed:
            self._leave(whole)
            return None
        self.promised += needed
        held = Held(whole, needed, PAGE * len(whole))
        if source is not None and needed and (source.users or self.available):
            self._pin([source])  # taking a page must not evict it
            self.extend(held, length - held.length)
            self.copy(source.number, held.pages[-1].number)
            self.commit(held, source.tokens[: length - held.length])
            self._leave([source])
        return held

    def extend(self, held: Held, count: int) -> None:
        """Take the pages that so many more tokens will be written to."""
        while len(held.pages) * PAGE < held.length + count:
            page = Page(self._number(), held.pages[-1] if held.pages else self.root)
            held.pages.append(page)
            held.promised -= 1
            self.promised -= 1
            self._pin([page])

    def commit(self, held: Held, tokens: Sequence[int]) -> None:
        """Note that the keys and values of these tokens are there now."""
        for token in tokens:
            page = held.pages[held.length // PAGE]
            if not page.tokens and page.parent is not None:
                page.parent.children.setdefault(token, []).append(page)
            page.tokens.append(token)
            held.length += 1

    def close(self, held: Held) -> None:
        """A sequence has ended; what it wrote may be used by others from now on as before."""
        self.promised -= held.promised
        self._leave(held.pages)

    def _pin(self, pages: Sequence[Page]) -> None:
        for page in pages:
            self.in_use += not page.users
            page.users += 1
            self.unused.pop(page, None)

    def _leave(self, pages: Sequence[Page]) -> None:
        for page in reversed(pages):
            page.users -= 1
            if page.users:
                continue
            self.in_use -= 1
            if self.keep and self.share and page.tokens:
                self.unused[page] = None
            else:
                self._drop(page)

    def _drop(self, page: Page) -> None:
        if page.tokens and page.parent is not None:
            siblings = page.parent.children[page.tokens[0]]
            siblings.remove(page)
            if not siblings:
                del page.parent.children[page.tokens[0]]
        self.free.append(page.number)

    def _number(self) -> int:
        """Of a free page; if there is none, the end of the prefix that was left first is given up."""
        if not self.free and self.fresh < self.count:
            self.fresh += 1
            return self.fresh - 1
        if not self.free:
            oldest = next(page for page in self.unused if not page.children)
            del self.unused[oldest]
            self._drop(oldest)
        return self.free.pop()


def agreeing(left: Sequence[int], right: Sequence[int]) -> int:
    """How many tokens two lists have in common from their start."""
    most = min(len(left), len(right))
    if left[:most] == right[:most]:
        return most
    return next(place for place in range(most) if left[place] != right[place])

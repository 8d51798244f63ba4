"""Tool calls: whether an answer calls what the row calls, with the same arguments."""

from collections import Counter
from collections.abc import Iterable
from typing import ClassVar, Literal

from tunesmith.data.calls import Call, read_calls
from tunesmith.data.example import Example

from .base import AnswerGrader, Score
from .reading import canonical


class ToolCalls(AnswerGrader):
    """Share of calls that are right, by tool and arguments; one too many counts as one that is wrong. Where a row calls nothing, a text that calls nothing is right.

    Part `tool`: the same whatever the arguments.
    """

    kind: Literal["tool_calls"] = "tool_calls"
    unit: ClassVar[str] = "% of calls"
    judges_calls: ClassVar[bool] = True
    ignore_case: bool = False
    """Whether `Paris` equals `paris` among arguments; 1 equals 1.0, and the order of fields never matters."""

    def score(self, answer: str, example: Example) -> Score:
        """Hits among the calls of row and answer, whichever are more."""
        names = {tool["function"]["name"] for tool in example.tools}
        said = read_calls(answer, None if example.calls and not names else names)
        found = said.calls if said else ()
        if not example.calls:
            hit = float(not found and bool(answer.strip()))
            return Score(hit, 1.0, {"tool": (hit, 1.0)}, "" if hit else "expected a text and no call")
        wanted, total = [Call(*each) for each in example.calls], float(max(len(example.calls), len(found)))
        right, tools = _common(map(self._whole, wanted), map(self._whole, found)), _common((one.name for one in wanted), (one.name for one in found))  # fmt: skip
        text = "" if right == total else f"expected {', '.join(map(self._whole, wanted))}"
        return Score(right, total, {"tool": (tools, total)}, text)

    def _whole(self, call: Call) -> str:
        return f"{call.name}({canonical(call.arguments, self.ignore_case)})"


def _common(left: Iterable[str], right: Iterable[str]) -> float:
    """How many of two collections agree, each counted once."""
    return float((Counter(left) & Counter(right)).total())

"""The forms in which people write examples, how a file's form is recognised, and how a record becomes an Example."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tunesmith.base import ConfigError, DataError

from .conversation import as_messages, as_tools, from_sharegpt, parts, said, says_nothing
from .example import Example, Message
from .sources import Record
from .sources.record import kind_of

Fields = tuple[str, ...]
FIRST_ROWS = 200
"""Rows that a file's format is decided by."""
PAIRS = (
    ("prompt", "completion"), ("prompt", "answer"), ("prompt", "response"), ("question", "answer"),
    ("instruction", "output"), ("instruction", "response"), ("input", "output"), ("query", "response"),
)  # fmt: skip
TRUTH = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
NEEDS = "each row needs messages, or prompt and answer"


@dataclass(frozen=True)
class Format:
    """One way to write an example: the fields it reads and how."""

    name: str
    fields: Fields
    """Fields that every row must have."""
    read: Callable[[dict[str, Any], Fields], dict[str, Any]]
    """From a record and `fields` to the Example's own fields; raises DataError with the reason."""
    optional: Fields = ()
    """Fields it reads where they are given."""

    def has_fields(self, value: dict[str, Any]) -> bool:
        """Whether a record has what this format needs."""
        return all(value.get(name) is not None for name in self.fields)

    def fits(self, value: dict[str, Any]) -> bool:
        """Whether a record looks written in this format and no other."""
        return self.has_fields(value) and (self.name not in SIGNS or SIGNS[self.name](value, self.fields))

    def example(self, record: Record) -> Example:
        """The example a record holds; its other fields become `meta`.

        Raises:
            DataError: the record's defect or what is wrong with a field, in words and without the origin.
        """
        if record.value is None:
            raise DataError(record.defect)
        value = record.value
        for name in self.fields:
            if value.get(name) is None:
                state = "is null" if name in value else "is missing"
                raise DataError(f"{name!r} {state}; {_expects(self)}")
        meta = {name: part for name, part in value.items() if name not in (*self.fields, *self.optional)}
        return Example(origin=record.origin, meta=meta, **self.read(value, self.fields))


def detect(records: Iterable[Record], name: str = "auto") -> Format:
    """The format that most of the first rows are written in, or the variant of the format called `name`.

    Raises:
        DataError: no row is written in any of them.
        ConfigError: there is no format of that name.
    """
    known = [form for form in FORMATS if name in ("auto", form.name)]
    if not known:
        raise ConfigError(f"prepare.format: {name!r} does not exist; there are auto, {', '.join(names())}")
    votes: Counter[Format] = Counter()
    first: Record | None = None
    for record, _ in zip(records, range(FIRST_ROWS), strict=False):
        if record.value is None:
            continue
        first = first or record
        found = next((form for form in known if form.fits(record.value)), None)
        if name != "auto" and found is None:
            found = next((form for form in known if form.has_fields(record.value)), None)
        if found:
            votes[found] += 1
    if votes:
        return votes.most_common(1)[0][0]
    if first is None or first.value is None:
        return known[0]
    what = "fits no known format" if name == "auto" else f"is not written as {name}"
    raise DataError(f"{first.origin}: {what}: its fields are {', '.join(map(repr, first.value))}; {_expects(*known)}")


def names() -> list[str]:
    """Every format's name, once."""
    return list(dict.fromkeys(form.name for form in FORMATS))


def _expects(*forms: Format) -> str:
    if len(forms) == len(FORMATS):
        return f"{NEEDS}, or chosen and rejected, or text"
    several = " (or other names for them)" if len(forms) > 1 else ""
    return f"a row of {forms[0].name} needs {' and '.join(forms[0].fields)}{several}"


def _chat(value: dict[str, Any], fields: Fields) -> dict[str, Any]:
    tools = as_tools(value.get("tools"))
    messages = _under(value, as_messages(value[fields[0]], fields[0], tools))
    return {**_demonstration(messages), "tools": tools}


def _sharegpt(value: dict[str, Any], fields: Fields) -> dict[str, Any]:
    tools = as_tools(value.get("tools"))
    messages = as_messages(from_sharegpt(value[fields[0]], fields[0], value.get("system")), fields[0], tools)
    return {**_demonstration(messages), "tools": tools}


def _under(value: dict[str, Any], messages: list[Message]) -> list[Message]:
    """A conversation under the system message that stands beside it, as in Anthropic's form."""
    if not value.get("system"):
        return messages
    if any(message["role"] == "system" for message in messages):
        raise DataError("two system messages: one is among the turns, one in 'system'")
    return [said("system", _words(value, "system")), *messages]


def _demonstration(messages: list[Message]) -> dict[str, Any]:
    prompt, answer = parts(messages)
    if not prompt:
        raise DataError("no prompt: the first turn is the assistant's; put a system or user turn before it")
    return {"prompt": prompt, "answers": (answer,)}


def _pair(value: dict[str, Any], fields: Fields) -> dict[str, Any]:
    return {
        "prompt": _prompt(value, fields[0]),
        "answers": (_answer(value, fields[1]),),
        "tools": as_tools(value.get("tools")),
    }


def _kto(value: dict[str, Any], fields: Fields) -> dict[str, Any]:
    label = value["label"]
    truth = TRUTH.get(str(label).strip().lower())
    if truth is None:
        raise DataError(f"'label' is not true or false: it is {kind_of(label)}; true is for a wanted answer")
    return {**_pair(value, fields), "columns": {"label": truth}}


def _text(value: dict[str, Any], fields: Fields) -> dict[str, Any]:
    return {"text": _words(value, fields[0])}


def _preference(value: dict[str, Any], _: Fields) -> dict[str, Any]:
    tools = as_tools(value.get("tools"))
    chosen, rejected = value["chosen"], value["rejected"]
    if type(chosen) is not type(rejected):
        raise DataError(f"mixed types: 'chosen' is {kind_of(chosen)} and 'rejected' is {kind_of(rejected)}")
    if chosen == rejected:
        raise DataError("nothing to prefer: 'chosen' and 'rejected' are the same")
    if value.get("prompt") is None and value.get("context"):
        raise DataError("'context' stands beside whole conversations: write it into one of their turns")
    prompt = _prompt(value, "prompt") if value.get("prompt") is not None else tuple(_under(value, []))
    if isinstance(chosen, str):
        if value.get("prompt") is None and chosen.startswith(HUMAN) and rejected.startswith(HUMAN):
            return _shared(prompt, _transcript(chosen, "chosen"), _transcript(rejected, "rejected"))
        answers = (_answer(value, "chosen"), _answer(value, "rejected"))
        return {"prompt": _asked(prompt if value.get("prompt") is not None else ()), "answers": answers, "tools": tools}
    both = as_messages(chosen, "chosen", tools), as_messages(rejected, "rejected", tools)
    return {**_shared(prompt, *both), "tools": tools}


def _shared(prompt: tuple[Message, ...], chosen: list[Message], rejected: list[Message]) -> dict[str, Any]:
    """Prompt and two answers of two conversations; what they begin with in common belongs to the prompt."""
    common = 0
    while common < min(len(chosen), len(rejected)) - 1 and chosen[common] == rejected[common]:
        common += 1
    begin = tuple(chosen[:common])
    if chosen[common]["role"] != "assistant" or rejected[common]["role"] != "assistant":
        raise DataError("the prompts differ: 'chosen' and 'rejected' must answer the same turns")
    if prompt[-len(begin) :] != begin:  # else what the answers begin with is the end of the prompt, or all of it
        repeated = bool(begin) and tuple(begin[-len(prompt) :] if prompt else ()) == prompt
        prompt = begin if repeated else (*prompt, *begin)
    return {"prompt": _asked(prompt), "answers": (tuple(chosen[common:]), tuple(rejected[common:]))}


def _asked(prompt: tuple[Message, ...]) -> tuple[Message, ...]:
    if not prompt:
        raise DataError("no prompt: 'prompt' is missing, and 'chosen' and 'rejected' begin with no turns in common")
    return prompt


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def _transcript(text: str, name: str) -> list[Message]:
    """Messages of a transcript with `Human:` and `Assistant:`, the form of Anthropic's hh-rlhf data."""
    turns = []
    for piece in text.split(HUMAN)[1:]:
        asked, *answers = piece.split(ASSISTANT)
        turns += [said("user", asked.strip()), *(said("assistant", answer.strip()) for answer in answers)]
    return as_messages(turns, name, ())


def _prompt(value: dict[str, Any], name: str) -> tuple[Message, ...]:
    """The messages of a prompt written as text or as a list of messages."""
    given = value[name]
    if isinstance(given, list):
        beside = (*FURTHER.get(name, ()), *(("history",) if name == "instruction" else ()))
        if odd := next((part for part in beside if value.get(part)), None):
            raise DataError(f"{odd!r} stands beside {name!r}, which is a list of messages: write it into one of them")
        return tuple(_under(value, as_messages(given, name, (), prompt=True)))
    system = (said("system", _words(value, "system")),) if value.get("system") else ()
    if "context" in FURTHER.get(name, ()) and not isinstance(value.get("context") or "", str):
        raise DataError(f"'context' is not text: it is {kind_of(value['context'])}; write it as text, or call the field something else")  # fmt: skip
    asked = [_words(value, part) for part in (name, *FURTHER.get(name, ())) if part == name or value.get(part)]
    return (*system, *(_history(value) if name == "instruction" else ()), said("user", "\n\n".join(asked)))


def _history(value: dict[str, Any]) -> Iterator[Message]:
    """Turns before an instruction, in Alpaca's form."""
    history = value.get("history") or ()
    if not isinstance(history, list | tuple):
        raise DataError(f"'history' is not a list of pairs of texts: it is {kind_of(history)}")
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) and text for text in pair)):
            raise DataError("'history' is not a list of pairs of texts: each is [instruction, answer]")
        yield from (said("user", pair[0]), said("assistant", pair[1]))


FURTHER = {
    "instruction": ("input", "context"), "question": ("context",), "query": ("context",), "prompt": ("context",),
}  # fmt: skip
"""What a question is about, as Alpaca, Dolly and SQuAD have it; it follows the question."""


def _beside(pair: Fields) -> tuple[str, ...]:
    """Fields that may stand beside a question and its answer."""
    return ("tools", "system", *FURTHER.get(pair[0], ()), *(("history",) if pair[0] == "instruction" else ()))


def _answer(value: dict[str, Any], name: str) -> tuple[Message, ...]:
    given = value[name]
    if isinstance(given, list):
        return tuple(as_messages(given, name, ()))
    if isinstance(given, str) and says_nothing(given):
        raise DataError(f"empty answer: {name!r} holds no text")
    return (said("assistant", _words(value, name)),)


def _words(value: dict[str, Any], name: str) -> str:
    given = value[name]
    if not isinstance(given, str):
        raise DataError(f"{name!r} is not text: it is {kind_of(given)}")
    if says_nothing(given):
        raise DataError(f"{name!r} is empty")
    return given


def _turns_have(*keys: str) -> Callable[[dict[str, Any], Fields], bool]:
    def sign(value: dict[str, Any], fields: Fields) -> bool:
        turns = value[fields[0]]
        return isinstance(turns, list) and any(
            isinstance(turn, dict) and any(key in turn for key in keys) for turn in turns
        )

    return sign


def _has_truth(value: dict[str, Any], _: Fields) -> bool:
    return isinstance(value["label"], bool) or str(value["label"]).strip().lower() in ("true", "false")


SIGNS: dict[str, Callable[[dict[str, Any], Fields], bool]] = {
    "messages": _turns_have("role"),
    "sharegpt": _turns_have("from"),
    "kto": _has_truth,
    "alpaca": lambda value, _: any(name in value for name in ("input", "system", "history")),
}
"""What besides the presence of its fields tells a format; only asked when a format is to be recognised."""

FORMATS: tuple[Format, ...] = (
    Format("preference", ("chosen", "rejected"), _preference, ("prompt", "context", "tools", "system")),
    *(
        Format("messages", (name,), _chat, ("tools", "system"))
        for name in ("messages", "conversations", "conversation")
    ),
    *(
        Format("sharegpt", (name,), _sharegpt, ("tools", "system"))
        for name in ("conversations", "conversation", "messages")
    ),
    *(Format("kto", (*pair, "label"), _kto, _beside(pair)) for pair in PAIRS),
    Format("alpaca", ("instruction", "output"), _pair, _beside(("instruction",))),
    *(Format("prompt_completion", pair, _pair, _beside(pair)) for pair in PAIRS),
    Format("text", ("text",), _text),
)
"""Every format, the most telling first: a record counts for the first that it fits."""

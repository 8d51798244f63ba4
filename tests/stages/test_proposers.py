"""Proposers: sentences are moved about offline, or a server is asked; its failures are said in words and its key is nowhere."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunesmith.base import ConfigError, MachineError
from tunesmith.base.files import read_json
from tunesmith.base.help import help_of
from tunesmith.base.spec import validate
from tunesmith.data.example import Example
from tunesmith.data.prepared import load_examples
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.prompting.choice import divide
from tunesmith.stages.prompting.proposers import Proposer, Situation, Trial
from tunesmith.stages.prompting.proposers.edits import Edits, changed, operations, sentences, templates
from tunesmith.stages.prompting.proposers.endpoint import Endpoint, meta_prompt, proposed
from tunesmith.stages.prompting.settings import Prompt

CUT = b'{"choices": ['
KEY = "never-to-be-written-7f3a"


def example(number: int, gold: str, prompt: str = "Which?") -> Example:
    return Example(f"x:{number}", ({"role": "user", "content": prompt},), (({"role": "assistant", "content": gold},),))


GOLDS = [json.dumps({"role": role, "size": size}) for role in ("program", "library") for size in range(4)]
EXAMPLES = tuple(example(number, gold, f"Describe {number}.") for number, gold in enumerate(GOLDS))


def situation(instruction: str = "Be brief. Name the colour.", limit: int = 50, past: tuple[Trial, ...] = ()) -> Situation:  # fmt: skip
    return Situation(Trial(instruction, 40.0), past, EXAMPLES, limit, "% of rows")


def slow(first: list[str], second: list[str]) -> int:
    """Levenshtein's distance as it is defined."""
    if not first or not second:
        return len(first) + len(second)
    same = slow(first[1:], second[1:]) + (first[0] != second[0])
    return min(same, slow(first[1:], second) + 1, slow(first, second[1:]) + 1)


@given(st.lists(st.sampled_from(["ab", "c"]), max_size=5), st.lists(st.sampled_from(["ab", "c"]), max_size=5))
def test_changed_words_are_counted_as_levenshtein_defines_it(first, second):
    assert changed(" ".join(first), " ".join(second)) == slow(first, second)


def test_operators_drop_swap_double_and_put_in_sentences():
    assert sentences("One. Two!\nThree: four") == ["One.", "Two!", "Three:", "four"]
    assert operations(["A.", "B."], ["N."]) == {
        "drop": ["B.", "A."],
        "swap": ["B. A."],
        "double": ["A. B. A.", "A. B. B."],
        "append": ["A. B. N."],
        "prepend": ["N. A. B."],
    }
    assert operations([], ["N."]) == {"append": ["N."]}


def test_templates_say_what_answers_look_like():
    assert templates(EXAMPLES)[:3] == [
        "Answer with one JSON object with the keys role, size, and nothing else.",
        "The value of role is one of: library, program.",
        "The value of size is one of: 0, 1, 2, 3.",
    ]
    assert "the keys that are asked for" in templates([*EXAMPLES, example(9, '{"other": 1}')])[0]
    assert templates([example(n, ["red", "green"][n % 2]) for n in range(6)])[0] == "Answer with exactly one of: green, red."  # fmt: skip
    assert templates([example(n, f"some word {n}") for n in range(6)])[0] == "Answer in at most 3 words."


@given(st.text(alphabet="ab .!\n", max_size=60), st.integers(1, 20), st.integers(1, 8), st.integers(0, 99))
def test_edits_are_different_within_the_limit_and_the_same_for_a_seed(instruction, limit, count, seed):
    given_ = situation(instruction, limit)
    found = Edits().propose(given_, count, np.random.default_rng(seed))
    assert len(set(found)) == len(found) <= count
    assert all(changed(instruction, text) <= limit for text in found)
    assert found == Edits().propose(given_, count, np.random.default_rng(seed))


class Server:
    """A local server that answers chat completions from a list; an int is a status it fails with, a str the text of an answer, bytes a whole body."""

    def __init__(self, answers):
        self.answers, self.asked, self.keys, outer = list(answers), [], [], self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.asked.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
                outer.keys.append(self.headers.get("Authorization"))
                answer = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                status = answer if isinstance(answer, int) else 200
                body = answer if isinstance(answer, bytes) else json.dumps(outer.body(answer, outer.keys[-1])).encode()
                self.send_response(status)
                if status == 307:
                    self.send_header("Location", "http://127.0.0.1:9/elsewhere")
                if status == 502 or answer == CUT:  # says that more comes than does
                    self.send_header("Content-Length", "999")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @staticmethod
    def body(answer, key):
        if isinstance(answer, int):
            return {"error": f"no such luck, you with {key}"}
        return {"choices": [{"message": {"content": answer}}]}


@pytest.fixture
def serve():
    made = []

    def start(*answers):
        made.append(Server(answers))
        return made[-1]

    yield start
    for each in made:
        each.server.shutdown()
        each.server.server_close()


def test_a_server_is_told_scores_rows_and_the_limit_and_its_instructions_are_taken(serve, monkeypatch):
    monkeypatch.setenv("SOME_KEY", KEY)
    server = serve("Sure! <instruction> Say one colour. </instruction>", "Only the colour.")
    proposer = Endpoint(url=f"{server.url}/", model="big", key_from_environment="SOME_KEY")
    told = situation(limit=17, past=(Trial("Guess.", 12.5), Trial("Think.", 60.0)))
    proposer.check()
    found = proposer.propose(told, 2, np.random.default_rng(3))
    assert found == ["Say one colour.", "Only the colour."]
    assert [path for path, _ in server.asked] == ["/v1/chat/completions"] * 2
    assert server.keys == [f"Bearer {KEY}"] * 2
    body = server.asked[0][1]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("big", 1.0, 512)
    assert body["seed"] != server.asked[1][1]["seed"]
    text = body["messages"][0]["content"]
    assert text == meta_prompt(told, np.random.default_rng(3))
    assert text.index("Guess.\nScore: 12.5") < text.index("Name the colour.\nScore: 40.0") < text.index("Think.\nScore: 60.0")  # fmt: skip
    assert "at most 17 words" in text
    assert sum(f"Input: Describe {number}." in text for number in range(8)) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (401, r"answered 401 .*no such luck, you with Bearer <key>.*mend url, model or key and run again, or set prompt\.proposer=\{kind: edits\}"),
        (500, r"answered 500"),
        (502, r"answered 502 .*the rest was lost: IncompleteRead"),
        (CUT, r"cannot be reached: IncompleteRead"),
        (307, r"answered 307"),  # another address is not told the key
        (b"<html>", r"did not answer as OpenAI's servers do: JSONDecodeError"),
        (b'{"choices": []}', r"did not answer as OpenAI's servers do: IndexError"),
        ("  ", r"the answer is empty"),
    ],
)  # fmt: skip
def test_what_a_server_does_wrong_is_said_without_the_key(serve, monkeypatch, answer, message):
    monkeypatch.setenv("SOME_KEY", KEY)
    server = serve(answer)
    proposer = Endpoint(url=server.url, model="big", key_from_environment="SOME_KEY")
    with pytest.raises(MachineError, match=message) as found:
        proposer.propose(situation(), 1, np.random.default_rng(0))
    assert KEY not in str(found.value)
    assert server.url in str(found.value)


def test_a_server_on_this_machine_is_asked_past_any_proxy(serve, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    proposer = Endpoint(url=serve("Only the colour.").url, model="big", timeout=5)
    assert proposer.propose(situation(), 1, np.random.default_rng(0)) == ["Only the colour."]
    with pytest.raises(MachineError, match=r"http://model\.invalid/v1 cannot be reached: .*refused"):  # by the proxy
        Endpoint(url="http://model.invalid/v1", model="m", timeout=5).propose(situation(), 1, np.random.default_rng(0))


def test_a_server_that_is_not_there_and_a_key_that_is_not_set(monkeypatch):
    with pytest.raises(MachineError, match=r"http://127\.0\.0\.1:9/v1 cannot be reached: .*refused"):
        Endpoint(url="http://127.0.0.1:9/v1", model="m", timeout=5).propose(situation(), 1, np.random.default_rng(0))
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(ConfigError, match="the environment variable SOME_KEY is empty"):
        Endpoint(url="http://x/v1", model="m", key_from_environment="SOME_KEY").check()
    monkeypatch.setenv("SOME_KEY", "two\nlines")
    with pytest.raises(ConfigError, match="holds blanks or letters that no key has") as found:
        Endpoint(url="http://x/v1", model="m", key_from_environment="SOME_KEY").check()
    assert "lines" not in str(found.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        (f"https://me:{KEY}@x/v1", "holds a password in an address"),
        (f"me:{KEY}@x/v1", "begins with http:// or https:// and names a server"),
        (f"https://x/v1?key={KEY}", "holds no password and no key; use key_from_environment"),
        (f"https://x/v1?api_key={KEY}", "holds a token in an address"),
        (f"https://x/v1#sk-{KEY}", "holds a key of a service"),
        (f"https://x/v1#{KEY}", "holds no password and no key; use key_from_environment"),
        (f"https://[{KEY}/v1", "begins with http:// or https:// and names a server"),
        (f"ftp://x/{KEY}", "begins with http:// or https:// and names a server"),
    ],
)
def test_an_address_with_a_key_in_it_is_refused_and_not_repeated(url, message):
    with pytest.raises(ConfigError, match=message) as found:
        validate(Prompt, {"proposer": {"kind": "endpoint", "url": url, "model": "m"}}, "r.yaml")
    assert str(found.value).startswith("r.yaml: proposer.url: ")
    assert KEY not in str(found.value)


def test_an_instruction_without_marks_is_taken_as_it_is():
    assert proposed(" Say it. ") == "Say it."
    assert proposed("<instruction>Cut off") == "Cut off"


def test_members_have_help():
    assert {member.model_fields["kind"].default for member in Proposer.members()} >= {"edits", "endpoint"}
    for member in Proposer.members():
        assert member.__doc__
        assert member.model_fields.keys() - {"kind"} <= help_of(member).keys()


def test_a_run_asks_the_server_once_shows_it_no_held_out_row_and_keeps_no_key(
    serve, tmp_path, tiny_folder, monkeypatch
):
    monkeypatch.setenv("SOME_KEY", KEY)
    server = serve(*[f"<instruction>Say the colour {number}, not {KEY}.</instruction>" for number in range(9)])
    lines = [{"prompt": f"Shade {number}?", "answer": ["red", "green"][number % 2]} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tree = {
        "model": str(tiny_folder), "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 6, "validation_fraction": 0, "cleaners": []},
        "prompt": {
            "ways": ["zero-shot", "optimised"], "development": 6, "shots": [1], "optimiser": {"steps": 2, "candidates": 2},
            "proposer": {"kind": "endpoint", "url": server.url, "model": "big", "key_from_environment": "SOME_KEY"},
        },
        "evaluate": {"graders": [{"kind": "chrf"}], "max_tokens": 3},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(tree))
    pipeline = open_run(tmp_path / "recipe.yaml", tmp_path / "run")
    made = pipeline.locked("prompt")
    assert len(server.asked) == 2  # a step's other candidate is a change of examples
    steps = read_json(made / "trajectory.json")
    assert any(each["instruction"] == "Say the colour 0, not <key>." for each in steps[0]["tried"])
    train, test = (load_examples(pipeline.stage("prepare").path, split) for split in ("train", "test"))
    divided = divide(train, test, 6, 1, seed=0)
    sent = json.dumps(server.asked)
    assert not any(row.prompt[0]["content"] in sent for row in (*test, *divided.development))
    assert any(row.prompt[0]["content"] in sent for row in divided.pool)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    assert "SOME_KEY" in (tmp_path / "run" / "resolved.yaml").read_text()

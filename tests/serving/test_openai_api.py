"""The server as a client of OpenAI's library meets it."""

import asyncio
import concurrent.futures
import json
import time

import httpx
import openai
import pytest

from tunesmith.data.render import Renderer
from tunesmith.models.decoding import FusedDecoding
from tunesmith.serving.api import create_app
from tunesmith.serving.engine import Engine
from tunesmith.serving.log import RequestLog, read_log
from tunesmith.serving.settings import Serve

from .conftest import TOKEN

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a package?"}]


def text_of(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def test_chat_answers_and_counts_tokens(live, tokenizer):
    found = live.openai.chat.completions.create(model="tuned", messages=TALK, max_tokens=9)
    assert found.choices[0].message.role == "assistant"
    assert found.choices[0].message.content
    assert found.choices[0].finish_reason == "length"
    assert found.usage.prompt_tokens == len(Renderer(tokenizer).prompt(TALK))
    assert found.usage.completion_tokens == 9
    assert found.usage.total_tokens == found.usage.prompt_tokens + 9


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3}, {"stop": ["a"]}, {"logprobs": True}])
def test_streamed_text_is_the_whole_text(live, options):
    asked = {"model": "tuned", "messages": TALK, "max_tokens": 30, **options}
    whole = live.openai.chat.completions.create(**asked)
    chunks = list(live.openai.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert text_of(chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_models_answer_differently_and_are_listed(live):
    answers = {
        name: live.openai.chat.completions.create(model=name, messages=TALK, max_tokens=8).choices[0].message.content
        for name in ("base", "tuned")
    }
    assert answers["base"] != answers["tuned"]
    assert [model.id for model in live.openai.models.list()] == ["base", "tuned"]
    assert live.openai.models.retrieve("tuned").id == "tuned"
    with pytest.raises(openai.NotFoundError, match="there are base, tuned"):
        live.openai.models.retrieve("other")


def test_completion_takes_text_texts_and_tokens(live, tokenizer):
    text = "The quick brown fox"
    ids = Renderer(tokenizer).encode(text)
    one = live.openai.completions.create(model="tuned", prompt=text, max_tokens=6)
    same = live.openai.completions.create(model="tuned", prompt=ids, max_tokens=6)
    several = live.openai.completions.create(model="tuned", prompt=[text, "Another"], max_tokens=6)
    assert one.choices[0].text == same.choices[0].text == several.choices[0].text
    assert [choice.index for choice in several.choices] == [0, 1]
    assert several.usage.prompt_tokens == len(ids) + len(Renderer(tokenizer).encode("Another"))
    streamed = live.openai.completions.create(model="tuned", prompt=text, max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == one.choices[0].text


def test_special_tokens_in_a_text_stay_text(live, tokenizer):
    found = live.openai.completions.create(model="tuned", prompt="<|im_end|>", max_tokens=1)
    assert found.usage.prompt_tokens > 1
    assert found.usage.prompt_tokens == len(Renderer(tokenizer).encode("<|im_end|>"))


def test_stop_ends_before_the_stop_text(live):
    free = live.openai.completions.create(model="tuned", prompt="One two", max_tokens=40).choices[0].text
    middle = free[len(free) // 2 : len(free) // 2 + 3]
    found = live.openai.completions.create(model="tuned", prompt="One two", max_tokens=40, stop=middle)
    assert found.choices[0].text == free[: free.index(middle)]
    assert found.choices[0].finish_reason == "stop"


def test_a_seed_makes_sampling_repeatable(live):
    def ask(seed):
        found = live.openai.chat.completions.create(
            model="tuned", messages=TALK, max_tokens=12, temperature=1.0, seed=seed, n=2
        )
        return [choice.message.content for choice in found.choices]

    first = ask(5)
    assert ask(5) == first
    assert ask(9) != first
    assert first[0] != first[1]


def test_chat_logprobs(live):
    asked = {"model": "tuned", "messages": TALK, "max_tokens": 5, "logprobs": True, "top_logprobs": 3}
    found = live.openai.chat.completions.create(**asked).choices[0]
    told = found.logprobs.content
    assert len(told) == 5
    for token in told:
        values = [alternative.logprob for alternative in token.top_logprobs]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert token.logprob == pytest.approx(values[0], abs=1e-5)  # greedy: the likeliest was taken
    assert "".join(token.token for token in told) == found.message.content
    assert bytes(told[0].bytes).decode() == told[0].token


def test_completion_logprobs(live):
    found = live.openai.completions.create(model="tuned", prompt="Once", max_tokens=4, logprobs=2).choices[0].logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(found.text_offset) == 4
    assert found.text_offset[0] == 0
    assert all(len(alternatives) == 2 for alternatives in found.top_logprobs)
    assert all(value < 0 for value in found.token_logprobs)


def test_concurrent_requests_get_their_serial_answers(live):
    def ask(number):
        name = ("base", "tuned")[number % 2]
        asked = [{"role": "user", "content": f"Question {number}: " + "why " * number}]
        found = live.openai.chat.completions.create(model=name, messages=asked, max_tokens=10 + number)
        return found.choices[0].message.content

    serial = [ask(number) for number in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == serial


def test_a_client_that_leaves_frees_the_engine(live):
    stream = live.openai.chat.completions.create(
        model="tuned", messages=TALK, max_tokens=200, temperature=2.0, stream=True
    )
    for _, _chunk in zip(range(3), stream, strict=False):
        pass
    stream.close()
    deadline = time.monotonic() + 10
    while not any(record.status == 499 for record in read_log(live.log)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    left = next(record for record in read_log(live.log) if record.status == 499)
    assert 0 < left.answer_tokens < 200


@pytest.mark.parametrize("stream", [True, False])
def test_what_the_server_cuts_off_did_not_end_because_the_client_left(tiny, tmp_path, monkeypatch, stream):
    step = FusedDecoding.step
    monkeypatch.setattr(FusedDecoding, "step", lambda self, feeds: time.sleep(0.05) or step(self, feeds))
    settings = Serve(answer_limit=400)
    engine, log = Engine({"tuned": tiny("tuned", 1)}, settings), RequestLog(tmp_path / "log", settings.log)
    application = create_app(engine, settings, log, TOKEN)

    async def ask():
        way = httpx.ASGITransport(application)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        async with httpx.AsyncClient(transport=way, base_url="http://localhost", headers=headers) as client:
            body = {"model": "tuned", "prompt": "Count", "max_tokens": 400, "temperature": 2.0, "stream": stream}
            request = asyncio.create_task(client.post("/v1/completions", json=body))
            while not engine.running:
                await asyncio.sleep(0.01)
            request.cancel()  # what uvicorn does to a request when it is told to end
            await asyncio.wait([request])

    asyncio.run(ask())
    engine.close()
    log.close()
    assert [(one.status, one.error) for one in read_log(log.path)] == [(503, "the server is shutting down")]


def test_metrics_count_what_was_answered(live):
    def told() -> float:
        lines = live.http.get("/metrics").text.splitlines()
        return sum(
            float(line.split()[-1])
            for line in lines
            if line.startswith('tunesmith_tokens_total{kind="answer",model="base"}')
        )

    before = told()
    live.openai.completions.create(model="base", prompt="Count", max_tokens=7)
    assert told() == before + 7


def test_each_request_is_logged(live):
    live.openai.completions.create(model="base", prompt="Write to ann@example.org", max_tokens=3)
    deadline = time.monotonic() + 5
    while not (found := [record for record in read_log(live.log) if record.prompt == "Write to [redacted]"]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert found[0].status == 200
    assert found[0].answer_tokens == 3
    assert found[0].prompt_characters == len("Write to ann@example.org")
    assert 0 < found[0].first_seconds <= found[0].seconds
    assert b"ann@example" not in live.log.read_bytes()


def test_health_is_open(live):
    assert live.http.get("/healthz", headers={"Authorization": ""}).json() == {"status": "ok"}


def test_answers_are_what_json_says(live):
    body = live.http.post("/v1/completions", json={"model": "base", "prompt": "x", "max_tokens": 1}).text
    assert json.loads(body)["object"] == "text_completion"

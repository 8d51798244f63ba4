"""What the engine promises: batches, a bounded queue, and survival."""

import asyncio
import copy
import socket

import pytest

from tunesmith.base import ConfigError, MachineError
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer
from tunesmith.models.decoding import FusedDecoding
from tunesmith.models.generate import Sampling
from tunesmith.serving.engine import Engine
from tunesmith.serving.request_error import RequestError
from tunesmith.serving.server import find_token, open_port, url_host
from tunesmith.serving.settings import Serve


@pytest.fixture
def steps(monkeypatch):
    """Of every step, how many tokens of each sequence passed through the model."""
    found = []
    real = FusedDecoding.step

    def counting(self, feeds):
        found.append([len(feed.tokens) for feed in feeds])
        return real(self, feeds)

    monkeypatch.setattr(FusedDecoding, "step", counting)
    return found


async def drain(job) -> list[int]:
    return [piece.token async for piece in job]


def test_who_comes_later_joins_the_running_batch(tiny, steps):
    async def ask():
        long = engine.submit("tuned", [[5, 6]], [Sampling(max_tokens=60)])
        pieces = aiter(long)
        await anext(pieces)
        short = [engine.submit("tuned", [[7, number]], [Sampling(max_tokens=4)]) for number in range(6)]
        found = [await drain(job) for job in short]
        assert long.left  # they did not wait for it
        return found, [piece async for piece in pieces]

    engine = Engine({"tuned": tiny("tuned", 1)}, Serve(batch=4))
    found, rest = asyncio.run(ask())
    assert [len(tokens) for tokens in found] == [4] * 6
    assert len(rest) == 59
    assert max(map(len, steps)) == 4
    assert len(steps) == 60  # none was taken for the others alone
    engine.close()


def test_models_take_turns(tiny):
    async def ask():
        jobs = [engine.submit(name, [[5]], [Sampling(max_tokens=40)]) for name in ("a", "b")]
        order = []

        async def follow(name, job):
            async for _ in job:
                order.append(name)

        await asyncio.gather(*(follow(name, job) for name, job in zip("ab", jobs, strict=True)))
        return order

    engine = Engine({"a": tiny("a", 1), "b": tiny("b", 2)}, Serve())
    order = asyncio.run(ask())
    assert order.count("a") == order.count("b") == 40
    assert "b" in order[:5]
    assert "a" in order[-5:]
    engine.close()


def test_the_queue_is_bounded(tiny):
    async def ask():
        first = engine.submit("tuned", [[5]], [Sampling(max_tokens=100)])
        await anext(aiter(first))
        waiting = [engine.submit("tuned", [[5]], [Sampling(max_tokens=1)]) for _ in range(3)]
        with pytest.raises(RequestError, match="3 answers wait") as refused:
            engine.submit("tuned", [[5]], [Sampling(max_tokens=1)])
        assert refused.value.status == 429
        assert "Retry-After" in refused.value.response.headers
        first.cancel()
        for job in waiting:
            await drain(job)
        assert engine.waiting == 0
        await drain(engine.submit("tuned", [[5]], [Sampling(max_tokens=1)]))

    engine = Engine({"tuned": tiny("tuned", 1)}, Serve(queue=3, batch=1))
    asyncio.run(ask())
    engine.close()


def test_closing_the_engine_ends_what_runs_and_what_waits(tiny):
    async def ask():
        jobs = [engine.submit("tuned", [[5]], [Sampling(max_tokens=400, temperature=1.0, seed=0)]) for _ in range(3)]
        await anext(aiter(jobs[0]))
        await asyncio.get_running_loop().run_in_executor(None, engine.close)
        for job in jobs:
            with pytest.raises(RequestError) as refused:
                await drain(job)
            assert refused.value.status == 503

    engine = Engine({"tuned": tiny("tuned", 1)}, Serve(batch=2))
    asyncio.run(ask())


def test_a_cancelled_request_stops_using_the_model(tiny):
    async def ask():
        long = engine.submit("tuned", [[5]], [Sampling(max_tokens=400, temperature=1.0, seed=0)])
        pieces = aiter(long)
        await anext(pieces)
        long.cancel()
        after = engine.submit("tuned", [[5]], [Sampling(max_tokens=1)])
        await drain(after)  # in the place that became free
        assert long.left == 1  # it never came to its end
        assert engine.running == 0

    engine = Engine({"tuned": tiny("tuned", 1)}, Serve(batch=1))
    asyncio.run(ask())
    engine.close()


def test_a_failing_batch_is_told_and_the_next_succeeds(tiny, caplog):
    async def ask():
        with pytest.raises(RequestError) as failed:
            await drain(engine.submit("tuned", [[10**9]], [Sampling(max_tokens=2)]))  # no such token: the model raises
        assert failed.value.status == 500
        assert len(await drain(engine.submit("tuned", [[5]], [Sampling(max_tokens=2)]))) == 2

    engine = Engine({"tuned": tiny("tuned", 1)}, Serve())
    asyncio.run(ask())
    assert "a batch failed" in caplog.text
    engine.close()


def test_a_closed_engine_takes_nothing(tiny):
    async def ask():
        with pytest.raises(RequestError) as refused:
            engine.submit("tuned", [[5]], [Sampling()])
        assert refused.value.status == 503

    engine = Engine({"tuned": tiny("tuned", 1)}, Serve())
    engine.close()
    asyncio.run(ask())


def test_a_taken_port_is_one_line():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(MachineError) as error:
            open_port(Serve(port=port))
    assert str(error.value) == f"port {port} is taken by another program; choose another with --port"


def test_an_ipv6_address_has_brackets_in_a_url():
    assert [url_host(host) for host in ("::1", "127.0.0.1", "localhost")] == ["[::1]", "127.0.0.1", "localhost"]


def test_a_foreign_address_is_one_line():
    with pytest.raises(MachineError, match="not an address of this machine; choose another with --host"):
        open_port(Serve(host="203.0.113.7", port=0))


def test_the_token_comes_from_file_or_variable_or_is_new(tmp_path, monkeypatch):
    monkeypatch.delenv("TUNESMITH_TOKEN", raising=False)
    made, new = find_token(Serve())
    assert new
    assert made != find_token(Serve())[0]
    monkeypatch.setenv("TUNESMITH_TOKEN", "from-the-environment")
    assert find_token(Serve()) == ("from-the-environment", False)
    file = tmp_path / "token"
    file.write_text("from-a-file-with-newline\n")
    assert find_token(Serve(token_file=file)) == ("from-a-file-with-newline", False)
    file.write_text("short")
    with pytest.raises(ConfigError, match="make a longer one"):
        find_token(Serve(token_file=file))


def test_tools_are_in_the_prompt_where_the_template_renders_them(tiny, tokenizer):
    loaded = tiny("tuned", 1)
    loaded.tokenizer = copy.deepcopy(tokenizer)
    loaded.tokenizer.chat_template = (
        "{% for tool in tools or [] %}{{ tool | tojson }}\n{% endfor %}" + tokenizer.chat_template
    )
    engine = Engine({"tuned": loaded}, Serve())
    served = engine.served("tuned")
    tool = {"type": "function", "function": {"name": "weather_in", "parameters": {"type": "object"}}}
    assert "weather_in" in tokenizer.decode(served.chat([{"role": "user", "content": "hi"}], [tool]))
    engine.close()


def test_a_served_prompt_is_the_prompt_that_was_trained(tiny, tokenizer):
    engine = Engine({"tuned": tiny("tuned", 1)}, Serve())
    talk = [{"role": "user", "content": "Name <|im_end|> 3 things:\n 1. a"}]
    trained = (
        Renderer(tokenizer).row(Example("x:1", tuple(talk), (({"role": "assistant", "content": "b"},),))).sequences[0]
    )
    prompt = engine.served("tuned").chat(talk, [])
    assert prompt == trained.tokens[: int(trained.learn.argmax())].tolist()
    engine.close()


def test_a_text_to_continue_begins_as_the_texts_that_were_trained(tiny, tokenizer):
    loaded = tiny("tuned", 1)
    loaded.tokenizer = copy.deepcopy(tokenizer)
    loaded.tokenizer.add_bos_token = True
    engine = Engine({"tuned": loaded}, Serve())
    trained = Renderer(loaded.tokenizer).row(Example("x:1", text="Once upon")).sequences[0].tokens.tolist()
    assert trained[0] == loaded.tokenizer.bos_token_id
    assert engine.served("tuned").plain("Once upon") == trained[:-1]
    engine.close()


def test_a_conversation_of_very_many_turns_is_too_long_and_no_failure_of_the_template(tiny):
    engine = Engine({"tuned": tiny("tuned", 1)}, Serve())
    served = engine.served("tuned")
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 1500 + [
        {"role": "user", "content": "c"}
    ]
    with pytest.raises(RequestError) as refused:
        served.check(served.chat(talk, []), ("max_tokens", None), engine.settings)
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")
    engine.close()

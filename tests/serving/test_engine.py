"""What the engine promises: batches, a bounded queue, and survival."""

import asyncio
import copy
import socket

import pytest

from tunesmith.base import ConfigError, MachineError
from tunesmith.data.example import Example
from tunesmith.data.render import Renderer
from tunesmith.models.generate import Sampling
from tunesmith.serving import engine as module
from tunesmith.serving.engine import Engine
from tunesmith.serving.request_error import RequestError
from tunesmith.serving.server import find_token, open_port
from tunesmith.serving.settings import Serve


@pytest.fixture
def batches(monkeypatch):
    """Sizes of the batches that were generated, in order."""
    sizes = []
    real = module.stream

    def counting(loaded, prompts, samplings):
        sizes.append(len(prompts))
        return real(loaded, prompts, samplings)

    monkeypatch.setattr(module, "stream", counting)
    return sizes


async def drain(job) -> list[int]:
    return [piece.token async for piece in job]


def test_what_waits_together_is_answered_together(tiny, batches):
    async def ask():
        jobs = [engine.submit("tuned", [[5, 6]], [Sampling(max_tokens=40)])]
        while engine.waiting:  # until the first runs
            await asyncio.sleep(0.001)
        jobs += [engine.submit("tuned", [[7, number]], [Sampling(max_tokens=4)]) for number in range(6)]
        return [await drain(job) for job in jobs]

    engine = Engine({"tuned": tiny("tuned", 1)}, Serve(batch=4))
    found = asyncio.run(ask())
    assert [len(tokens) for tokens in found] == [40, 4, 4, 4, 4, 4, 4]
    assert batches == [1, 4, 2]
    engine.close()


def test_models_do_not_share_a_batch(tiny, batches):
    async def ask():
        jobs = [engine.submit("a", [[5]], [Sampling(max_tokens=40)])]
        while engine.waiting:
            await asyncio.sleep(0.001)
        jobs += [engine.submit(name, [[7]], [Sampling(max_tokens=2)]) for name in ("b", "a", "b", "a")]
        return [await drain(job) for job in jobs]

    engine = Engine({"a": tiny("a", 1), "b": tiny("b", 2)}, Serve())
    found = asyncio.run(ask())
    assert batches == [1, 2, 2]
    assert found[1] == found[3] != found[2] == found[4]
    engine.close()


def test_the_queue_is_bounded(tiny):
    async def ask():
        first = engine.submit("tuned", [[5]], [Sampling(max_tokens=60)])
        while engine.waiting:
            await asyncio.sleep(0.001)
        waiting = [engine.submit("tuned", [[5]], [Sampling(max_tokens=1)]) for _ in range(3)]
        with pytest.raises(RequestError, match="3 answers wait") as refused:
            engine.submit("tuned", [[5]], [Sampling(max_tokens=1)])
        assert refused.value.status == 429
        for job in (first, *waiting):
            await drain(job)
        assert engine.waiting == 0
        await drain(engine.submit("tuned", [[5]], [Sampling(max_tokens=1)]))

    engine = Engine({"tuned": tiny("tuned", 1)}, Serve(queue=3))
    asyncio.run(ask())
    engine.close()


def test_a_cancelled_request_stops_using_the_model(tiny):
    async def ask():
        long = engine.submit("tuned", [[5]], [Sampling(max_tokens=400, temperature=1.0, seed=0)])
        pieces = aiter(long)
        await anext(pieces)
        long.cancel()
        after = engine.submit("tuned", [[5]], [Sampling(max_tokens=1)])
        await drain(after)
        assert long.left == 1  # it never came to its end

    engine = Engine({"tuned": tiny("tuned", 1)}, Serve())
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

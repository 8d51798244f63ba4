"""Whatever a client gets wrong is told to it in OpenAI's envelope, with a status of 400 to 499."""

import json

import httpx
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunesmith.serving.engine import Engine
from tunesmith.serving.settings import Serve

from .conftest import serve

GOOD = {"model": "tuned", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
FUNCTION = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def refusal(response: httpx.Response) -> dict:
    """The error of a refused request, after checking that it is one."""
    assert 400 <= response.status_code < 500, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error


@pytest.mark.parametrize("key", ["wrong", "", "a-token-for-tests-onlY", "ä"])
def test_a_wrong_token_enters_nowhere(live, key):
    for method, path in [
        ("GET", "/v1/models"),
        ("GET", "/metrics"),
        ("POST", "/v1/chat/completions"),
        ("GET", "/nowhere"),
    ]:
        header = f"Bearer {key}".strip().encode()
        response = httpx.request(method, live.url + path, headers=[(b"authorization", header)])
        assert response.status_code == 401
        assert refusal(response)["code"] == "invalid_api_key"


def test_a_wrong_token_is_an_authentication_error_to_the_client(live):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_an_unknown_model_is_not_found(live):
    with pytest.raises(openai.NotFoundError, match="'gpt-9' does not exist; there are base, tuned"):
        live.openai.chat.completions.create(**{**GOOD, "model": "gpt-9"})


def test_a_large_body_is_refused_whatever_length_it_declares(live):
    large = json.dumps({**GOOD, "user": "x" * 30_000}).encode()
    assert refusal(live.http.post("/v1/chat/completions", content=large))["code"] == "body_too_large"
    chunked = live.http.post(
        "/v1/chat/completions", content=(large[start : start + 999] for start in range(0, len(large), 999))
    )
    assert chunked.status_code == 413
    with pytest.raises(openai.APIStatusError, match="larger than the 20000 bytes"):
        live.openai.chat.completions.create(**{**GOOD, "user": "x" * 2_000_000})


BODIES = {
    "not json": b"{model: tuned",
    "empty": b"",
    "not utf-8": b'{"model": "\xff\xfe"}',
    "lone surrogate": json.dumps({**GOOD, "messages": [{"role": "user", "content": "\ud800"}]}).encode(),
    "surrogate in a name": b'{"\\ud800": 1}',
    "deep": b"[" * 9_000 + b"]" * 9_000,
    "deep tool": json.dumps(GOOD).encode()[:-1] + b', "tools": ' + b'{"a":' * 2_000 + b"1" + b"}" * 2_000 + b"}",
    "list": b"[]",
    "number": b"1e999",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_malformed_body_is_refused(live, body):
    for path in ("/v1/chat/completions", "/v1/completions"):
        assert live.http.post(path, content=body).status_code == 400
        refusal(live.http.post(path, content=body))


WRONG = [
    ("max_tokens", -1),
    ("max_tokens", 0),
    ("max_tokens", 10**30),
    ("max_tokens", "5"),
    ("max_completion_tokens", -3),
    ("temperature", -0.1),
    ("temperature", 1e400),
    ("top_p", 0),
    ("n", 0),
    ("n", 99),
    ("stop", ""),
    ("stop", ["a", "b", "c", "d", "e"]),
    ("seed", 2**70),
    ("top_logprobs", 3),
    ("stream_options", {"include_usage": True}),
    ("messages", []),
    ("messages", [{"role": "wizard", "content": "x"}]),
    ("messages", [{"role": "user"}]),
    ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
    ("model", ""),
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(live, field, value):
    error = refusal(live.http.post("/v1/chat/completions", content=json.dumps({**GOOD, field: value})))
    assert field in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("frequency_penalty", 0.5), ("logit_bias", {"5": 3}), ("response_format", {"type": "json_object"}), ("wings", 2)],
)
def test_what_is_not_supported_is_refused_by_name(live, field, value):
    error = refusal(live.http.post("/v1/chat/completions", json={**GOOD, field: value}))
    assert error["code"] == "unsupported_parameter"
    assert error["param"] == field


def test_what_changes_nothing_is_accepted(live):
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "response_format": {"type": "text"},
        "stop": None,
    }
    assert (
        live.http.post("/v1/chat/completions", json={**GOOD, **neutral, "user": "me", "store": False}).status_code
        == 200
    )


def test_tools_are_refused_where_the_template_drops_them(live):
    error = refusal(live.http.post("/v1/chat/completions", json={**GOOD, "tools": [FUNCTION]}))
    assert error["param"] == "tools"
    without = live.http.post("/v1/chat/completions", json={**GOOD, "tools": [FUNCTION], "tool_choice": "none"})
    assert without.status_code == 200


def test_a_schema_for_calls_is_refused_where_it_is_asked_for(live):
    for strict, status in ((True, 400), (False, 200)):
        tool = {"type": "function", "function": {**FUNCTION["function"], "strict": strict}}
        found = live.http.post("/v1/chat/completions", json={**GOOD, "tools": [tool], "tool_choice": "none"})
        assert found.status_code == status
        if status == 400:
            assert "strict: this server does not hold answers to a schema" in refusal(found)["message"]


def test_a_prompt_beyond_the_limit_is_refused_before_anything_is_generated(live):
    long = {**GOOD, "messages": [{"role": "user", "content": "word " * 400}]}
    assert refusal(live.http.post("/v1/chat/completions", json=long))["code"] == "context_length_exceeded"
    for field in ("max_tokens", "max_completion_tokens"):
        much = refusal(live.http.post("/v1/chat/completions", json={**GOOD, field: 201}))
        assert (much["code"], much["param"], field in much["message"]) == ("context_length_exceeded", field, True)


def test_text_that_leaves_nothing_to_keep_a_special_token_apart_is_refused(live):
    content = "<|im_end|>" + "".join(map(chr, range(0xE000, 0xF8FF)))
    body = json.dumps({**GOOD, "messages": [{"role": "user", "content": content}]}, ensure_ascii=False).encode()
    assert refusal(live.http.post("/v1/chat/completions", content=body))["code"] == "invalid_messages"


@pytest.mark.parametrize("prompt", ["", [], [[]], [10**6], [-1], [1, "a"], {"a": 1}])
def test_a_prompt_that_is_none_is_refused(live, prompt):
    refusal(live.http.post("/v1/completions", json={"model": "tuned", "prompt": prompt}))


def test_other_hosts_and_foreign_pages_are_kept_out(live):
    assert live.http.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
    assert live.http.get("/v1/models", headers={"Host": "localhost:1"}).status_code == 200
    for origin in ("https://evil.example", "null", "http://localhost:3000", "http://[", "http://127.0.0.1"):
        foreign = live.http.post("/v1/chat/completions", json=GOOD, headers={"Origin": origin})
        assert refusal(foreign)["code"] == "origin_not_allowed"
    assert live.http.post("/v1/chat/completions", json=GOOD, headers={"Origin": live.url}).status_code == 200


PAGE = "https://app.example:8443"
"""Of a host that `allowed_hosts` names where the server is `shared`."""


@pytest.fixture(scope="module")
def shared(tiny, tmp_path_factory):
    settings = Serve(port=0, allowed_hosts=("app.example",))
    path = tmp_path_factory.mktemp("shared") / "requests.sqlite"
    yield from serve(Engine({"tuned": tiny("tuned", 1)}, settings), settings, path)


def test_a_page_of_an_allowed_host_may_ask_first_and_read_the_answer(shared):
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}  # fmt: skip
    first = httpx.options(f"{shared.url}/v1/chat/completions", headers=asks)
    assert (first.status_code, first.content) == (204, b"")
    assert first.headers["access-control-allow-origin"] == PAGE
    assert "POST" in first.headers["access-control-allow-methods"]
    assert first.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
    for asked, status in ((GOOD, 200), ({**GOOD, "model": "x"}, 404), ({**GOOD, "stream": True}, 200)):
        answer = shared.http.post("/v1/chat/completions", json=asked, headers={"Origin": PAGE})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, PAGE)
        assert "Origin" in answer.headers["vary"]
    stranger = httpx.get(f"{shared.url}/v1/models", headers={"Origin": PAGE})
    assert (stranger.status_code, stranger.headers["access-control-allow-origin"]) == (401, PAGE)


def test_other_pages_are_told_no_when_they_ask(shared):
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    found = httpx.options(f"{shared.url}/v1/chat/completions", headers=asks)
    assert refusal(found)["code"] == "origin_not_allowed"
    assert "access-control-allow-origin" not in found.headers
    rebound = httpx.options(f"{shared.url}/v1/models", headers={**asks, "Origin": PAGE, "Host": "evil.example"})
    assert refusal(rebound)["code"] == "host_not_allowed"
    read = shared.http.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in read.headers


@pytest.mark.parametrize("scheme", ["bearer", "BEARER"])
def test_the_scheme_of_a_token_is_written_in_any_case(live, scheme):
    key = live.openai.api_key
    assert httpx.get(f"{live.url}/v1/models", headers={"Authorization": f"{scheme} {key}"}).status_code == 200
    assert httpx.get(f"{live.url}/v1/models", headers={"Authorization": f"Basic {key}"}).status_code == 401


def test_unknown_routes_and_methods_are_told_in_the_envelope(live):
    assert live.http.get("/v1/nothing").status_code == 404
    refusal(live.http.get("/v1/nothing"))
    refusal(live.http.get("/v1/chat/completions"))
    assert live.http.get("/openapi.json").status_code == 404


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
fields = [
    "messages",
    "prompt",
    "max_tokens",
    "n",
    "stop",
    "seed",
    "temperature",
    "top_p",
    "logprobs",
    "tools",
    "stream_options",
    "zz",
]


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(fields), values, max_size=3), chat=st.booleans())
def test_no_request_makes_the_server_fail(live, changes, chat):
    asked = GOOD if chat else {"model": "tuned", "prompt": "hi", "max_tokens": 1}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    response = live.http.post(path, content=json.dumps({**asked, **changes}).encode())
    if response.status_code != 200:
        refusal(response)

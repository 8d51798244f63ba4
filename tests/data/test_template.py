import copy
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from tunesmith.base import DataError, ModelError
from tunesmith.data.render import Renderer
from tunesmith.data.template import Template

TALK = [
    {"role": "system", "content": "<b> & é"},
    {"role": "user", "content": "a\n"},
    {"role": "assistant", "content": "b"},
]
USED = {
    "filters": "{{ messages | tojson }}{{ messages | tojson(indent=2, sort_keys=true) }}{{ messages | map(attribute='role') | join('|') }}",
    "loop controls": "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.content | trim }}{% break %}{% endfor %}",
    "namespace": "{% set n = namespace(found=false) %}{% for m in messages %}{% set n.found = true %}{% endfor %}{{ n.found }}",
    "white space": "{% if true %}\n  x\n  {% endif %}\n\n{%- for m in messages -%}\n {{ m.role }} \n{% endfor %}\n",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "absent": "{{ nothing }}{% if tools is none %}no tools{% endif %}{% if documents %}d{% endif %}{{ add_generation_prompt }}",
    "macro": "{% macro say(m) %}{{ m.role }}: {{ m['content'] }}{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
    "text": "{{ bos_token + 'x'.upper() + '%s' % 3 }}{{ \"a\\tb\" }}{{ messages[0].content.split(' ')[0] }}{{ messages[1:] | length }}",
    "dict": "{{ dict(a=1) }}{% for name, value in messages[0].items() %}{{ name }}={{ value }};{% endfor %}{{ strftime_now('%Y') }}",
}


@pytest.mark.parametrize("source", USED.values(), ids=USED)
def test_a_template_renders_as_in_transformers(source):
    given = {"tools": None, "documents": None, "add_generation_prompt": True, "bos_token": "<s>"}
    (expected,), _ = render_jinja_template([TALK], chat_template=source, **given)
    assert Template(source)([{"messages": TALK, **given}], "x") == [expected]


ENDLESS = {
    "loops": (
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "more than 0.5 s of the processor",
    ),
    "a power": ("{{ 10 ** (10 ** 9) }}", "more than 0.5 s of the processor"),
    "memory": ("{{ messages[0].role * 10 ** 10 }}", "more than 512 MiB"),
    "length": ("{{ messages[0].role * 7500000 }}", "more than 20,000,000 characters"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_does_not_end_is_ended_and_named(smollm_tokenizer, tmp_path, name):
    source, reason = ENDLESS[name]
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer.chat_template = "{% if messages[0].content == 'go' %}" + source + "{% endif %}{{ messages[0].content }}"
    tokenizer.save_pretrained(tmp_path)
    tokenizer.name_or_path = str(tmp_path)
    renderer = Renderer(tokenizer)

    def said(word):
        return renderer.rendered([(({"role": "user", "content": word},), True)])

    if name != "a power":  # it is computed when the template is compiled
        assert said("wait") == ["wait"]
    with pytest.raises(ModelError, match=rf"chat_template\.jinja: the chat template .*{reason}") as caught:
        said("go")
    assert "\n" not in str(caught.value)
    if name != "a power":
        assert said("again") == ["again"]  # another process took over


def test_a_process_that_was_ended_from_outside_is_not_blamed_on_the_template():
    template = Template("{{ messages[0].content }}")
    assert template([{"messages": TALK}], "x") == ["<b> & é"]
    template._process.kill()
    with pytest.raises(ModelError, match=r"x: the process that runs the chat template was ended .* \(signal 9\)"):
        template([{"messages": TALK}], "x")
    assert template([{"messages": TALK}], "x") == ["<b> & é"]


def test_what_a_template_is_given_and_gives_may_be_any_text():
    odd = '\ud800 \x00 \u2028 😀 \\ "'
    assert Template("{{ messages[0].content }}")([{"messages": [{"content": odd}]}], "x") == [odd]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('no systems here') }}", "no systems here"),
        ("{% include '/etc/hostname' %}", "no loader"),
        ("{{ ''.__class__.mro() }}", "unsafe"),
    ],
)
def test_a_template_s_refusal_is_an_error_of_the_row(source, said):
    with pytest.raises(DataError, match=f"cannot render it: .*{said}"):
        Template(source)([{"messages": TALK}], "x")


def test_the_process_of_a_template_has_no_keys_of_the_environment(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "0f3a9c77d2b14e5fa6")
    template = Template("{{ messages[0].content }}")
    assert template([{"messages": TALK}], "x") == ["<b> & é"]
    assert b"0f3a9c77d2b14e5fa6" not in Path(f"/proc/{template._process.pid}/environ").read_bytes()

"""Chats as tests render them: templates, messages, and what of a row is learnt."""

import copy

from tunesmith.data.render import Renderer

CHATML_WITH_TOOLS = (
    "{% if tools %}<|im_start|>system\nTools:{% for tool in tools %}\n{{ tool | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}\n<call>{{ call.function | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_2 = (
    "{% set offset = 0 %}{% set system = '' %}"
    "{% if messages[0].role == 'system' %}{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}{% set offset = 1 %}{% endif %}"
    "{% for message in messages[offset:] %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if message.role == 'user' %}{{ bos_token + '[INST] ' + (system if loop.first else '') + message.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + message.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"own": None, "chatml": CHATML_WITH_TOOLS, "llama-2": LLAMA_2}


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def renderer_with(template, tokenizer, **settings):
    """A renderer whose tokenizer is like another but has this template, or none."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = template
    return Renderer(own, **settings)


def learnt(renderer, row, number=0):
    """The text of what is learnt of one of a row's answers."""
    sequence = row.sequences[number]
    return renderer.tokenizer.decode(sequence.tokens[sequence.learn])

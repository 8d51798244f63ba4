"""Renderers that several files test."""

import pytest
from chats import CHATML_WITH_TOOLS, TEMPLATES, renderer_with


@pytest.fixture(scope="module", params=TEMPLATES)
def renderer(request, smollm_tokenizer):
    """With each template."""
    return renderer_with(TEMPLATES[request.param] or smollm_tokenizer.chat_template, smollm_tokenizer)


@pytest.fixture(scope="module")
def chatml(smollm_tokenizer):
    """With a template that shows tools and calls."""
    return renderer_with(CHATML_WITH_TOOLS, smollm_tokenizer)

"""Prompts: versioned files with inputs, roles, an answer form, examples, and what is said when nothing is known."""

from yunque.apps.prompts.asking import Answered, ask_prompt
from yunque.apps.prompts.definition import Example, Input
from yunque.apps.prompts.prompt import (
    Prompt,
    Rendered,
    add_prompt,
    hash_of,
    load_prompt,
    prompt_from_text,
    put_prompt,
    read_prompt,
)

__all__ = [
    "Answered",
    "Example",
    "Input",
    "Prompt",
    "Rendered",
    "add_prompt",
    "ask_prompt",
    "hash_of",
    "load_prompt",
    "prompt_from_text",
    "put_prompt",
    "read_prompt",
]

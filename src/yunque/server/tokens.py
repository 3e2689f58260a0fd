"""`/tokenize`, `/detokenize` and `/tokenizer_info`: a model's tokens, in the shapes that vLLM gave these paths.

They lie outside of /v1, where vLLM has them, and under it. A client that names no model means the only one there is.
"""

from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from yunque.errors import UserError
from yunque.generate.config import GenerationConfig, ToolFormat
from yunque.server.chat import FunctionTool, as_tool
from yunque.server.messages import ChatMessage, conversation
from yunque.server.parsing import refuse
from yunque.server.requests import Part, TokenId
from yunque.server.served import Target
from yunque.tokenizer import Tokenizer

_NAMED = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")


class TokenizeRequest(Part):
    """The body of /tokenize: a text, or a conversation as a model is asked it.

    With `add_special_tokens` (the default) a text gets the tokens that a completion of it begins with. A text that is
    exactly the name of a special token is that token, so that clients can learn its id; elsewhere names are text.
    """

    model: str | None = Field(default=None, min_length=1, max_length=200)
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, min_length=1, max_length=10_000)
    tools: list[FunctionTool] | None = Field(default=None, max_length=128)
    add_generation_prompt: Literal[True] | None = None
    continue_final_message: Literal[False] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None


class TokenizeBody(TypedDict):
    """The answer of /tokenize."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Part):
    """The body of /detokenize."""

    model: str | None = Field(default=None, min_length=1, max_length=200)
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class DetokenizeBody(TypedDict):
    """The answer of /detokenize."""

    prompt: str


def tokenized(target: Target, asked: TokenizeRequest) -> TokenizeBody:
    """The tokens of a text or a conversation; raises UserError for an app."""
    tokenizer, context = _tokens_of(target)
    if (asked.prompt is None) == (asked.messages is None):
        refuse("give either `prompt` or `messages`", "prompt")
    if asked.prompt is not None:
        ids = _text_ids(tokenizer, asked.prompt, asked.add_special_tokens is not False)
    else:
        ids = _conversation_ids(target, asked)
    names = [tokenizer.token_name(id) for id in ids] if asked.return_token_strs else None
    return {"count": len(ids), "max_model_len": context, "tokens": ids, "token_strs": names}


def detokenized(target: Target, asked: DetokenizeRequest) -> DetokenizeBody:
    """The text of tokens; special ones are shown by their names, as their makers' tokenizers do."""
    tokenizer, _ = _tokens_of(target)
    beyond = max(asked.tokens, default=0)
    if beyond >= tokenizer.vocab_size:
        refuse(f"tokens: there is no token {beyond}, the last is {tokenizer.vocab_size - 1}", "tokens")
    special = {id: name for name, id in tokenizer.special_tokens.items()}
    texts: list[str] = []
    run: list[int] = []
    for id in asked.tokens:
        if id in special:
            texts += [tokenizer.decode(run), special[id]]
            run = []
        else:
            run.append(id)
    return {"prompt": "".join([*texts, tokenizer.decode(run)])}


def tokenizer_info(target: Target) -> dict[str, Any]:
    """What a tokenizer_config.json would say: the class, the special tokens by their roles, the chat template."""
    tokenizer, context = _tokens_of(target)
    named: dict[str, str | None] = {name: tokenizer.named_token(name) for name in _NAMED}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "vocab_size": tokenizer.vocab_size,
        "model_max_length": context,
        **named,
        "special_tokens": tokenizer.special_tokens,
        "chat_template": tokenizer.chat_template,
    }


def _tokens_of(target: Target) -> tuple[Tokenizer, int | None]:
    """A target's tokenizer, and how many tokens it can read."""
    from yunque.server.served_model import ServedEncoder, ServedModel

    if isinstance(target, ServedModel | ServedEncoder) and (local := target.local):
        return local.tokenizer, local.context
    raise UserError(f"{target.ref} has no tokens of its own")


def _text_ids(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    if not add_special_tokens:
        special = tokenizer.special_tokens.get(text)
        return tokenizer.encode(text) if special is None else [special]
    return tokenizer.encode_prompt(text)


def _conversation_ids(target: Target, asked: TokenizeRequest) -> list[int]:
    from yunque.server.served_model import ServedModel

    if not isinstance(target, ServedModel) or target.local is None:
        raise UserError(f"{target.ref} reads no conversations")
    tools = tuple(as_tool(tool.function) for tool in asked.tools or ())
    config = GenerationConfig(format=ToolFormat(tools=tools) if tools else None)
    return target.local.encode(conversation(asked.messages or []), config)

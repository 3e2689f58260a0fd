"""What a model is asked and taught is the same in training, scoring and serving, for every family."""

import json
from dataclasses import replace

import pytest
import torch
from small_writers import FAMILIES, READ_A_SOURCE, ROWS, put_writer, settings_of, tokenizer, writer
from tokenizers import Tokenizer as AnyTokenizer
from tokenizers import decoders, models, pre_tokenizers
from torch.testing import assert_close

from yunque.generate.config import GenerationConfig
from yunque.generate.conversation import Written, encode_answer, encode_prompt
from yunque.llm import Message
from yunque.llm.local import LocalModel
from yunque.server.served import Served, Settings
from yunque.tokenizer import Tokenizer
from yunque.tokenizer.alphabet import LETTER_OF_BYTE, LETTERS
from yunque.train import TuningRows, tune
from yunque.train.objectives.answers import answer_losses
from yunque.train.tuning_rows import encode_rows, is_asked_as_taught
from yunque.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace.open(tmp_path / "ws")


def spied(monkeypatch, opened: LocalModel) -> list[tuple[list[int], list[int]]]:
    """What goes into the engine from now on: prompts, and answers that are scored."""
    seen: list[tuple[list[int], list[int]]] = []
    stream, score = opened.engine.stream, opened.engine.score
    monkeypatch.setattr(
        opened.engine, "stream", lambda ids, *how, **more: seen.append((ids, [])) or stream(ids, *how, **more)
    )
    monkeypatch.setattr(
        opened.engine, "score", lambda ids, more, *how: seen.append((ids, more)) or score(ids, more, *how)
    )
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_training_scoring_and_serving_use_the_same_ids(workspace, monkeypatch, family) -> None:
    made = put_writer(workspace, family)
    said = [Message("user", ROWS[0].question)]
    with Served(workspace).use(made.ref) as served:
        opened = served.model
        seen = spied(monkeypatch, opened)
        list(served.chat(said, Settings(GenerationConfig(max_new_tokens=2), True)))
    (example,) = encode_rows(opened.engine.tokenizer, opened.engine.model, ROWS[:1], None, 64, None)
    opened.score(said, [ROWS[0].answer])
    assert seen == [(example.written.prompt, []), (example.written.prompt, example.written.answer)]
    assert example.written.answer[-1] == opened.engine.tokenizer.end_id
    # Negative control: another conversation is other ids; so is this one in the format of the other kind of model.
    opened.score([*said, Message("assistant", "sí"), Message("user", "¿Y?")], [ROWS[0].answer])
    assert seen[-1][0] != example.written.prompt
    other = writer("llama" if family in READ_A_SOURCE else "t5", tokenizer())
    assert (
        encode_prompt(opened.engine.tokenizer, other, [("user", ROWS[0].question)]) != example.written.prompt
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_the_answers_and_where_they_end(workspace, family) -> None:
    base = put_writer(workspace, family)
    rows, epochs = ROWS, 50
    if family.startswith("rnn"):
        # A recurrent model takes hundreds of steps to look back over a sentence: it is asked less, for longer.
        rows, epochs = [replace(each, instruction=each.answer, input="") for each in ROWS[:2]], 300
    settings = settings_of(epochs=epochs, optimizer={"learning_rate": 1e-2, "weight_decay": 0.0})
    tuned = tune(workspace, base.ref, [TuningRows(rows)], settings)
    opened = LocalModel.open(workspace, tuned.ref)
    for each in rows:
        said = [Message("user", each.question)]
        answer = opened.chat(said, GenerationConfig(max_new_tokens=8))
        assert (answer.text, answer.finish_reason) == (each.answer, "stop")
        right, wrong = opened.score(said, [each.answer, {"sí": "no", "no": "sí"}[each.answer]])
        assert right > wrong


def foreign(*, pad: bool, closing: bool) -> dict[str, str]:
    """The files of a foreign tokenizer, with a pad token or none; its template writes the end of answers or not."""
    words = {
        word: number for number, word in enumerate(["[UNK]", "<eos>", "<pad>", "hola", "sí", "no", "U", "A"])
    }
    inner = AnyTokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.add_special_tokens(["<eos>", "<pad>"])
    end = "{{ eos_token }}" if closing else ""
    template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}U {{ m['content'] }} A {% else %}{{ m['content'] }}"
        + end
        + "{% endif %}{% endfor %}"
    )
    told = {"eos_token": "<eos>", "chat_template": template} | ({"pad_token": "<pad>"} if pad else {})
    return {"tokenizer.json": inner.to_str(), "tokenizer_config.json": json.dumps(told)}


@pytest.mark.parametrize("closing", [True, False])
@pytest.mark.parametrize("pad", [True, False])
def test_the_end_is_learned_where_it_pads_too_and_where_the_template_does_not_write_it(
    tmp_path, pad, closing
) -> None:
    paths = {}
    for name, content in foreign(pad=pad, closing=closing).items():
        paths[name] = tmp_path / name
        paths[name].write_text(content)
    tokens = Tokenizer.of_files(paths)
    assert (tokens.pad_id == tokens.end_id) != pad
    for family in ("llama", "t5"):
        net = writer(family, tokens)
        short = encode_answer(tokens, net, [("user", "hola")], "sí")
        assert short.answer == [*tokens.encode("sí"), tokens.end_id]
        long = encode_answer(tokens, net, [("user", "hola hola")], "no no no sí")
        # What fills up the batch counts for nothing, whatever its number is.
        (alone,) = answer_losses(net, [short])
        assert_close(answer_losses(net, [short, long])[0], alone, rtol=1e-4, atol=1e-5)
        # The end counts: a model that finds it likelier has a smaller loss. The control is an answer without it.
        longer, without = (
            Written(short.prompt, [*short.answer, tokens.end_id]),
            Written(short.prompt, short.answer[:-1]),
        )
        for wrong in (longer, without):
            with pytest.raises(AssertionError):
                assert_close(answer_losses(net, [wrong])[0], alone, rtol=1e-4, atol=1e-5)
        gradient = torch.autograd.grad(alone, net.embedding.weight if family == "t5" else net.head.weight)[0]
        assert gradient[tokens.end_id].abs().max() > 0


def blank_before_answers(colon: str) -> Tokenizer:
    """A tokenizer for which ": " is one token, with a template that puts an answer behind `colon`."""
    vocab = {letter: number for number, letter in enumerate(sorted(LETTERS))}
    blank = LETTER_OF_BYTE[32]
    inner = AnyTokenizer(models.BPE(vocab={**vocab, ":" + blank: 256}, merges=[(":", blank)]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<eos>"])
    asked, answered = "{{ m['content'] + '" + colon + "' }}", "{{ ' ' + m['content'] + '<eos>' }}"
    return Tokenizer(inner).with_chat_template(
        "{% for m in messages %}{% if m['role'] == 'user' %}"
        + asked
        + "{% else %}"
        + answered
        + "{% endif %}{% endfor %}"
    )


@pytest.mark.parametrize(("colon", "same"), [(":", False), ("=", True)])
def test_a_template_that_joins_question_and_answer_is_noticed(colon, same) -> None:
    tokens = blank_before_answers(colon)
    assert is_asked_as_taught(tokens, writer("llama", tokens), ROWS[0]) == same

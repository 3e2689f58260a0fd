"""Adapters chosen for each text: mixed in one batch, loaded and dropped while others are written."""

import copy
from pathlib import Path

import pytest
import torch
from runners import Writer, alone, prompts, small_model, write
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.generate.runner import Work
from yunque.generate.search import greedy_search
from yunque.generate.torch_runner import TorchRunner, torch_runner
from yunque.model import LanguageModel
from yunque.model.adapter_files import load_adapter, save_adapter
from yunque.model.lora import LoraSettings, add_lora, lora_adapters, lora_names, select_adapter
from yunque.model.prompt_tuning import PromptSettings, add_prompt

LENGTH = 12
PROMPTS = prompts(12)
CASES = [(name, None) for name in ("llama", "mistral", "qwen2", "gpt2", "falcon", "t5", "transformer", "rnn")]
CASES += [(name, kind) for name in ("llama", "t5") for kind in ("int8", "int4")]


def adapter(folder: Path, base: LanguageModel, seed: int, rank: int = 4) -> Path:
    """An adapter of this model on disk, with random numbers."""
    model, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    targets = ("head",) if base.config.model_type == "rnn" else "all-linear"
    add_lora(model, LoraSettings(rank=rank, targets=targets), generator)
    with torch.no_grad():
        for part in lora_adapters(model).values():
            part.b_OR.copy_(torch.randn(part.b_OR.shape, generator=generator) * 0.2)
    folder.mkdir()
    for name, content in save_adapter(model).items():
        (folder / name).write_bytes(content)
    return folder


def tuned(base: LanguageModel, folder: Path | None) -> LanguageModel:
    """The model with that adapter alone."""
    model = copy.deepcopy(base)
    return model if folder is None else load_adapter(model, folder).eval()


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_mixed_batch_gives_what_each_adapter_gives_by_itself(tmp_path, name: str, kind: str | None) -> None:
    base = small_model(name, kind)
    folders = {
        "es": adapter(tmp_path / "es", base, 1),
        "en": adapter(tmp_path / "en", base, 2, rank=3),
        None: None,
    }
    single = {key: tuned(base, folder) for key, folder in folders.items()}
    keys = [("es", "en", None)[number % 3] for number in range(len(PROMPTS))]
    expected = [greedy_search(single[key], [ids], LENGTH)[0] for key, ids in zip(keys, PROMPTS, strict=True)]
    runner = torch_runner(base)
    for key, folder in folders.items():
        if folder is not None:
            runner.load_adapter(key, folder)
    writers = [
        Writer(ids, LENGTH, key, joins=number % 4)
        for number, (key, ids) in enumerate(zip(keys, PROMPTS, strict=True))
    ]
    assert write(runner, writers, chunk=16) == expected
    for key, writer in zip(keys[:6], writers, strict=False):
        by_itself = alone(torch_runner(single[key]), writer.prompt, LENGTH)
        assert_close(torch.stack(writer.scores), torch.stack(by_itself.scores), atol=1e-5, rtol=0)
    # Negative control: swapped adapters give something else.
    swapped = {"es": "en", "en": "es", None: "es"}
    others = [Writer(ids, LENGTH, swapped[key]) for key, ids in zip(keys, PROMPTS, strict=True)]
    assert sum(mine != other for mine, other in zip(expected, write(runner, others), strict=True)) >= 6


def test_the_model_is_as_it_was_when_its_adapters_are_dropped(tmp_path) -> None:
    base = small_model("llama")
    before = greedy_search(base, PROMPTS[:3], LENGTH)
    runner = torch_runner(base)
    runner.load_adapter("es", adapter(tmp_path / "es", base, 1))
    alone(runner, PROMPTS[0], LENGTH, "es")
    # Whoever uses the model itself has the base.
    assert greedy_search(base, PROMPTS[:3], LENGTH) == before
    runner.drop_adapter("es")
    assert lora_names(base) == ()
    assert greedy_search(base, PROMPTS[:3], LENGTH) == before


def test_adapters_come_and_go_while_texts_are_written(tmp_path) -> None:
    base = small_model("llama")
    first, second = adapter(tmp_path / "1", base, 1), adapter(tmp_path / "2", base, 2)
    expected = {
        folder: greedy_search(tuned(base, folder), PROMPTS[:1], LENGTH)[0] for folder in (None, first, second)
    }
    assert len({tuple(ids) for ids in expected.values()}) == 3
    runner, prompt = torch_runner(base), PROMPTS[0]
    written: dict[str, list[int]] = {}
    pending: dict[str, tuple] = {}

    def begin(key: str, name: str | None) -> None:
        text = runner.open(prompt, LENGTH, name)
        pending[key] = text, text.unread
        written[key] = []

    def step() -> None:
        works = [Work(text, list(ids)) for text, ids in pending.values()]
        for key, scores in zip(list(pending), runner.run(works), strict=True):
            written[key].append(int(scores[-1].argmax()))
            pending[key] = pending[key][0], written[key][-1:]
            if len(written[key]) == LENGTH:
                pending.pop(key)[0].close()

    begin("base", None)
    step()
    runner.load_adapter("es", first)
    begin("first", "es")
    step()
    runner.drop_adapter("es")
    with pytest.raises(UserError, match="no adapter 'es' is loaded"):
        runner.open(prompt, LENGTH, "es")
    assert len(lora_names(base)) == 1  # a text uses it still
    runner.load_adapter("es", second)
    begin("second", "es")
    while pending:
        step()
    assert written == {"base": expected[None], "first": expected[first], "second": expected[second]}
    assert len(lora_names(base)) == 1  # the first went with its last text
    runner.drop_adapter("es")
    assert lora_names(base) == ()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_beginning_is_never_shared_across_adapters(tmp_path, name: str) -> None:
    base, prompt = small_model(name), PROMPTS[0]
    first, second = adapter(tmp_path / "1", base, 1), adapter(tmp_path / "2", base, 2)
    runner = torch_runner(base)
    assert isinstance(runner, TorchRunner)
    runner.load_adapter("es", first)
    runner.load_adapter("en", second)
    expected = {
        key: greedy_search(tuned(base, one), [prompt], LENGTH)[0]
        for key, one in (("es", first), (None, None))
    }
    for key in ("es", None):
        assert alone(runner, prompt, LENGTH, key).written == expected[key]
    assert runner.pool.tokens_found == 0
    assert runner.open(prompt, 2, "en").length == 0
    runner.drop_adapter("es")
    runner.load_adapter("es", second)
    assert runner.open(prompt, 2, "es").length == 0  # another adapter of the same name
    # Negative control: of the same adapter it is.
    assert runner.open(prompt, 2, None).length == 48


def test_forks_keep_the_adapter_of_their_text(tmp_path) -> None:
    base = small_model("llama")
    runner = torch_runner(base)
    runner.load_adapter("es", adapter(tmp_path / "es", base, 1))
    text = runner.open([5, 6, 7], 6, "es")
    twin = text.fork()
    runner.drop_adapter("es")
    text.close()
    single = torch_runner(tuned(base, tmp_path / "es"))
    (found,) = runner.run([Work(twin, [5, 6, 7])])
    (expected,) = single.run([Work(single.open([5, 6, 7], 6), [5, 6, 7])])
    assert_close(found, expected, atol=1e-5, rtol=0)
    twin.close()
    assert lora_names(base) == ()


def test_texts_without_a_name_go_through_the_adapter_that_the_model_came_with(tmp_path) -> None:
    base = small_model("llama")
    first, second = adapter(tmp_path / "1", base, 1), adapter(tmp_path / "2", base, 2)
    model = tuned(base, first)
    expected = [greedy_search(tuned(base, one), PROMPTS[:1], LENGTH)[0] for one in (first, second)]
    runner = torch_runner(model)
    runner.load_adapter("en", second)
    writers = [Writer(PROMPTS[0], LENGTH), Writer(PROMPTS[0], LENGTH, "en")]
    assert write(runner, writers) == expected
    runner.drop_adapter("en")
    assert alone(runner, PROMPTS[0], LENGTH).written == expected[0]


def test_the_whole_model_can_be_that_of_an_adapter_for_a_while(tmp_path) -> None:
    base = small_model("llama")
    runner = torch_runner(base)
    runner.load_adapter("es", adapter(tmp_path / "es", base, 1))
    plain = greedy_search(base, PROMPTS[:2], LENGTH)
    with runner.adapters.selected("es"):
        assert greedy_search(base, PROMPTS[:2], LENGTH) == greedy_search(
            tuned(base, tmp_path / "es"), PROMPTS[:2], LENGTH
        )
    assert greedy_search(base, PROMPTS[:2], LENGTH) == plain


def test_what_cannot_be_loaded_is_told_and_changes_nothing(tmp_path) -> None:
    base = small_model("llama")
    runner = torch_runner(base)
    good = adapter(tmp_path / "good", base, 1)
    runner.load_adapter("es", good)
    with pytest.raises(UserError, match="'es' is loaded already"):
        runner.load_adapter("es", good)
    with pytest.raises(UserError, match="no adapter 'fr' is loaded \\(there are es\\)"):
        runner.drop_adapter("fr")
    prompted = add_prompt(copy.deepcopy(small_model("llama")), PromptSettings(num_virtual_tokens=3))
    (tmp_path / "prompt").mkdir()
    for name, content in save_adapter(prompted).items():
        (tmp_path / "prompt" / name).write_bytes(content)
    with pytest.raises(UserError, match="only a LoRA is put beside others"):
        runner.load_adapter("p", tmp_path / "prompt")
    larger = small_model("llama", hidden_size=64)
    with pytest.raises(UserError, match="for this model"):
        runner.load_adapter("other", adapter(tmp_path / "other", larger, 1))
    with pytest.raises(UserError, match="no such folder"):
        runner.load_adapter("absent", tmp_path / "absent")
    assert runner.adapters.names == ("es",)
    expected = greedy_search(tuned(small_model("llama"), good), PROMPTS[:1], LENGTH)[0]
    assert alone(runner, PROMPTS[0], LENGTH, "es").written == expected
    assert (
        alone(runner, PROMPTS[0], LENGTH).written
        == greedy_search(small_model("llama"), PROMPTS[:1], LENGTH)[0]
    )


def test_rows_of_a_batch_can_still_be_given_adapters_by_hand(tmp_path) -> None:
    base = small_model("llama")
    folder = adapter(tmp_path / "es", base, 1)
    model = tuned(base, folder)
    ids = torch.tensor([PROMPTS[0][:9]] * 3)
    select_adapter(model, ["default", None, "default"])
    rows = model(ids)
    select_adapter(model, None)
    assert_close(rows[1], model(ids)[1], atol=1e-6, rtol=0)
    assert_close(rows[0], rows[2])
    assert not torch.allclose(rows[0], rows[1], atol=1e-3)

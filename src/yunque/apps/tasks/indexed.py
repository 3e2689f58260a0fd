"""The task `ask` over an index: the best passages are the document, and the answer says which of them it rests on."""

from dataclasses import replace
from typing import Any

from yunque.apps.retrieval.index import Index
from yunque.apps.tasks.definition import Task, shipped_task
from yunque.apps.tasks.running import TaskAnswer, run_task
from yunque.llm.face import LanguageModel

_BETWEEN = "\n\n"


def ask_index(
    question: str,
    index: Index,
    model: LanguageModel,
    top_k: int = 6,
    task: Task | None = None,
    **options: Any,
) -> TaskAnswer:
    """An answer from the `top_k` best passages; `value["source"]` is the file and place of the quotation.

    Floors, citations of several passages and guards are an app's (`yunque ask`). `options` are those of `run_task`.
    """
    hits = index.search(question, top_k)
    document = _BETWEEN.join(hit.passage.text for hit in hits) or "-"
    chosen = task or shipped_task("ask")
    answer = run_task(chosen, model, {"question": question, "document": document}, **options)
    source, start = None, answer.value["start"]
    if answer.value["known"]:
        passed = 0
        for hit in hits:
            length = len(hit.passage.text) + len(_BETWEEN)
            if passed <= start < passed + length:
                source = {"file": hit.passage.file, "place": hit.passage.locator, "index": index.ref}
                break
            passed += length
    value = {**answer.value, "source": source, "start": None, "end": None}
    told = f"{answer.text} ({source['file']}, {source['place']})" if source else answer.text
    return replace(answer, value=value, text=told)

"""The tasks of Honovich et al. 2022 (arXiv:2205.10782) as a collection, under instructions of our own."""

import json
import tempfile
from pathlib import Path

import yaml

from yunque.data.task_collections import Task, read_tasks
from yunque.errors import UserError

# The wording of each task, twice; `{input}` is the text that it is about.
_ASKED = {
    "active_to_passive": (
        "Put this sentence in the passive: {input}",
        "{input} Say it in the passive voice.",
    ),
    "antonyms": ("What is the opposite of {input}?", "Write a word that means the contrary: {input}"),
    "diff": ("Subtract the second number from the first: {input}", "{input} What is the difference?"),
    "first_word_letter": (
        "What is the first letter of {input}?",
        "{input} Write the letter that it begins with.",
    ),
    "larger_animal": ("Which animal is larger: {input}?", "{input} Name the bigger of the two animals."),
    "letters_list": ("Spell {input}.", "Write the letters of {input} with blanks between them."),
    "negation": ("Deny this sentence: {input}", "{input} Say that it is not so."),
    "num_to_verbal": ("Write {input} in words.", "How is the number {input} read aloud?"),
    "orthography_starts_with": (
        "Which words of the sentence begin with the letter in brackets? {input}",
        "{input} Write the words that start with that letter.",
    ),
    "rhymes": ("Write a word that rhymes with {input}.", "What rhymes with {input}?"),
    "second_word_letter": ("What is the second letter of {input}?", "{input} Write the letter in place two."),
    "sentence_similarity": (
        "Do these sentences say the same? {input}",
        "{input} How alike are they, from 0 to 5?",
    ),
    "sentiment": ("Is this review positive or negative? {input}", "{input} Did the writer like it?"),
    "singular_to_plural": ("Write the plural of {input}.", "One {input}, two"),
    "sum": ("Add these numbers: {input}", "{input} What is their sum?"),
    "synonyms": ("Write a word that means the same as {input}.", "What is another word for {input}?"),
    "taxonomy_animal": ("Which of these are animals? {input}", "{input} Write the animals only."),
    "translation_en-de": ("Say {input} in German.", "What is the German word for {input}?"),
    "translation_en-es": ("Say {input} in Spanish.", "What is the Spanish word for {input}?"),
    "translation_en-fr": ("Say {input} in French.", "What is the French word for {input}?"),
    "word_in_context": ("Is the word used in the same sense? {input}", "{input} Same meaning or not?"),
}


def read_instruction_induction(folder: Path, most_rows: int) -> list[Task]:
    """The tasks that have an input and an output, at most so many rows of each. Raises UserError where none is."""
    with tempfile.TemporaryDirectory() as made:
        for name, asked in _ASKED.items():
            path = folder / "induce" / f"{name}.json"
            if path.is_file():
                examples = json.loads(path.read_text(encoding="utf-8"))["examples"].values()
                _write(Path(made), name.replace("_", "-"), asked, list(examples)[:most_rows])
        if not any(Path(made).iterdir()):
            raise UserError(f"--data: {folder} holds neither TASK.yaml files nor induce/TASK.json files")
        return read_tasks(Path(made))


def _write(folder: Path, name: str, asked: tuple[str, ...], examples: list[dict[str, str]]) -> None:
    about = {
        "task": name,
        "cluster": name,
        "language": "en",
        "fields": ["input", "output"],
        "answer": "{output}",
        "labels": None,
        "templates": list(asked),
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(about, sort_keys=False), encoding="utf-8")
    rows = {
        (one["input"], one["output"]) for one in examples if one["input"].strip() and one["output"].strip()
    }
    lines = [
        json.dumps({"input": first, "output": second}, ensure_ascii=False) for first, second in sorted(rows)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

"""The report of a tuning as sentences and tables: what the terminal and the Markdown file have in common."""

from collections.abc import Sequence
from typing import Any

from yunque.train.cost import Cost

COLUMNS = ("task", "rows", "chance", "before", "after", "change")


def task_rows(lines: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row of cells (see COLUMNS) for each task and language; ROUGE-L is in hundredths, as accuracy is."""
    return [
        (
            f"{line['task']} {line['language']}" + (" (ROUGE-L)" if line["metric"] == "rougeL" else ""),
            str(line["rows"]),
            f"{line['chance']:.0%}" if "chance" in line else "",
            _value(line, "before"),
            _value(line, "after"),
            f"{100 * line['change']:+.1f} ({100 * line['low']:+.1f} to {100 * line['high']:+.1f})",
        )
        for line in lines
    ]


def _value(line: dict[str, Any], when: str) -> str:
    measured = line[when]
    if line["metric"] == "accuracy":
        return f"{100 * measured['accuracy']:.1f} ({100 * measured['low']:.0f}–{100 * measured['high']:.0f})"
    return f"{100 * measured[line['metric']]:.1f}"


def learnt(report: dict[str, Any]) -> str:
    """What became of the tasks that were tuned on, or of the pairs or the reward that was learned from."""
    if report["method"] != "tuning":
        return _aligned(report["aligned"])
    if report["accuracy"] is None:
        return "Learnt: not measured, no held-out row is of a task that was tuned on (give such rows with --held-out)"
    return f"Learnt: {_accuracy(report['accuracy'])}"


def _aligned(figures: dict[str, Any]) -> str:
    parts = []
    if "held_out_accuracy" in figures:
        parts.append(
            f"the better answer of {figures['held_out_accuracy']:.1%} of {figures['held_out_rows']} held-out pairs "
            f"is preferred (margin {figures['held_out_margin']:.2f})"
        )
    if "reward_after" in figures:
        parts.append(
            f"mean reward {figures['reward_before']:.3f} before, {figures['reward_after']:.3f} after "
            f"({figures['measured_on']})"
        )
    if "kl" in figures:
        parts.append(f"{figures['kl']:.2f} nats an answer from the reference")
    return f"Learnt: {'; '.join(parts) or 'not measured, no row was held out'}"


def forgotten(report: dict[str, Any]) -> list[str]:
    """What became of other tasks and of general text, a sentence each; said too where it is not known."""
    others = report["others"]
    sentences = [
        f"Other tasks: {_accuracy(others['accuracy'])}"
        if others
        else "Other tasks: not measured, the base is not known to have learned any (name some with --other)"
    ]
    for text in report["general"]:
        of = f"{text['tokens']:,} tokens" + (" of spans" if text["of"] == "spans" else "")
        sentences.append(
            f"Forgotten: loss on {text['data']} ({text['split']}, {of}) "
            f"{text['before']:.3f} before, {text['after']:.3f} after ({text['forgotten']:+.3f})"
        )
    if report["general_not_measured"]:
        sentences.append(f"Forgotten: not measured on text: {report['general_not_measured']}")
    elif not report["general"]:
        sentences.append(
            "Forgotten: not measured on text: no dataset with a test split (name one with --general)"
        )
    return sentences


def cost(report: dict[str, Any]) -> str:
    """What the tuning cost."""
    spent = dict(report["cost"])
    measuring = spent.pop("measuring_seconds")
    return f"Cost: {Cost(**spent).sentence()}; measuring took {measuring:,.1f} s more"


def lineage(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What it is, its reference and its hash, for everything that the tuning comes from."""
    found = report["lineage"]
    named = [("base", found["base"]), *(("data", each) for each in found["data"])]
    named += [("judge", each) for each in found["judges"]]
    if found["adapter"] and found["adapter"] != found["model"]:
        named.append(("adapter", found["adapter"]))
    named += [("result", found["model"]), *(("measured on", each) for each in found["measured_on"])]
    return [(what, each["ref"], each["hash"]) for what, each in named]


def _accuracy(total: dict[str, Any]) -> str:
    return (
        f"accuracy {total['before']:.1%} before, {total['after']:.1%} after; "
        f"change {total['change']:+.1%} (95 %: {total['low']:+.1%} to {total['high']:+.1%}, {total['rows']} rows)"
    )


def markdown(report: dict[str, Any]) -> str:
    """The report as a Markdown file."""
    method = "Tuning" if report["method"] == "tuning" else report["method"].upper()
    parts = [f"# {method} of {report['base']}: {report['model']}", learnt(report)]
    if report["tasks"]:
        parts.append(_table(report["tasks"]))
    parts += ["## Forgotten", "\n".join(f"- {sentence}" for sentence in forgotten(report))]
    if report["others"]:
        parts.append(_table(report["others"]["tasks"]))
    rows = "\n".join(f"| {what} | {ref} | `{digest}` |" for what, ref, digest in lineage(report))
    commit = report["lineage"]["environment"].get("git_commit")
    parts += [
        "## Cost",
        cost(report),
        "## Lineage",
        f"Run `{report['lineage']['run']}`" + (f", commit `{commit}`" if commit else ""),
        f"| | reference | hash |\n|---|---|---|\n{rows}",
    ]
    notes = "Values are per cent with 95 % intervals (bootstrap); a change is paired, row by row."
    return "\n\n".join([*parts, notes]) + "\n"


def _table(lines: Sequence[dict[str, Any]]) -> str:
    rows = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *task_rows(lines)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)

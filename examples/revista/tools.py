"""The last step of the chain: what the three models made of a paper, as one text."""

from typing import Any

_WORDS = {
    "es": ("Publicable", "No publicable", "inventado", "falta"),
    "en": ("May be published", "May not be published", "invented", "left out"),
}


def page(review: dict[str, Any], extract: dict[str, Any], summarize: str) -> str:
    """The summary, and below it what the review says."""
    yes, no, invented, left_out = _WORDS[extract["language"]]
    lines = [summarize, "", yes if review["publish"] else no]
    lines += [f"- {invented}: {one}" for one in review["invented"]]
    lines += [f"- {left_out}: {one}" for one in review["left_out"]]
    return "\n".join(lines)

"""What temperature, top-k and top-p do to the distribution of the next token.

Shapes: V vocab_size. The arithmetic is that of generation (`yunque.generate.sampling`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from yunque.configuration import resolve
from yunque.errors import UserError
from yunque.generate.config import GenerationConfig
from yunque.generate.sampling import next_token_probabilities
from yunque.generate.state import open_state
from yunque.lab.opening import Opened
from yunque.lab.pictures import BLUE, GREY, label, new_figure, plain_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NO_TOKENS = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Distribution:
    """The next token at one temperature: `all_V` before top-k and top-p, `kept_V` after them, each summing to 1.

    Entropies are in bits: 2 to that power is how many equally likely tokens would be as uncertain.
    """

    temperature: float
    all_V: Tensor
    kept_V: Tensor

    @property
    def tokens(self) -> int:
        """How many tokens can be drawn before the cut: marks of a chat format never are."""
        return int((self.all_V > 0).sum())

    @property
    def tokens_kept(self) -> int:
        """How many tokens can still be drawn."""
        return int((self.kept_V > 0).sum())

    @property
    def cut_away(self) -> float:
        """The probability that top-k and top-p took from the tokens they cut."""
        return max(0.0, 1.0 - float(self.all_V[self.kept_V > 0].sum()))

    @property
    def entropy(self) -> float:
        """Of the whole distribution."""
        return entropy(self.all_V)

    @property
    def entropy_kept(self) -> float:
        """Of what is drawn from."""
        return entropy(self.kept_V)


def entropy(probabilities_V: Tensor) -> float:
    """Shannon's entropy in bits."""
    likely = probabilities_V[probabilities_V > 0].double()
    return max(0.0, -float((likely * likely.log2()).sum()))


def distributions(
    logits_V: Tensor, temperatures: Sequence[float], top_k: int = 0, top_p: float = 1.0
) -> list[Distribution]:
    """The distribution of the next token at each temperature; 0 is greedy, all of it on the likeliest token.

    Raises UserError for settings that generation would not take either.
    """
    if not temperatures:
        raise UserError("name at least one temperature, such as 0.7")
    return [_at(logits_V, temperature, top_k, top_p) for temperature in temperatures]


def _at(logits_V: Tensor, temperature: float, top_k: int, top_p: float) -> Distribution:
    config = resolve(GenerationConfig, temperature=temperature, top_k=top_k, top_p=top_p)
    if temperature == 0:
        certain_V = torch.zeros_like(logits_V)
        certain_V[logits_V.argmax()] = 1.0
        return Distribution(temperature, certain_V, certain_V)
    # So cold that dividing by it would overflow: the largest score is moved to 0, which changes no probability.
    logits_V = logits_V - logits_V.max()
    plain = config.model_copy(update={"top_k": 0, "top_p": 1.0})
    return Distribution(
        temperature,
        next_token_probabilities(logits_V, _NO_TOKENS, plain),
        next_token_probabilities(logits_V, _NO_TOKENS, config),
    )


@dataclass(frozen=True)
class NextToken:
    """The distributions after a prompt, and the likeliest tokens in their order (the same at every temperature)."""

    model: str
    prompt: str
    distributions: tuple[Distribution, ...]
    token_ids: tuple[int, ...]
    labels: tuple[str, ...]
    top_k: int
    top_p: float

    def as_dict(self) -> dict[str, Any]:
        """Everything but the tokens that are not among the likeliest ones, for JSON."""
        return {
            "model": self.model,
            "prompt": self.prompt,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "temperatures": [
                {
                    "temperature": one.temperature,
                    "entropy_bits": one.entropy,
                    "entropy_bits_kept": one.entropy_kept,
                    "tokens": one.tokens,
                    "tokens_kept": one.tokens_kept,
                    "cut_away": one.cut_away,
                    "likeliest": [
                        {
                            "id": id,
                            "token": name,
                            "probability": float(one.all_V[id]),
                            "kept": float(one.kept_V[id]),
                        }
                        for id, name in zip(self.token_ids, self.labels, strict=True)
                    ],
                }
                for one in self.distributions
            ],
        }


def likeliest(logits_V: Tensor, count: int) -> list[int]:
    """The ids of the `count` highest scores, highest first."""
    order = torch.sort(logits_V, descending=True, stable=True).indices[:count]
    return [int(id) for id in order if math.isfinite(float(logits_V[id]))]


def next_token(
    opened: Opened,
    prompt: str,
    temperatures: Sequence[float],
    top_k: int = 0,
    top_p: float = 1.0,
    shown: int = 12,
) -> NextToken:
    """What may come after `prompt`, at each temperature, with the `shown` likeliest tokens by name.

    An encoder-decoder reads the prompt and is asked for the first token of its answer. Raises UserError for a model
    that writes no text, an empty prompt and one that does not fit.
    """
    logits_V = next_logits(opened, prompt)
    found = distributions(logits_V, temperatures, top_k, top_p)
    ids = likeliest(logits_V, shown)
    labels = tuple(opened.label(id) for id in ids)
    return NextToken(opened.name, prompt, tuple(found), tuple(ids), labels, top_k, top_p)


@torch.inference_mode()
def next_logits(opened: Opened, prompt: str) -> Tensor:
    """Scores [V] of the token after `prompt`, minus infinity for those that generation never draws."""
    logits_V = open_state(opened.model, [opened.ids(prompt, "prompt")], fresh=1).next_logits()[0]
    spare = range(opened.tokenizer.vocab_size, len(logits_V))
    never = [id for id in opened.tokenizer.mark_ids if id < len(logits_V)]
    return logits_V.index_fill(0, torch.tensor([*never, *spare], dtype=torch.int64), float("-inf"))


def draw_temperature(found: NextToken) -> "Figure":
    """Bars of the likeliest tokens, one column for each temperature: solid what is drawn from, an outline what was
    there before top-k and top-p."""
    columns, rows = len(found.distributions), len(found.token_ids)
    figure = new_figure(max(6.5, 1.6 + 2.7 * columns), 1.9 + 0.27 * rows)
    places = range(rows)
    ids = list(found.token_ids)
    for number, one in enumerate(found.distributions):
        axes = figure.add_subplot(1, columns, number + 1)
        before, after = one.all_V[ids].tolist(), one.kept_V[ids].tolist()
        colours = [BLUE if value else "#e3e6ea" for value in after]
        axes.barh(places, [a or b for a, b in zip(after, before, strict=True)], color=colours, height=0.72)
        axes.barh(places, before, facecolor="none", edgecolor=GREY, linewidth=0.9, height=0.72)
        top = max([*before, *after, 1e-9])
        for place, (old, new) in enumerate(zip(before, after, strict=True)):
            told = percent(new) if new else "cut"
            axes.text(max(old, new) + 0.02 * top, place, told, va="center", fontsize=7, color="#333")
        axes.set(xlim=(0, 1.28 * top), ylim=(rows - 0.4, -0.6))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(f"temperature {one.temperature:g}", fontsize=11, weight="bold")
        axes.set_xlabel("\n".join(told_distribution(one)), fontsize=8)
        plain_text(axes, "y", places, list(found.labels) if number == 0 else [""] * rows, fontsize=9)
    title = f"After “{_end_of(found.prompt, 24 + 18 * columns)}”{_filters(found)}"
    figure.suptitle(title, fontsize=12, x=0.02, ha="left", parse_math=False)
    return figure


def percent(probability: float) -> str:
    """A probability for a person."""
    return f"{100 * probability:.1f} %" if probability >= 0.0005 else "< 0.1 %"


def told_distribution(one: Distribution) -> list[str]:
    """How uncertain a distribution is and what was cut, for a person, in two lines."""
    if one.temperature == 0:
        return ["greedy: always the likeliest token", ""]
    choices = 2**one.entropy
    uncertain = f"{choices:,.0f}" if choices >= 100 else f"{choices:.1f}"
    lines = [f"entropy {one.entropy:.2f} bits = {uncertain} equal choices"]
    if one.tokens_kept == one.tokens:
        return [*lines, f"all {one.tokens:,} tokens can be drawn"]
    cut = f"{percent(one.cut_away)} cut away"
    return [*lines, f"{one.tokens_kept:,} of {one.tokens:,} can be drawn, {cut}"]


def _filters(found: NextToken) -> str:
    told = f", top-k {found.top_k}" if found.top_k else ""
    told += f", top-p {found.top_p:g}" if found.top_p < 1 else ""
    return f"{told} (outline: before the cut)" if told else ""


def _end_of(prompt: str, longest: int) -> str:
    flat = label(prompt, len(prompt), blanks=False)
    return flat if len(flat) <= longest else "…" + flat[-longest:]

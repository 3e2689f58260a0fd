"""Metrics on text. Accents count ("ano" is not "año"); how a letter is encoded does not (an NFD copy is the same)."""

import math
import unicodedata
from collections.abc import Sequence

import numpy as np
from rouge_score import rouge_scorer
from rouge_score.tokenizers import Tokenizer as RougeTokenizer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from yunque.errors import UserError


def canonical(text: str) -> str:
    """`text` as exact match sees it: NFC, case folded, each run of white space one blank."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.split())


def exact_match(prediction: str, reference: str) -> bool:
    """Whether both are the same text but for case, white space and encoding."""
    return canonical(prediction) == canonical(reference)


def perplexity(nats: float, tokens: int) -> float:
    """exp of the mean negative log-likelihood; `nats` is its sum over `tokens` tokens. Infinite past a float."""
    if tokens < 1:
        raise UserError("perplexity needs at least one token")
    try:
        return math.exp(nats / tokens)
    except OverflowError:
        return math.inf


def bootstrap_interval(
    values: Sequence[float], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values` (Efron and Tibshirani 1993, chapter 13)."""
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        raise UserError("a confidence interval needs at least one value")
    generator = np.random.default_rng(seed)
    means = [generator.choice(sample, sample.size).mean() for _ in range(resamples)]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


class UnicodeWords(RougeTokenizer):  # type: ignore[misc]  # rouge_score has no types
    """Words of letters, marks and digits, case folded, in NFC. (rouge-score's own tokenizer drops every "ñ".)"""

    def tokenize(self, text: str) -> list[str]:
        """The words of `text`; on ASCII they are those of rouge-score's own tokenizer without stemming."""
        folded = canonical(text)
        return "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in folded).split()


def rouge(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (Lin 2004), between 0 and 1."""
    _check_pairs(predictions, references)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = rouge_scorer.RougeScorer(kinds, tokenizer=UnicodeWords())
    scores = [
        scorer.score(reference, prediction)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    return {kind: float(np.mean([score[kind].fmeasure for score in scores])) for kind in kinds}


def bleu(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus BLEU (Papineni et al. 2002) as sacrebleu counts it, tokenize="intl", between 0 and 100."""
    _check_pairs(predictions, references)
    return float(BLEU(tokenize="intl").corpus_score(_nfc(predictions), [_nfc(references)]).score)


def chrf(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2 (Popović 2015) as sacrebleu counts it, between 0 and 100."""
    _check_pairs(predictions, references)
    return float(CHRF().corpus_score(_nfc(predictions), [_nfc(references)]).score)


def text_metrics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Every metric that compares two texts: exact match, ROUGE-1/2/L, BLEU, chrF."""
    _check_pairs(predictions, references)
    matches = [exact_match(*pair) for pair in zip(predictions, references, strict=True)]
    return {
        "exact_match": float(np.mean(matches)),
        **rouge(predictions, references),
        "bleu": bleu(predictions, references),
        "chrf": chrf(predictions, references),
    }


def _nfc(texts: Sequence[str]) -> list[str]:
    return [unicodedata.normalize("NFC", text) for text in texts]


def _check_pairs(predictions: Sequence[str], references: Sequence[str]) -> None:
    if len(predictions) != len(references):
        raise UserError(
            f"{len(predictions)} predictions cannot be compared with {len(references)} references: "
            "there must be one for each"
        )
    if not predictions:
        raise UserError("there is no prediction to compare")

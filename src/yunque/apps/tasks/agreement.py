"""How far those who label agree, beyond what chance would give."""

from collections import Counter
from collections.abc import Sequence


def cohen_kappa(one: Sequence[str], other: Sequence[str]) -> float | None:
    """Cohen's kappa (1960) of two raters who labelled the same things: 1 is full agreement, 0 what chance would give.

    None where it is not defined: no thing, or both gave one and the same label always.
    """
    if len(one) != len(other):
        raise ValueError("both must have labelled the same things")
    if not one:
        return None
    count = len(one)
    observed = sum(a == b for a, b in zip(one, other, strict=True)) / count
    first, second = Counter(one), Counter(other)
    expected = sum(first[label] * second[label] for label in first) / count**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Sequence[Sequence[str | None]]) -> float | None:
    """Krippendorff's alpha for nominal labels: `units[thing][rater]`, None where a rater gave none.

    1 is full agreement, 0 what chance would give. Things that fewer than two labelled do not count. None where it is
    not defined (Krippendorff 2011, "Computing Krippendorff's alpha-reliability").
    """
    weights: dict[tuple[str, str], float] = {}
    for unit in units:
        given = [label for label in unit if label is not None]
        if len(given) < 2:
            continue
        counts = Counter(given)
        for a, many in counts.items():
            for b, more in counts.items():
                pairs = many * (many - 1) if a == b else many * more
                if pairs:
                    weights[a, b] = weights.get((a, b), 0.0) + pairs / (len(given) - 1)
    sums: dict[str, float] = {}
    for (a, _), weight in weights.items():
        sums[a] = sums.get(a, 0.0) + weight
    whole = sum(sums.values())
    if len(sums) < 2:
        return None
    observed = sum(weight for (a, b), weight in weights.items() if a != b)
    expected = sum(sums[a] * sums[b] for a in sums for b in sums if a != b) / (whole - 1)
    return 1 - observed / expected

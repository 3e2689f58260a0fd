from collections import Counter

import pytest
import torch

from yunque.errors import UserError
from yunque.train.corpus import Corpus

END = 0
DOCUMENTS = [[n * 10 + i for i in range(1, 3 + n)] for n in range(1, 9)]
KEYS = [("dataset/x@1", f"row-{n}") for n in range(1, 9)]


def corpus(context: int = 6, seed: int = 0) -> Corpus:
    return Corpus(DOCUMENTS, KEYS, END, context, seed)


def test_targets_are_the_inputs_one_place_on() -> None:
    windows = corpus().windows(0, 5)
    assert torch.equal(windows.input_ids[:, 1:], windows.targets[:, :-1])


def test_every_document_begins_a_segment_with_the_end_token() -> None:
    windows = corpus().windows(0, 7)
    for ids, segments in zip(windows.input_ids.tolist(), windows.segment_ids.tolist(), strict=True):
        for place in range(1, len(ids)):
            assert (segments[place] != segments[place - 1]) == (ids[place] == END)
        for segment in set(segments):
            documents = {
                id // 10 for id, of in zip(ids, segments, strict=True) if of == segment and id != END
            }
            assert len(documents) <= 1


def test_an_epoch_reads_every_window_once_and_the_next_one_in_another_order() -> None:
    made = corpus()
    count = made.windows_per_epoch
    first, second = made.windows(0, count).input_ids, made.windows(count, count).input_ids
    read = Counter(first.flatten().tolist())
    assert all(amount == 1 for id, amount in read.items() if id != END)
    assert sum(read.values()) == count * 6
    assert not torch.equal(first, second)


def test_the_order_depends_on_seed_and_number_alone() -> None:
    straight = corpus().windows(0, 20).input_ids
    jumping = corpus()
    jumping.windows(17, 1)
    assert torch.equal(jumping.windows(3, 2).input_ids, straight[3:5])
    assert not torch.equal(corpus(seed=1).windows(0, 20).input_ids, straight)


def test_rows_seen_are_those_in_the_windows() -> None:
    made = corpus()
    for count in (1, 3, made.windows_per_epoch + 2):
        expected: Counter = Counter()
        for window in made.windows(0, count).input_ids.tolist():
            ids = {id // 10 for id in window if id != END}
            expected.update(("dataset/x@1", f"row-{number}") for number in ids)
        seen = made.rows_seen(count)
        # A window that ends with a document's first token alone (the end token) has read that row too.
        assert not expected - seen
        assert sum((seen - expected).values()) <= count


def test_too_little_data_for_one_window_is_told() -> None:
    with pytest.raises(UserError, match="one window of training needs 501"):
        corpus(context=500)

"""Words in space: cosines, neighbours and the map, against plain arithmetic and scikit-learn."""

import pytest
import torch
from torch.testing import assert_close

from yunque.errors import UserError
from yunque.lab.embeddings import (
    cosine_matrix,
    draw_embeddings,
    map_texts,
    map_words,
    nearest_tokens,
    principal_map,
)

TABLE = torch.randn(50, 12, generator=torch.Generator().manual_seed(2))


def test_cosines_are_those_of_torch() -> None:
    ours = cosine_matrix(TABLE[:6])
    assert_close(ours, torch.cosine_similarity(TABLE[:6, None], TABLE[None, :6], dim=-1))
    with pytest.raises(AssertionError):
        assert_close(ours, TABLE[:6] @ TABLE[:6].T)
    assert cosine_matrix(torch.zeros(2, 3)).tolist() == [[0, 0], [0, 0]]


def test_the_nearest_tokens_are_found_and_a_words_own_left_out() -> None:
    (near,) = nearest_tokens(TABLE[7:8], TABLE, 3)
    assert near[0][0] == 7
    assert near[0][1] == pytest.approx(1)
    (near,) = nearest_tokens(TABLE[7:8], TABLE, 50, [[7]])
    assert len(near) == 49
    expected = torch.cosine_similarity(TABLE[7:8], TABLE, dim=-1).argsort(descending=True)[1:].tolist()
    assert [id for id, _ in near] == expected


def test_the_map_is_principal_component_analysis() -> None:
    from sklearn.decomposition import PCA

    places, kept = principal_map(TABLE)
    theirs = PCA(2).fit(TABLE.numpy())
    expected = torch.tensor(theirs.transform(TABLE.numpy()))
    assert_close(places.abs(), expected.abs().float(), rtol=1e-4, atol=1e-4)
    assert list(kept) == pytest.approx(theirs.explained_variance_ratio_.tolist(), rel=1e-4)
    # The same map however the library happens to turn the axes.
    assert (places.gather(0, places.abs().argmax(0, keepdim=True)) > 0).all()
    with pytest.raises(AssertionError):
        assert_close(places.abs(), TABLE[:, :2].abs(), rtol=1e-4, atol=1e-4)


def test_a_word_of_several_tokens_is_their_mean() -> None:
    words = map_words("m", ["ñandú", "gato"], [[1, 2, 3], [4]], TABLE, str)
    assert_close(words.cosines_WW, cosine_matrix(torch.stack([TABLE[1:4].mean(0), TABLE[4]])))
    assert words.tokens == (("1", "2", "3"), ("4",))
    assert not {1, 2, 3} & {one.token_id for one in words.neighbours[0]}
    assert len(words.places) == 2 + 8
    with pytest.raises(UserError):
        map_words("m", [], [], TABLE, str)


def test_one_word_many_words_and_equal_texts_can_be_drawn() -> None:
    assert draw_embeddings(map_words("m", ["uno"], [[1]], TABLE, str, neighbours=0)).axes
    assert draw_embeddings(
        map_words("m", list("abcdefghijklmnopq"), [[i] for i in range(17)], TABLE, str)
    ).axes
    assert draw_embeddings(map_texts("m", ["$x$ " * 30, "b"], TABLE[[1, 1]])).axes

import numpy as np
import pytest

from qconvert.tasks.embedding_metrics import (
    cosines,
    mean_cosine,
    nearest_neighbours,
    retrieval_change,
    retrieve,
)


def test_recall_is_that_of_a_plain_search() -> None:
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(600, 4))
    labels = generator.integers(0, 40, 600).tolist()
    rows = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    right1, right5 = [], []
    for row in range(600):
        order = np.argsort(-(rows @ rows[row]))
        order = order[order != row]
        if labels.count(labels[row]) > 1:
            right1.append(labels[order[0]] == labels[row])
            right5.append(labels[row] in [labels[other] for other in order[:5]])
    result = retrieve(embeddings, labels)
    assert result.recall1 == pytest.approx(np.mean(right1))
    assert result.recall5 == pytest.approx(np.mean(right5))


def test_only_labels_of_several_images_count() -> None:
    embeddings = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [1, 0.01]])
    result = retrieve(embeddings, [0, 0, 1, 2, None])
    assert result.queries.tolist() == [0, 1]
    assert result.metrics == {"recall1": 1.0, "recall5": 1.0}
    for labels in ([None] * 5, [0, 1, 2, 3, 4]):
        assert retrieve(embeddings, labels).recall1 is None
    assert retrieve(embeddings[:0], []).recall5 is None


def test_embedding_that_is_not_finite_finds_nothing_and_is_not_seen() -> None:
    embeddings = np.array([[1, 0], [1, 0.1], [np.nan, 1], [0, 0], [-1, 0]], np.float32)
    result = retrieve(embeddings, [0, 0, 0, 1, 1])
    assert result.right1.tolist() == [True, True, False, False, False]
    assert result.right5.tolist() == [True, True, False, False, False]


def test_changes_are_counted_by_image() -> None:
    labels = [0, 0, 1, 1]
    before = retrieve(np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]]), labels)
    after = retrieve(np.array([[1, 0], [0, 1], [0.9, 0.1], [0.1, 1]]), labels)
    change = retrieval_change(before, after)
    assert (change.lost, change.won, change.queries) == (4, 0, 4)
    assert (before.recall1, after.recall1) == (1.0, 0.0)


def test_cosine_to_fp32() -> None:
    reference = np.array([[1, 0], [0, 2], [1, 1], [0, 0], [1e200, 0]])
    embeddings = np.array([[3, 0], [1, 0], [np.inf, 1], [1, 0], [-1e200, 0]])
    np.testing.assert_allclose(cosines(reference, embeddings), [1, 0, np.nan, np.nan, -1])
    assert mean_cosine(reference, embeddings) == pytest.approx(0)
    assert mean_cosine(reference[3:4], embeddings[3:4]) is None
    maps = np.ones((2, 3, 4, 5), np.float32)
    assert mean_cosine(maps, 2 * maps) == pytest.approx(1)


def test_nearest_neighbours_are_those_of_a_plain_search_in_any_number_of_blocks() -> None:
    vectors = np.random.default_rng(3).standard_normal((600, 8)).astype(np.float32)
    vectors[5], vectors[7] = np.nan, 0.0
    nearest = nearest_neighbours(vectors)
    lengths = np.linalg.norm(np.nan_to_num(vectors, nan=1.0), axis=1, keepdims=True)
    unit = vectors / lengths.clip(1e-9)
    for row in (0, 4, 255, 256, 511, 512, 599):
        others = [index for index in range(600) if index not in (row, 5, 7)]
        assert nearest[row] == others[int(np.argmax(unit[others] @ unit[row]))]
    assert (nearest[5], nearest[7]) == (0, 0)
    assert nearest_neighbours(vectors[:2]).tolist() == [1, 0]

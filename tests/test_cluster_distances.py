"""Distances between code sequences, coordinates and clusters from them, and the choice without labels."""

from dataclasses import replace

import numpy as np
import pytest

from tokenize_lib.cluster.distances import KINDS, DistanceConfig, fit_distance, pairwise
from tokenize_lib.cluster.scaling import (
    classical_mds,
    cluster_distances,
    fit_landmarks,
    laplacian_coordinates,
)
from tokenize_lib.cluster.selection import (
    CHANGES,
    SelectionConfig,
    changed_codes,
    choose_k,
    choose_method,
    code_views,
    consistency,
    prediction_strength,
    stability,
)
from tokenize_lib.cluster.sequences import CodeSet
from tokenize_lib.core.errors import DataError

SIZES = (32, 16)


def corpus(lengths, seed=0, groups=1):
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    codes = np.stack([rng.integers(0, k, (offsets[-1], groups)) for k in SIZES], -1).astype(np.int16)
    ids = [f"клип {n}" for n in range(len(lengths))]
    return CodeSet(ids, [None] * len(ids), codes, offsets, SIZES, 4, 30.0, {"name": "", "hash": ""})


def books(dim=4):
    rng = np.random.default_rng(1)
    return [(rng.normal(size=(k, dim)) / 2**q).astype(np.float32) for q, k in enumerate(SIZES)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_distance_is_symmetric_finite_and_the_same_alone_as_in_company(kind):
    codes = corpus([1, 2, 3, 40, 17, 80, 9], groups=2)
    distance = fit_distance(codes, books(), kind, DistanceConfig(words=8))
    features = distance.features(codes)
    d = distance.between(features)
    assert d.dtype == np.float32 and d.shape == (7, 7) and np.isfinite(d).all()
    assert (d == d.T).all() and (np.diag(d) == 0).all() and (d >= 0).all()
    assert (distance.between(features, jobs=3) == d).all()  # threads change nothing
    few = distance.features(codes.select([3, 4]))
    np.testing.assert_allclose(distance.between(few, features)[0, 4:], d[3, 4:], atol=2e-3)


@pytest.mark.parametrize("kind", ("dtw", "soft_dtw", "edit", "transport"))
def test_a_distance_knows_the_codebook_and_not_the_numbers_of_the_codes(kind):
    codes, vectors = corpus([12] * 6), books()
    names = [np.random.default_rng(q).permutation(k) for q, k in enumerate(SIZES)]
    renamed = replace(codes, codes=np.stack([p[codes.codes[..., q]] for q, p in enumerate(names)], -1))
    moved = [np.empty_like(v) for v in vectors]
    for new, v, p in zip(moved, vectors, names, strict=True):
        new[p] = v
    cfg = DistanceConfig(words=256)  # as many words as tokens: no k-means, which depends on their order
    np.testing.assert_allclose(
        pairwise(renamed, moved, kind, cfg), pairwise(codes, vectors, kind, cfg), atol=2e-3
    )


def test_warping_does_not_mind_tempo_and_an_edit_does():
    codes = corpus([20, 20])
    slow = replace(codes.select([0]), codes=np.repeat(codes[0], 2, 0), offsets=np.array([0, 40]))
    both = replace(
        codes,
        ids=["a", "b", "slow a"],
        labels=[None] * 3,
        codes=np.concatenate([codes.codes, slow.codes]),
        offsets=np.array([0, 20, 40, 80]),
    )
    warped, edited = (pairwise(both, books(), k) for k in ("dtw", "edit"))
    assert warped[0, 2] < 0.5 * warped[0, 1]
    assert edited[0, 2] > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_clips_that_are_all_alike_have_distance_zero_and_one_place(kind):
    one = corpus([10])
    codes = replace(
        one,
        ids=list("abcd"),
        labels=[None] * 4,
        codes=np.tile(one.codes, (4, 1, 1)),
        offsets=np.arange(5) * 10,
    )
    d = pairwise(codes, books(), kind)
    assert np.isfinite(d).all()
    if kind in ("dtw", "soft_dtw", "edit", "transport"):
        np.testing.assert_allclose(d, 0, atol=2e-3)
    labels, _ = cluster_distances(d, 2, "laplacian")
    assert labels.shape == (4,)


def test_landmarks_agree_with_the_whole_matrix_and_place_a_clip_the_same_in_any_company():
    codes, vectors = corpus(np.random.default_rng(3).integers(5, 50, 60)), books()
    d = pairwise(codes, vectors)
    placed = fit_landmarks(codes, vectors, landmarks=60, dim=5)
    x = placed.embed(codes)
    np.testing.assert_allclose(np.abs(x), np.abs(classical_mds(d, 5)), atol=2e-2)
    np.testing.assert_allclose(placed.embed(codes, block=7), x, atol=1e-4)
    np.testing.assert_allclose(placed.embed(codes.select([41])), x[[41]], atol=1e-4)
    again = fit_landmarks(codes, vectors, landmarks=20, dim=5, seed=4)
    assert (
        again.embed(codes) == fit_landmarks(codes, vectors, landmarks=20, dim=5, seed=4).embed(codes)
    ).all()


def test_one_clip_and_one_landmark():
    codes = corpus([7])
    assert pairwise(codes, books()).tolist() == [[0]]
    assert np.isfinite(fit_landmarks(codes, books()).embed(corpus([3, 30]))).all()
    assert cluster_distances(np.zeros((1, 1)), 1)[0].tolist() == [0]


def test_a_graph_in_too_many_pieces_falls_back_to_ward():
    island = np.arange(40) // 4
    d = np.where(island[:, None] == island, 1.0, 50.0) - np.eye(40)
    assert laplacian_coordinates(d, 3, neighbours=3) is None
    labels, used = cluster_distances(d, 3, "laplacian", neighbours=3)
    assert used == "ward" and len(set(labels)) == 3
    labels, used = cluster_distances(d, 10, "laplacian", neighbours=3)
    assert used == "laplacian" and all(len(set(labels[island == i])) == 1 for i in range(10))


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: pairwise(corpus([5, 5]), books()[:1]), "of other codebooks"),
        (lambda: pairwise(corpus([5, 5]), [b * np.nan for b in books()]), "not finite"),
        (lambda: pairwise(corpus([5, 0, 5]), books()), "a clip without tokens"),
        (lambda: pairwise(corpus([5, 5]), books(), "hamming"), "no such distance"),
        (lambda: pairwise(corpus([]), books()), "no clips"),
        (lambda: cluster_distances(np.zeros((3, 3)), 4), "more clusters than clips"),
        (lambda: cluster_distances(np.full((3, 3), np.nan), 2), "not finite"),
        (lambda: stability(np.zeros((5, 2)), 3), "too many clusters"),
        (lambda: prediction_strength(np.full((9, 2), np.nan), 2), "not finite"),
        (lambda: choose_k(np.zeros((3, 2)), [4, 5]), "too few clips"),
    ],
)
def test_bad_input_is_named(call, said):
    with pytest.raises(DataError, match=said):
        call()


def test_changes_keep_the_clips_and_their_codebooks():
    codes = corpus([1, 2, 3, 50])
    for change in CHANGES:
        other = changed_codes(codes, books(), change)
        assert len(other) == 4 and other.lengths.min() >= 1 and other.offsets[-1] == len(other.codes)
        assert all(
            0 <= other.codes[..., q].min() and other.codes[..., q].max() < k for q, k in enumerate(SIZES)
        )
        assert (changed_codes(codes, books(), change).codes == other.codes).all()
    assert changed_codes(codes, books(), "crop")[3].shape[0] == 40
    assert (changed_codes(codes, books(), "noise", SelectionConfig(replaced=0)).codes == codes.codes).all()


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_clear_groups_are_told_from_none():
    rng = np.random.default_rng(0)
    groups = 10 * np.eye(3)[np.arange(90) % 3] + rng.normal(size=(90, 3))
    cfg = SelectionConfig(repeats=4)
    assert choose_k(groups, range(2, 7), cfg)[0] == 3
    assert stability(groups, 3, cfg) > 0.99 and prediction_strength(groups, 3, cfg) > 0.99
    assert prediction_strength(rng.normal(size=(90, 3)), 5, cfg) < 0.7
    assert consistency(groups, groups + rng.normal(size=groups.shape) / 10, 3, cfg) > 0.99
    assert choose_k(np.zeros((20, 2)), [1, 2, 3], cfg)[0] >= 1  # all alike: no crash


def test_the_embedding_that_all_views_support_wins_over_a_regularity_of_one():
    """Three actions at random length: length is as regular as can be, and says nothing."""
    rng = np.random.default_rng(0)
    actions = [rng.integers(0, 32, 6) for _ in range(3)]
    lengths = rng.choice([12, 24, 48], 90)
    ids = np.concatenate([actions[n % 3][np.arange(t) * 6 // t] for n, t in enumerate(lengths)])
    codes = replace(corpus(lengths), codes=np.stack([ids, np.zeros_like(ids)], -1)[:, None].astype(np.int16))
    candidates = {
        "length": lambda c: np.log(c.lengths)[:, None],
        "place": lambda c: code_views(c, books())["place"],
    }
    table = choose_method(candidates, codes, books(), ks=(3,), config=SelectionConfig(repeats=3))
    assert [c.name for c in table] == ["place", "length"]
    assert table[1].prediction_strength > 0.9 and table[1].worst_view < 0.1

"""Generative models of code sequences: probabilities that are probabilities, clusters that exist, nothing that underflows."""

from itertools import product

import numpy as np
import pytest

from tokenize_lib.cluster.config import HmmConfig, MarkovConfig
from tokenize_lib.cluster.generative import MarkovMixture, fit_hmm, hmm_clusters, markov_clusters
from tokenize_lib.cluster.sequences import code_set
from tokenize_lib.core.errors import DataError
from tokenize_lib.quantize.codes import Codes

K = 6
BOOK = [np.random.default_rng(0).normal(size=(K, 3)).astype(np.float32)]


def codes_of(sequences, k=K):
    clips = [
        np.asarray(s).reshape(len(s), -1, 1) if np.ndim(s) > 1 else np.asarray(s)[:, None] for s in sequences
    ]
    return code_set(
        [Codes(c, length=len(c), factor_l=1, codebook_sizes=(k,), id=f"{n}") for n, c in enumerate(clips)]
    )


def with_an_empty_clip(codes):
    codes.offsets, codes.ids = np.append(codes.offsets, codes.offsets[-1]), [*codes.ids, "empty"]
    codes.labels = [None] * len(codes.ids)
    return codes


def cyclic(n, steps, seed=0, k=K):
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, k, n)
    return [(s + steps[i % len(steps)] * np.arange(rng.integers(8, 30))) % k for i, s in enumerate(starts)]


def purity(found, truth):
    return sum(np.bincount(truth[found == c]).max() for c in np.unique(found)) / len(truth)


@pytest.mark.parametrize("seed", range(3))
def test_chains_tell_directions_apart_that_have_the_same_frequencies(seed):
    codes = codes_of(cyclic(40, (1, -1), seed))
    found = markov_clusters(codes, 2, seed)
    assert purity(found, np.arange(40) % 2) == 1 and len(np.unique(found)) == 2


@pytest.mark.parametrize("length", [1, 2, 3])
def test_all_sequences_of_one_length_have_probability_one_together(length):
    chains = MarkovMixture.fit(codes_of(cyclic(20, (1, -1))), 2)
    every = codes_of([list(s) for s in product(range(K), repeat=length)])
    np.testing.assert_allclose(np.exp(chains.log_likelihood(every)).sum(), 1, rtol=1e-9)


def test_what_was_never_seen_is_improbable_and_possible():
    chains = MarkovMixture.fit(codes_of(cyclic(20, (1,))), 1)
    seen, unseen = chains.log_likelihood(codes_of([[0, 1, 2, 3], [3, 0, 4, 1]]))
    assert np.isfinite(unseen) and unseen < seen - 3


def test_parallel_groups_are_chains_of_their_own():
    rng = np.random.default_rng(0)
    clips = [np.stack([(np.arange(12) * (1, -1)[n % 2]) % K, rng.integers(0, K, 12)], 1) for n in range(30)]
    codes = codes_of(clips)
    assert codes.codes.shape[1:] == (2, 1)
    assert purity(markov_clusters(codes, 2), np.arange(30) % 2) == 1


def test_a_clip_costs_the_same_in_any_company_and_two_fits_agree():
    codes = codes_of(cyclic(20, (1, -1, 2)))
    chains, again = (MarkovMixture.fit(codes, 3, seed=4) for _ in range(2))
    np.testing.assert_array_equal(chains.seen, again.seen)
    np.testing.assert_allclose(
        chains.log_likelihood(codes.select([5]))[0], chains.log_likelihood(codes)[5], rtol=1e-12
    )
    hmm, twin = (fit_hmm(codes, BOOK, 1, HmmConfig(states=3)) for _ in range(2))
    np.testing.assert_array_equal(hmm.moves, twin.moves)
    np.testing.assert_allclose(
        hmm.log_likelihood(codes.select([5]), BOOK)[0], hmm.log_likelihood(codes, BOOK)[5], rtol=1e-12
    )


@pytest.mark.parametrize("phases", [1, 2])
def test_the_likelihood_is_the_sum_over_all_paths(phases):
    hmm = fit_hmm(codes_of(cyclic(20, (1, 2))), BOOK, cfg=HmmConfig(states=2, phases=phases, max_iter=3))
    clip = codes_of([[0, 3, 1, 1]])
    x = ((BOOK[0][clip.codes[:, 0, 0]] - hmm.centre) @ hmm.basis)[:, None]
    density = np.exp(-0.5 * np.square(x - hmm.means) / hmm.variances) / np.sqrt(2 * np.pi * hmm.variances)
    b, total = np.repeat(density.prod(2), phases, 1), 0.0
    for path in product(range(2 * phases), repeat=4):
        p = hmm.start[path[0]] * b[0, path[0]]
        for t in range(1, 4):
            p *= hmm.moves[path[t - 1], path[t]] * b[t, path[t]]
        total += p
    np.testing.assert_allclose(hmm.log_likelihood(clip, BOOK)[0], np.log(total), rtol=1e-9)


def test_em_raises_the_likelihood_of_a_hidden_markov_model():
    rng = np.random.default_rng(0)
    codes = codes_of([np.repeat(rng.integers(0, K, 8), rng.integers(1, 6, 8)) for _ in range(30)])
    found = [
        fit_hmm(codes, BOOK, cfg=HmmConfig(states=4, max_iter=n, smoothing=1e-9, least_variance=1e-6, tolerance=1e-12))
        .log_likelihood(codes, BOOK).sum()
        for n in (1, 2, 4, 8)
    ]  # fmt: skip
    assert all(b >= a - 1e-6 * abs(a) for a, b in zip(found, found[1:], strict=False))


def test_features_are_shares_and_clusters_follow_them():
    rng = np.random.default_rng(0)
    truth = np.arange(30) % 2
    codes = codes_of([rng.choice([0, 1] if t else [4, 5], 20) for t in truth])
    x = fit_hmm(codes, BOOK, cfg=HmmConfig(states=4)).describe(codes, BOOK)
    np.testing.assert_allclose(np.square(x[:, :4]).sum(1), 1, rtol=1e-9)
    assert (np.square(x[:, 4:]).sum(1) <= 1 + 1e-9).all()
    assert purity(hmm_clusters(codes, BOOK, 2, cfg=HmmConfig(states=4)), truth) == 1


def test_long_clips_and_far_outliers_do_not_underflow():
    codes = codes_of(cyclic(10, (1,)))
    hmm = fit_hmm(codes, BOOK, cfg=HmmConfig(states=3, phases=2))
    long = codes_of([np.arange(20000) % K])
    assert np.isfinite(hmm.log_likelihood(long, BOOK)).all()
    far = [np.full((K, 3), 1e4, np.float32)]
    assert np.isfinite(hmm.log_likelihood(codes, far)).all() and np.isfinite(hmm.describe(codes, far)).all()
    assert np.isfinite(MarkovMixture.fit(codes, 2).log_likelihood(long)).all()


@pytest.mark.parametrize("sequences", [[[1]], [[1], [2]], [[2, 2, 2]] * 4, [[0, 1], [5]]])
def test_degenerate_corpora(sequences):
    codes = with_an_empty_clip(codes_of(sequences))
    chains = MarkovMixture.fit(codes, min(2, len(codes)), cfg=MarkovConfig(n_init=2))
    np.testing.assert_allclose(chains.posterior(codes).sum(1), 1)
    np.testing.assert_allclose(chains.log_likelihood(codes)[-1], 0, atol=1e-12)
    for phases in (1, 3):
        hmm = fit_hmm(codes, BOOK, cfg=HmmConfig(states=5, phases=phases))
        assert np.isfinite(hmm.describe(codes, BOOK)).all()
        assert np.isfinite(hmm.log_likelihood(codes, BOOK)).all() and hmm.log_likelihood(codes, BOOK)[-1] == 0
        np.testing.assert_allclose(hmm.moves.sum(1), 1)
        assert np.isfinite(hmm.durations).all()


def test_what_cannot_work_says_so():
    codes = codes_of([[1, 2]])
    for cluster in (markov_clusters, lambda c, k: hmm_clusters(c, BOOK, k)):
        with pytest.raises(DataError, match="fewer clips"):
            cluster(codes, 2)
    with pytest.raises(DataError, match="no tokens"):
        fit_hmm(with_an_empty_clip(codes).select([1]), BOOK)

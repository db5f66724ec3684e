"""Cluster models: what they keep, what they refuse, and that they say what the estimators said."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tokenize_lib.cluster.config import BayesGmmConfig, EvalConfig, HdbscanConfig
from tokenize_lib.cluster.embeddings import Embeddings
from tokenize_lib.cluster.fitting import (
    Fitted,
    _by_size,
    fit_bayes_gmm,
    fit_hdbscan,
    fit_kmeans,
    held_out,
    mixture_arrays,
    principal,
    save_fit,
)
from tokenize_lib.cluster.labelled import evaluate_labelled
from tokenize_lib.cluster.models import ClusterModel, project
from tokenize_lib.cluster.scores import label_scores
from tokenize_lib.core.errors import DataError, FormatError
from tokenize_lib.core.files import read_npz, write_npz

ABOUT = {"encoder": {"name": "demo", "hash": "e" * 64}, "tokenizer": {"name": "demo", "hash": "t" * 64}}
FITS = {"kmeans": fit_kmeans, "bayes_gmm": fit_bayes_gmm, "hdbscan": fit_hdbscan}


def embeddings(n=240, groups=6, dim=24, seed=0, start=0, apart=1.6):
    rng = np.random.default_rng(7)
    centres = rng.normal(0, apart, (groups, dim))
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, groups, n)
    x = (centres[truth] + rng.normal(0, 1, (n, dim))).astype(np.float32)
    rows = [{"id": f"clip {start + i}", "start": 0, "stop": 20} for i in range(n)]
    return Embeddings(x, [f"g{t}" for t in truth], rows, **ABOUT)


@pytest.fixture(scope="module")
def e():
    return embeddings()


@pytest.fixture(scope="module")
def fitted(e) -> dict[str, Fitted]:
    return {name: fit(e) for name, fit in FITS.items()}


@pytest.mark.parametrize("name", FITS)
def test_a_row_alone_and_in_a_batch_saved_and_loaded_is_the_same_to_the_last_bit(e, fitted, name, tmp_path):
    f, new = fitted[name], embeddings(seed=3).x
    f.model.save(tmp_path)
    model = ClusterModel.load(tmp_path)
    together = model.predict(new)
    alone = [model.predict(row[None]) for row in new]
    assert [float(a.probability[0]) for a in alone] == together.probability.tolist()
    assert [int(a.cluster[0]) for a in alone] == together.cluster.tolist()
    again = model.predict(e.x)
    assert again.cluster.tolist() == f.assignment.cluster.tolist()
    assert again.probability.tolist() == f.assignment.probability.tolist()


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_responsibilities_are_those_of_scikit_learn(kind):
    mixture = pytest.importorskip("sklearn.mixture")
    x = embeddings(dim=5).x.astype(float)
    theirs = mixture.BayesianGaussianMixture(
        n_components=6, covariance_type=kind, random_state=0, max_iter=50
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.fit(x)
    new = embeddings(dim=5, seed=1).x.astype(float)
    ours = ClusterModel("bayes_gmm", 6, mixture_arrays(theirs), prob_thr=0).predict(new)
    assert ours.cluster.tolist() == theirs.predict(new).tolist()
    np.testing.assert_allclose(ours.probability, theirs.predict_proba(new).max(1), atol=1e-9)


def test_kmeans_assigns_to_the_nearest_centre(e, fitted):
    model, new = fitted["kmeans"].model, embeddings(seed=4).x.astype(float)
    distance = ((new[:, None] - model.arrays["means"]) ** 2).sum(-1)
    assert np.array_equal(replace(model, prob_thr=0.0).predict(new).cluster, distance.argmin(1))


@pytest.mark.parametrize("min_samples", [1, 4])
@pytest.mark.parametrize("selection", ["eom", "leaf"])
def test_the_density_tree_says_what_approximate_predict_says(e, min_samples, selection):
    hdbscan = pytest.importorskip("hdbscan")
    f = fit_hdbscan(e, HdbscanConfig(min_samples=min_samples, cluster_selection_method=selection, prob_thr=0))
    how = {k: f.model.parameters[k] for k in ("min_cluster_size", "min_samples", "cluster_selection_method")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = hdbscan.HDBSCAN(**how, prediction_data=True).fit(project(e.x, f.model.arrays))
        new = embeddings(seed=5, n=500).x
        label, p = hdbscan.approximate_predict(theirs, project(new, f.model.arrays))
    name = np.append(np.argsort(_by_size(theirs.labels_, theirs.labels_.max() + 1)), -1)
    ours = f.model.predict(new)
    equal = ours.cluster == name[label]
    assert f.model.n_clusters > 1 and equal.mean() >= 0.995
    np.testing.assert_allclose(ours.probability[equal], p[equal], atol=1e-6)


def test_a_fit_is_the_same_files_again_on_any_number_of_threads(e, fitted, tmp_path):
    e.save(tmp_path / "emb")
    code = (
        "import sys; from tokenize_lib.cluster.embeddings import Embeddings; from tokenize_lib.cluster import fitting as f\n"
        "e = Embeddings.load(sys.argv[1])\n"
        "for n in sys.argv[3:]: f.save_fit(sys.argv[2] + '/' + n, e, getattr(f, 'fit_' + n)(e))"
    )
    env = os.environ | {"OMP_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4"}
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "emb", tmp_path / "there", *FITS], check=True, env=env
    )
    for name, f in fitted.items():
        save_fit(tmp_path / "here" / name, e, f)
        for file in sorted((tmp_path / "here" / name).iterdir()):
            assert file.read_bytes() == (tmp_path / "there" / name / file.name).read_bytes(), file.name


@pytest.mark.parametrize("name", FITS)
def test_a_model_that_was_touched_is_refused(fitted, name, tmp_path):
    fitted[name].model.save(tmp_path)
    about, arrays = (tmp_path / "cluster_model.json").read_text(), read_npz(tmp_path / "cluster_model.npz")
    for field, value in (
        ("prob_thr", 0.9),
        ("encoder", {"name": "demo", "hash": "f" * 64}),
        ("hash", "0" * 64),
    ):
        (tmp_path / "cluster_model.json").write_text(json.dumps(json.loads(about) | {field: value}))
        with pytest.raises(FormatError, match="altered after saving"):
            ClusterModel.load(tmp_path)
    (tmp_path / "cluster_model.json").write_text(about)
    first = sorted(arrays)[-1]
    write_npz(tmp_path / "cluster_model.npz", **arrays | {first: arrays[first] + 1})
    with pytest.raises(FormatError):
        ClusterModel.load(tmp_path)
    write_npz(tmp_path / "cluster_model.npz", **{k: v for k, v in arrays.items() if k != first})
    with pytest.raises(FormatError, match="wrong arrays"):
        ClusterModel.load(tmp_path)
    (tmp_path / "cluster_model.npz").unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        ClusterModel.load(tmp_path)


def test_a_tree_with_a_circle_is_no_model(fitted):
    model = fitted["hdbscan"].model
    circle = model.arrays["node_parent"].copy()
    circle[1] = len(circle) - 1
    with pytest.raises(DataError, match="parents before their children"):
        ClusterModel(
            "hdbscan", model.n_clusters, model.arrays | {"node_parent": circle}, parameters=model.parameters
        )


@pytest.mark.parametrize(
    "bad", [np.full((2, 24), np.nan), np.zeros((2, 23)), np.zeros(24), np.full((1, 24), "a")]
)
def test_rows_that_are_none_are_refused(fitted, bad):
    for f in fitted.values():
        with pytest.raises(DataError):
            f.model.predict(bad)


@pytest.mark.parametrize("name", FITS)
def test_data_in_which_there_is_nothing_to_find(e, name):
    fit = FITS[name]
    with pytest.raises(DataError, match="one row cannot be clustered"):
        fit(e.select([0]))
    alike = Embeddings(np.ones((7, 3), np.float32), [None] * 7, e.rows[:7], **ABOUT)
    with pytest.warns(UserWarning, match="all embeddings are the same"):
        one = fit(alike)
    assert one.model.n_clusters == 1 and one.assignment.cluster.tolist() == [0] * 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for n in range(2, 9):
            few = fit(e.select(range(n)))
            assert 1 <= few.model.n_clusters <= n and np.isfinite(few.assignment.probability).all()


def test_more_clusters_than_rows_is_an_error_that_says_how_many_there_can_be(e):
    with pytest.raises(DataError, match="at most 4 clusters"):
        fit_bayes_gmm(e.select(range(4)), BayesGmmConfig(n_components=5))
    with pytest.raises(DataError, match="at most 4 clusters"):
        fit_kmeans(e.select(range(4)), 5)
    with pytest.raises(DataError, match="min_cluster_size"):
        fit_hdbscan(e.select(range(4)), HdbscanConfig(min_cluster_size=5))
    doubled = e.select([0, 1, 2] * 10)
    with pytest.raises(DataError, match="3 different rows"):
        fit_kmeans(doubled, 4)


def test_nan_never_gets_into_a_fit(e):
    x = e.x.copy()
    x[5, 3] = np.nan
    with pytest.raises(DataError, match="clip 5"):
        Embeddings(x, e.labels, e.rows, **ABOUT)


def test_the_number_of_clusters_is_found_and_noise_is_left_out(e, fitted):
    for name in ("kmeans", "bayes_gmm"):
        assert fitted[name].model.n_clusters == 6
        assert label_scores(e.labels, fitted[name].assignment.cluster)["ari"] > 0.9
    sizes = np.bincount(fitted["bayes_gmm"].assignment.cluster)
    assert sizes.tolist() == sorted(sizes, reverse=True)
    far = np.full((1, 24), 40, np.float32)
    assert fitted["hdbscan"].model.predict(far).cluster.tolist() == [-1]


def test_the_projection_has_one_sign(e):
    x = e.x.astype(float)
    basis = principal(x, 5)["basis"]
    assert (basis[np.abs(basis).argmax(0), np.arange(5)] > 0).all()
    np.testing.assert_allclose(principal(x[::-1].copy(), 5)["basis"], basis, atol=1e-9)


@pytest.mark.parametrize("name", FITS)
def test_clips_never_seen_are_assigned_as_well_as_those_fitted(name):
    result = held_out(FITS[name], embeddings(400, apart=1.4), embeddings(400, seed=9, start=400, apart=1.4))
    assert result["ari_seen"] > 0.4
    assert abs(result["ari_seen"] - result["ari_new"]) < (0.03 if name != "hdbscan" else 0.1)


def test_missing_labels_are_left_out_and_counted(e, tmp_path):
    some = Embeddings(e.x, [None if n % 10 == 0 else v for n, v in enumerate(e.labels)], e.rows, **ABOUT)
    metrics = evaluate_labelled(some, tmp_path / "run", EvalConfig(seeds=2), nuisance=["a", "b"] * 120)
    assert metrics["mean"]["unlabelled"] == 24 and metrics["n_components"] == 6
    assert metrics["mean"]["ari"] > 0.9 and metrics["mean"]["nuisance_nmi"] < 0.1
    assert metrics == json.loads((tmp_path / "run/metrics.json").read_text())
    assert (tmp_path / "run/plots/confusion.png").stat().st_size > 1000
    with pytest.raises(DataError, match="no labels"):
        evaluate_labelled(Embeddings(e.x, [None] * len(e), e.rows, **ABOUT), tmp_path / "none")
    assert not Path(tmp_path / "none").exists()


def test_scores_against_known_values():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 5, 300), rng.integers(-1, 4, 300)
    found[:150] = truth[:150]
    scores = label_scores([f"l{t}" for t in truth], found)
    assert scores["ari"] == pytest.approx(metrics.adjusted_rand_score(truth, found))
    assert scores["nmi"] == pytest.approx(metrics.normalized_mutual_info_score(truth, found))
    inside = found >= 0
    best = sum(max((truth[found == c] == t).sum() for t in range(5)) for c in np.unique(found[inside]))
    assert scores["purity"] == pytest.approx(best / 300)
    assert scores["accuracy"] <= scores["purity"] and scores["noise"] == pytest.approx((~inside).mean())

"""The report of a clustering: whole or not there, the same twice, and unharmed by odd names, empty clusters and long lists."""

import csv
import json

import numpy as np
import pytest
import typer
import typer.testing

from tokenize_lib.cluster import pictures
from tokenize_lib.cluster.behaviour import Recording, recordings, transition_counts, write_behaviour
from tokenize_lib.cluster.cluster_report import read_assignments, write_cluster_report
from tokenize_lib.cluster.embeddings import Embeddings
from tokenize_lib.cluster.exemplars import write_exemplars
from tokenize_lib.cluster.models import Assignment, ClusterModel, write_assignments
from tokenize_lib.cluster.pictures import (
    cluster_colour,
    cluster_sheet,
    cluster_table,
    from_the_centre,
    plot_umap,
    positions,
    svg_map,
)
from tokenize_lib.core.errors import DataError, FormatError
from tokenize_lib.quantize.codes import Codes, write_code_indices

ABOUT = {"name": "demo", "hash": "a" * 64}
NAMES = ["préface_$x$", "動作_<b>80</b>", "long/" * 30 + "clip", "plain"]


def example(n, clusters, seed=0):
    """Clips named oddly, embeddings round as many centres, and the model that knows them."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % clusters
    centres = 10 * rng.normal(size=(clusters, 6))
    x = (centres[kind] + rng.normal(size=(n, 6))).astype(np.float32)
    names = [NAMES[i] if i < len(NAMES) else f"clip_{i:04d}" for i in range(n)]
    rows = [{"id": name, "start": 0, "stop": 5} for name in names]
    clips = [
        Codes(rng.integers(0, 8, (5, 2)), 20, 4, (8, 8), ABOUT, name, f"label {k}", 30.0)
        for name, k in zip(names, kind, strict=True)
    ]
    e = Embeddings(x, [f"label {k}" for k in kind], rows, dict(ABOUT), dict(ABOUT), 7.5)
    arrays = {
        "means": centres,
        "precisions_cholesky": np.ones((clusters, 6)),
        "log_offset": np.zeros(clusters),
    }
    model = ClusterModel(
        "kmeans", clusters, arrays, encoder=dict(ABOUT), tokenizer=dict(ABOUT), parameters={"seed": 0}
    )
    return e, model, model.predict(e.x), clips


@pytest.fixture
def quick(monkeypatch):
    """Maps by principal components: UMAP has a test of its own."""
    monkeypatch.setattr(pictures, "_FEWEST", 10**9)


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_two_reports_are_the_same_to_the_last_byte(tmp_path, quick):
    e, model, a, clips = example(24, 3)
    write_code_indices(tmp_path / "codes.json", clips)
    for name in "ab":
        write_cluster_report(tmp_path / name, e, model, a, tmp_path / "codes.json", scores={"ari": 1.0})
    assert files(tmp_path / "a") == files(tmp_path / "b")
    page = (tmp_path / "a" / "report.html").read_text("utf-8")
    assert "<script" not in page and "http" not in page.replace("http-equiv", "")
    assert "動作_&lt;b&gt;80&lt;/b&gt;" in page and "<b>80" not in page


def test_a_report_that_fails_leaves_what_was_there(tmp_path, quick):
    e, model, a, clips = example(12, 3)
    write_code_indices(tmp_path / "codes.json", clips[:-1])
    write_cluster_report(tmp_path / "r", e, model, a)
    before = files(tmp_path / "r")
    with pytest.raises(DataError, match="not among the codes"):
        write_cluster_report(tmp_path / "r", e, model, a, tmp_path / "codes.json", force=True)
    assert files(tmp_path / "r") == before


def test_sixty_clusters_are_told_apart(tmp_path, quick):
    e, _, a, _ = example(180, 60)
    place = plot_umap(e, a, tmp_path)
    assert len(cluster_table(e, a)) == 60
    assert len({cluster_colour(k) for k in range(-1, 60)}) == 61
    assert svg_map(e, place, a).count("<circle") == 180
    told = write_behaviour(e, a, 60, tmp_path)
    assert told["transitions"] == 179 and len(told["usage"]) == 60


def test_fewer_clusters_leave_no_old_sheets(tmp_path, quick):
    e, _, a, _ = example(12, 6)
    place = positions(e)
    cluster_sheet(e, a, tmp_path, place)
    cluster_sheet(e, Assignment(a.cluster % 2, a.probability), tmp_path, place)
    assert len(list((tmp_path / "clusters").iterdir())) == 2


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("outliers", [False, True])
def test_a_handful_of_rows(tmp_path, n, outliers):
    e, model, a, clips = example(n, 1)
    a = Assignment(np.full(n, -1), np.zeros(n)) if outliers else a
    write_code_indices(tmp_path / "codes.json", clips)
    metrics = write_cluster_report(tmp_path / "r", e, model, a, tmp_path / "codes.json", scores={"ari": None})
    assert metrics["clusters_with_members"] == (not outliers)


def test_identical_rows_and_large_sets_are_placed():
    e, *_ = example(40, 2)
    same = e.select([0] * 40)
    assert positions(same).how == "principal components of 1 different points"
    assert np.isfinite(positions(same).xy).all()
    assert len(positions(same, most=7).rows) == 7


def test_umap_is_the_same_twice_and_leaves_the_threads_alone():
    import torch

    e, *_ = example(40, 2)
    before = torch.get_num_threads()
    first, second = positions(e, seed=3), positions(e, seed=3)
    assert (first.xy == second.xy).all() and first.how == "UMAP of 40 rows"
    assert torch.get_num_threads() == before


def test_windows_of_one_clip_do_not_fill_the_exemplars():
    e, _, _, _ = example(8, 1)
    rows = [{"id": "a", "start": i, "stop": i + 2} for i in range(7)] + [{"id": "b", "start": 0, "stop": 2}]
    e = Embeddings(e.x, e.labels, rows, ABOUT, ABOUT)
    ((members, _),) = from_the_centre(e, Assignment(np.zeros(8, np.int64), np.ones(8))).values()
    assert {e.rows[n]["id"] for n in members[:2]} == {"a", "b"}


def test_time_that_no_window_covers_is_unknown_and_breaks_the_chain():
    rows = [{"id": "a", "start": s, "stop": s + 2} for s in (0, 2, 6, 8)]
    e = Embeddings(np.eye(4, dtype=np.float32), [None] * 4, rows, ABOUT, ABOUT)
    (line,) = recordings(e, Assignment(np.array([0, 1, 0, 1]), np.ones(4)))
    assert line.cluster.tolist() == [0, 0, 1, 1, -2, -2, 0, 0, 1, 1]
    assert transition_counts([line], 2).tolist() == [[0, 2], [0, 0]]
    assert transition_counts([Recording("x", np.array([0, -1, 1]))], 2).sum() == 0
    for pattern in ("(", "no group"):
        with pytest.raises(DataError):
            recordings(e, Assignment(np.zeros(4, np.int64), np.ones(4)), pattern if pattern == "(" else "a")


def test_a_tokenizer_draws_what_it_decodes(tmp_path):
    e, _, a, clips = example(6, 2)
    seen = []

    class Drawn:
        codebooks = [np.zeros((8, 1))] * 2

        def encode(self, signal):
            raise AssertionError("not asked for")

        def decode(self, codes):
            return np.arange(codes.length, dtype=float)

        def sketch(self, signal, axes):
            seen.append(len(signal))

    write_code_indices(tmp_path / "codes.json", clips)
    write_exemplars(e, a, tmp_path / "codes.json", tmp_path, Drawn(), per_cluster=2)
    assert seen == [20] * 4


def verb(*arguments):
    from tokenize_lib.cli.cluster_report import report

    app = typer.Typer()
    app.command()(report)
    return typer.testing.CliRunner(env={"FORCE_COLOR": None}).invoke(app, [str(x) for x in arguments])


@pytest.fixture
def folders(tmp_path, quick):
    e, model, a, clips = example(16, 2)
    model.save(tmp_path / "fit")
    write_assignments(tmp_path / "fit" / "assignments.jsonl", e.rows, a)
    e.save(tmp_path / "emb")
    write_code_indices(tmp_path / "codes.json", clips)
    return tmp_path


def test_the_verb_writes_a_report_and_does_not_overwrite_one(folders):
    given = [
        "--clusters",
        folders / "fit",
        "--embeddings",
        folders / "emb",
        "--out",
        folders / "r",
        "--quiet",
    ]
    done = verb(*given, "--data", folders / "codes.json", "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["scores"]["ari"] == 1 and said["rows_are_those_of_the_fit"]
    assert json.loads((folders / "r" / "metrics.json").read_text())["rows"] == said["rows"] == 16
    with open(folders / "r" / "bouts.csv", newline="", encoding="utf-8") as f:
        assert len(list(csv.DictReader(f))) == said["bouts"]
    again = verb(*given)
    assert again.exit_code == 2 and "--force" in again.output
    assert verb(*given, "--force").exit_code == 0


def test_the_verb_says_what_does_not_fit(folders):
    e = Embeddings.load(folders / "emb")
    Embeddings(e.x, e.labels, e.rows, {"name": "other", "hash": "b" * 64}, e.tokenizer).save(
        folders / "other"
    )
    out = ["--out", folders / "r"]
    done = verb("--clusters", folders / "fit", "--embeddings", folders / "other", *out)
    assert done.exit_code == 2 and "another encoder" in done.output
    done = verb("--clusters", folders / "emb", "--embeddings", folders / "emb", *out)
    assert done.exit_code == 2 and "no cluster model" in done.output
    done = verb("--clusters", folders / "fit", "--embeddings", folders / "emb", "--tokenizer", folders, *out)
    assert done.exit_code == 2 and "--data" in done.output
    assert not (folders / "r").exists()


def test_assignments_that_are_torn_or_out_of_range_are_refused(folders):
    e, model = Embeddings.load(folders / "emb"), ClusterModel.load(folders / "fit")
    file = folders / "fit" / "assignments.jsonl"
    lines = file.read_text("utf-8").splitlines()
    file.write_text("\n".join([*lines[:-1], lines[-1][:20]]), "utf-8")
    with pytest.raises(FormatError, match="line 16"):
        read_assignments(folders / "fit", e, model)
    file.write_text("\n".join(lines).replace('"cluster": 1', '"cluster": 7'), "utf-8")
    with pytest.raises(FormatError, match="out of range"):
        read_assignments(folders / "fit", e, model)

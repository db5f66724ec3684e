"""Clips that come later: streams of codes, codes of other programs, and everything that may be wrong with them."""

import io
import json
import sys
import tracemalloc
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from tokenize_lib.cli.main import run as program
from tokenize_lib.cluster.config import BayesGmmConfig
from tokenize_lib.cluster.embeddings import embed_codes
from tokenize_lib.cluster.fingerprint import Fingerprint
from tokenize_lib.cluster.fitting import fit_bayes_gmm, fit_hdbscan, fit_kmeans, held_out, save_fit
from tokenize_lib.cluster.foreign import Foreign, import_codes
from tokenize_lib.cluster.online import Predictor, line_batches, predict_stream, write_code_lines
from tokenize_lib.cluster.sequences import code_set, learnt_vectors, load_code_set
from tokenize_lib.core.errors import DataError, FormatError
from tokenize_lib.quantize.codes import Codes, write_code_indices

TOKENIZER = {"name": "dial", "hash": "d" * 64}
SHARED = {"tokenizer": TOKENIZER, "factor_l": 4, "codebook_sizes": [32, 8]}
ANGLE = 2 * np.pi * np.arange(32) / 32
BOOKS = [np.stack([np.cos(ANGLE), np.sin(ANGLE)], 1), np.random.default_rng(0).normal(0, 0.05, (8, 2))]
KINDS = ("clockwise", "counter", "wide", "narrow")


def turn(n, rng):
    t = np.arange(rng.integers(18, 30))
    swing = {"clockwise": t, "counter": -t, "wide": 10 * np.sin(t / 3), "narrow": 4 * np.sin(t / 1.5)}[
        KINDS[n % 4]
    ]
    ids = np.round(swing + rng.normal(0, 0.3, len(t))).astype(int) % 32
    ids = np.stack([ids, rng.integers(0, 8, len(t))], 1)
    return Codes(
        ids, 4 * len(t), 4, (32, 8), tokenizer=TOKENIZER, id=f"{KINDS[n % 4]}/{n}", label=KINDS[n % 4]
    )


def clips_of(n, seed=0):
    rng = np.random.default_rng(seed)
    return [turn(i, rng) for i in range(n)]


@pytest.fixture(scope="module")
def clips():
    return clips_of(160)


@pytest.fixture(scope="module")
def encoder(clips):
    return Fingerprint.fit(code_set(clips), [b.astype(np.float32) for b in BOOKS])


@pytest.fixture(scope="module")
def fits(clips, encoder):
    e = embed_codes(encoder, code_set(clips))
    return {"bayes_gmm": fit_bayes_gmm(e), "hdbscan": fit_hdbscan(e), "kmeans": fit_kmeans(e)}


@pytest.fixture(scope="module")
def home(tmp_path_factory, clips, encoder, fits):
    folder = tmp_path_factory.mktemp("home")
    encoder.save_pretrained(folder / "enc")
    e = embed_codes(encoder, code_set(clips))
    e.save(folder / "emb")
    save_fit(folder / "gmm", e, fits["bayes_gmm"])
    write_code_lines(folder / "clips.jsonl", clips)
    return folder


def cli(*words, stdin=b""):
    out, err = io.StringIO(), io.StringIO()
    fake = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
    with (
        patch.object(sys, "argv", ["tokenize-lib", *map(str, words)]),
        patch.object(sys, "stdin", fake),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        program()
    return stop.value.code, out.getvalue(), err.getvalue()


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def entry(**changes):
    c = clips_of(1)[0]
    return {"id": "x", "length": c.length, "codes": c.ids.tolist()} | changes


def stream_of(*records):
    return io.BytesIO(b"\n".join(r if isinstance(r, bytes) else json.dumps(r).encode() for r in records))


@pytest.mark.parametrize("name", ["bayes_gmm", "hdbscan", "kmeans"])
def test_online_is_offline_for_every_clip_and_source(name, fits, encoder, clips, tmp_path):
    f = fits[name]
    expected = [(c.id, k, round(p, 6)) for c, k, p in
                zip(clips, f.assignment.cluster.tolist(), f.assignment.probability.tolist(), strict=True)]  # fmt: skip
    predictor = Predictor(encoder, f.model)
    write_code_lines(tmp_path / "a.jsonl", clips)
    write_code_indices(tmp_path / "code_indices.json", clips)
    single = io.BytesIO((tmp_path / "a.jsonl").read_bytes())
    single.read1 = lambda n: single.readline()  # one line at a time, as from a slow program
    for source in (tmp_path / "a.jsonl", tmp_path / "code_indices.json", tmp_path, single):
        out = []
        report = predict_stream(predictor, [source], out.append)
        assert [(r["id"], r["cluster"], r["probability"]) for r in out] == expected
        assert (report.clips, report.bad) == (160, 0) and report.outliers == sum(r["outlier"] for r in out)


def test_windows_and_lengths_are_made_as_for_the_fit(clips, encoder):
    codes = code_set(clips)
    e = embed_codes(encoder, codes, l2_normalize=True, window_tokens=10, hop_tokens=5)
    f = fit_kmeans(e, 4)
    out = []
    predict_stream(Predictor(encoder, f.model, 10, 5), [stream_of(SHARED, *[
        {"id": c.id, "length": c.length, "codes": c.ids.tolist()} for c in clips])], out.append)  # fmt: skip
    assert [{k: r[k] for k in ("id", "start", "stop")} for r in out] == e.rows
    assert [r["cluster"] for r in out] == f.assignment.cluster.tolist()


BROKEN = {
    "cut": b'{"id": "a", "length": 8, "codes": [[1, 2], [3',
    "not json": b"hello",
    "not utf-8": b'{"id": "\xff\xfe"}',
    "a list": [1, 2],
    "no codes and no header": {"id": "a", "length": 8},
    "no id": {"length": 4, "codes": [[1, 2]]},
    "length 0": entry(length=0, codes=[]),
    "empty codes": entry(codes=[]),
    "wrong length": entry(length=3),
    "code too large": entry(codes=[[32, 0]], length=4),
    "negative": entry(codes=[[-1, 0]], length=4),
    "ragged": entry(codes=[[1, 0], [1]], length=8),
    "floats": entry(codes=[[1.0, 0.0]], length=4),
    "a NaN": b'{"id": "a", "length": 4, "codes": [[NaN, 0]]}',
    "codes a number": entry(codes=7),
    "unknown field": entry(colour="red"),
    "other tokenizer": entry(tokenizer={"name": "other", "hash": "0" * 64}),
    "other factor": entry(factor_l=2, length=2 * len(entry()["codes"])),
    "other codebooks": entry(codebook_sizes=[64, 64]),
    "other layers": entry(codebook_sizes=[32], codes=[[1]], length=4),
    "deep": b"[" * 100000,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_line_is_reported_counted_and_skipped(kind, fits, encoder):
    out, told = [], []
    stream = stream_of(SHARED, entry(id="before"), BROKEN[kind], entry(id="after"))
    report = predict_stream(
        Predictor(encoder, fits["bayes_gmm"].model), [stream], out.append, lambda *w: told.append(w)
    )
    assert [r["id"] for r in out] == ["before", "after"]
    assert report.bad == len(told) == 1 and told[0][0] == "standard input: line 3" and told[0][1]
    with pytest.raises(FormatError, match="line 3"):
        again = stream_of(SHARED, entry(id="before"), BROKEN[kind], entry(id="after"))
        predict_stream(Predictor(encoder, fits["bayes_gmm"].model), [again], out.append, strict=True)


def test_clips_of_one_token_are_assigned(fits, encoder):
    out = []
    short = [entry(id=f"{n}", length=n, codes=[[3, 1]]) for n in (1, 2, 4)]
    report = predict_stream(Predictor(encoder, fits["kmeans"].model), [stream_of(SHARED, *short)], out.append)
    assert report.bad == 0 and [r["stop"] for r in out] == [1, 1, 1]


def test_memory_does_not_grow_with_the_stream(fits, encoder):
    predictor = Predictor(encoder, fits["bayes_gmm"].model)
    entries = [
        json.dumps({"id": c.id, "length": c.length, "codes": c.ids.tolist()}).encode() for c in clips_of(50)
    ]
    block = b"\n".join([json.dumps(SHARED).encode(), *entries, b"broken", b""])

    class Long(io.RawIOBase):
        def __init__(self, blocks):
            self.left = blocks

        def read(self, _=-1):
            self.left -= 1
            return block if self.left >= 0 else b""

    def peak(blocks):
        tracemalloc.start()
        report = predict_stream(predictor, [Long(blocks)], lambda record: None)
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (report.clips, report.bad) == (50 * blocks, blocks)
        return top

    peak(5)
    assert peak(60) < peak(10) + 2**17  # a record kept for each of 2,500 clips would be more than twice that


def test_a_line_without_an_end_is_not_kept():
    with patch("tokenize_lib.cluster.online._LONGEST", 1000):
        chunks = iter([b"x" * 800, b"x" * 800, b"x" * 800, b'\n{"a": 1}\n', b""])
        stream = io.RawIOBase()
        stream.read = lambda n: next(chunks)
        assert [pair for batch in line_batches(stream) for pair in batch] == [(1, None), (2, b'{"a": 1}')]


def test_clusters_of_another_encoder_are_refused(fits, clips):
    other = Fingerprint.fit(code_set(clips[:80]), [b.astype(np.float32) for b in BOOKS])
    with pytest.raises(DataError, match="another encoder"):
        Predictor(other, fits["kmeans"].model)


@pytest.mark.parametrize("fit", [fit_bayes_gmm, fit_kmeans])
def test_clips_never_seen_by_encoder_or_fit_are_assigned_as_well(fit):
    seen, new = code_set(clips_of(300, 1)), code_set(clips_of(300, 2))
    encoder = Fingerprint.fit(seen, [b.astype(np.float32) for b in BOOKS])
    how = fit if fit is fit_kmeans else (lambda e: fit_bayes_gmm(e, BayesGmmConfig(n_components=4)))
    result = held_out(how, embed_codes(encoder, seen), embed_codes(encoder, new))
    assert result["ari_seen"] > 0.4 and abs(result["ari_seen"] - result["ari_new"]) < 0.06
    assert result["noise_new"] <= result["noise_seen"] + 0.02


def test_the_program_predicts_as_it_fitted(home):
    words = ("cluster", "predict", "--model", home / "gmm", "--encoder", home / "enc", "--data")
    code, out, _ = cli(*words, home / "clips.jsonl")
    assigned = lines((home / "gmm/assignments.jsonl").read_text())
    assert code == 0 and [{k: r[k] for k in assigned[0]} for r in lines(out)] == assigned
    code, piped, _ = cli(*words, "-", stdin=(home / "clips.jsonl").read_bytes())
    assert (code, piped) == (0, out)
    code, none, _ = cli(*words, home / "clips.jsonl", "--out", home / "assigned.jsonl")
    assert (code, none, (home / "assigned.jsonl").read_text()) == (0, "", out)
    code, strict, _ = cli(*words, home / "clips.jsonl", "--prob-thr", "1")
    assert sum(r["outlier"] for r in lines(strict)) >= sum(r["outlier"] for r in lines(out))


def test_the_program_reports_a_broken_line_and_goes_on(home):
    text = (home / "clips.jsonl").read_bytes().splitlines()
    text[10] = text[10][:25]
    code, out, err = cli(
        "cluster",
        "predict",
        "--model",
        home / "gmm",
        "--encoder",
        home / "enc",
        "--data",
        "-",
        stdin=b"\n".join(text),
    )
    assert code == 1 and len(lines(out)) == 159 and "line 11" in err and "1 clips or lines" in err


@pytest.mark.parametrize(
    "what",
    ["codes of another tokenizer", "empty folder", "no file", "touched model", "no model", "codes mixed"],
)
def test_the_program_refuses_and_writes_nothing(what, home, clips, tmp_path):
    model, data = home / "gmm", tmp_path / "data"
    data.mkdir()
    other = Codes(
        clips[0].ids, clips[0].length, 4, (32, 8), tokenizer={"name": "o", "hash": "0" * 64}, id="o"
    )
    if what == "codes of another tokenizer":
        other.save(data / "o.codes.json")
    elif what == "no file":
        data = tmp_path / "nowhere.jsonl"
    elif what == "touched model":
        (tmp_path / "m").mkdir()
        for p in model.glob("cluster_model.*"):
            (tmp_path / "m" / p.name).write_bytes(p.read_bytes())
        text = (tmp_path / "m/cluster_model.json").read_text()
        (tmp_path / "m/cluster_model.json").write_text(text.replace('"prob_thr": 0.2', '"prob_thr": 0.1'))
        model, data = tmp_path / "m", home / "clips.jsonl"
    elif what == "no model":
        model, data = tmp_path, home / "clips.jsonl"
    elif what == "codes mixed":
        with pytest.raises(DataError, match="not like the first"):
            code_set([clips[0], other])
        write_code_lines(data / "a.jsonl", [other, clips[0]])
    out = tmp_path / "out.jsonl"
    code, printed, err = cli(
        "cluster", "predict", "--model", model, "--encoder", home / "enc", "--data", data, "--out", out
    )
    assert (code, printed) == (2, "") and err.count("\n") == 1 and not out.exists()


def test_the_program_fits_judges_and_refuses_what_cannot_be_fitted(home, clips, encoder, tmp_path):
    code, out, _ = cli(
        "cluster", "fit-hdbscan", "--data", home / "emb", "--out", tmp_path / "hdb", "--no-pictures", "--json"
    )
    assert code == 0 and json.loads(out) == json.loads((tmp_path / "hdb/metrics.json").read_text())
    assert (
        cli("cluster", "fit-hdbscan", "--data", home / "emb", "--out", tmp_path / "hdb", "--no-pictures")[0]
        == 2
    )
    code, _, err = cli(
        "cluster",
        "fit-bayes-gmm",
        "--data",
        home / "emb",
        "--out",
        tmp_path / "g",
        "--n-components",
        500,
        "--no-pictures",
    )
    assert code == 2 and "fewer rows than clusters" in err and not (tmp_path / "g").exists()
    embed_codes(encoder, code_set(clips[:1])).save(tmp_path / "one")
    code, _, err = cli(
        "cluster", "fit-bayes-gmm", "--data", tmp_path / "one", "--out", tmp_path / "g", "--no-pictures"
    )
    assert code == 2 and "one row cannot be clustered" in err and not (tmp_path / "g").exists()
    code, out, _ = cli(
        "cluster",
        "evaluate-labelled",
        "--data",
        home / "emb",
        "--out",
        tmp_path / "e",
        "--seeds",
        2,
        "--nuisance-from",
        r"(\d)\d$",
        "--json",
    )
    assert (
        code == 0 and json.loads(out)["mean"]["ari"] > 0.5 and json.loads(out)["mean"]["nuisance_nmi"] < 0.3
    )
    assert cli("cluster", "evaluate-labelled", "--data", tmp_path, "--out", tmp_path / "e2")[0] == 2


FOREIGN = {
    "flat": ([1, 2, 3], [("f", 3, 1)]),
    "nested": ([[1, 2], [3, 4], [5, 6]], [("f", 3, 2)]),
    "groups": ([[[1, 2]] * 4] * 3, [("f", 3, 2)]),
    "object": ({"code_indices": [1, 2]}, [("f", 2, 1)]),
    "by name": ({"a": [1, 2], "b": {"tokens": [3]}}, [("f/a", 2, 1), ("f/b", 1, 1)]),
    "list of objects": (
        [{"id": "a", "codes": [1]}, {"name": "b", "codes": [2]}],
        [("f/a", 1, 1), ("f/b", 1, 1)],
    ),
    "clips in a field": ({"clips": [{"id": "a", "codes": [1]}]}, [("f/a", 1, 1)]),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_other_programs_nestings_are_read(kind, tmp_path):
    data, expected = FOREIGN[kind]
    (tmp_path / "f.json").write_text(json.dumps(data))
    import_codes(tmp_path / "f.json", tmp_path / "out", Foreign(factor_l=4, codebook_size=(16,)))
    got = load_code_set(tmp_path / "out")
    assert [
        (i, int(n), len(got.codebook_sizes)) for i, n in zip(got.ids, got.lengths, strict=True)
    ] == expected


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "not valid JSON"),
        ("7", "no clips in it"),
        ("[]", "no codes"),
        ("[[]]", "ragged"),
        ("[[1, 2], [3]]", "ragged"),
        ("[1.5]", "ragged"),
        ('{"fps": 30}', "no clips in it"),
        ('{"../../x": [1]}', "not a name for a file"),
        ('{"a\\\\b": [1]}', "not a name for a file"),
        ("[1, -1]", "out of range"),
        ("[1, 99]", "out of range"),
        ('{"codes": [1, 2], "length": 100}', "wrong shape"),
        ('{"codes": "abc"}', "not a list"),
        ('{"codes": [true, false]}', "not integers"),
    ],
)
def test_what_is_no_file_of_indices_says_so(data, says, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/good.json").write_text("[1, 2]")
    (tmp_path / "in/bad.json").write_text(data)
    report = import_codes(tmp_path / "in", tmp_path / "out", Foreign(codebook_size=(16,)))
    assert report.clips == 1 and len(report.failures) == 1 and says in report.failures[0][1]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["code_indices.json", "good.codes.json"]
    code, _, err = cli(
        "cluster", "import", tmp_path / "in", tmp_path / "out2", "--codebook-size", "16", "--strict"
    )
    assert code == 2 and says in err and not (tmp_path / "out2").exists()


def test_labels_of_an_import_come_from_where_the_user_says(tmp_path):
    for label in ("walk", "läuft 2"):
        (tmp_path / "in" / label).mkdir(parents=True)
        (tmp_path / "in" / label / "s1_bow.json").write_text(json.dumps({"codes": [1, 2], "action": "jump"}))
    for n, (rule, expected) in enumerate(
        {"folder": {"walk", "läuft 2"}, "field": {"jump"}, r"_(\w+)$": {"bow"}}.items()
    ):
        code, _, err = cli(
            "cluster", "import", tmp_path / "in", tmp_path / f"o{n}", "--label-from", rule, "--quiet"
        )
        assert code == 0, err
        assert set(load_code_set(tmp_path / f"o{n}").labels) == expected
    assert cli("cluster", "import", tmp_path / "in", tmp_path / "x", "--label-from", "(")[0] == 2


def test_codes_of_any_tokenizer_go_the_whole_way(tmp_path):
    """Imported indices, vectors learnt from them, clusters, prediction: no tokenizer at hand."""
    for c in clips_of(120, 5):
        file = tmp_path / "in" / f"{c.id}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(c.ids[:, 0].tolist()))
    import_codes(tmp_path / "in", tmp_path / "codes", Foreign(4, (32,), "folder"))
    codes = load_code_set(tmp_path / "codes")
    encoder = Fingerprint.fit(codes, learnt_vectors(codes, 8))
    e = embed_codes(encoder, codes)
    f = fit_bayes_gmm(e, BayesGmmConfig(n_components=4))
    out = []
    predict_stream(Predictor(encoder, f.model), [Path(tmp_path / "codes")], out.append)
    assert [r["cluster"] for r in out] == f.assignment.cluster.tolist()

"""Corpora in shards: the same bytes from any number of processes, any engine, and after any interruption."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import chain
from unittest.mock import Mock, patch

import numpy as np
import pytest
from joblib.externals.loky import reusable_executor

from tokenize_lib.core.errors import ConfigError, DataError, FormatError, TokenizeError
from tokenize_lib.core.parallel import work_through
from tokenize_lib.pose import corpus
from tokenize_lib.pose.clips import Clip, read_clip, write_clip
from tokenize_lib.pose.corpus import encode_corpus
from tokenize_lib.pose.corpus_decode import decode_corpus
from tokenize_lib.pose.synthetic import synthetic_motion
from tokenize_lib.pose.tokenizer import PoseTokenizer
from tokenize_lib.pose.train import resolve_config, train_tokenizer
from tokenize_lib.quantize.codes import Codes
from tokenize_lib.quantize.shards import load_codes, read_shard, read_shards, write_shard, write_shards

TINY = {
    "train": {"batch_size": 4, "window_T": 16, "max_steps": 2},
    "model": {"d_model": 8, "encoder": {"latent_dilations": [1]}, "quantizer": {"codebook_size": 16, "code_dim": 4}},
    "logging": {"tensorboard": False},
}  # fmt: skip
BAD = {"000_torn.npz", "zz/flat.npz"}


@pytest.fixture(scope="module")
def motion():
    return synthetic_motion(30, seed=4, frames=(1, 40))


@pytest.fixture(scope="module")
def model(tmp_path_factory, motion):
    out = tmp_path_factory.mktemp("corpus") / "run"
    train_tokenizer(motion, out, resolve_config(motion, TINY), device="cpu", quiet=True)
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory, motion):
    """Thirty clips, some of one frame, one with a name of its own alphabet, and two bad files."""
    folder = tmp_path_factory.mktemp("corpus") / "clips"
    for n, c in enumerate(motion.clips):
        c = replace(c, pose=c.pose[:1], conf=None) if n == 7 else c
        c = replace(c, id="прыжок 跳") if n == 9 else c
        write_clip(folder / f"{n % 3}" / f"{c.id}.npz", replace(c, skeleton=motion.skeleton))
    write_clip(folder / "zz" / "flat.npz", replace(synthetic_motion(1, dims=2).clips[0], id="flat"))
    (folder / "000_torn.npz").write_bytes(b"PK\x03\x04 and no more")
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, source):
    """What an uninterrupted call in one process writes."""
    out = tmp_path_factory.mktemp("corpus") / "whole"
    report = encode_corpus(model, source, out, shards=5, quiet=True)
    assert (report.done, report.shards) == (30, 5) and {f for f, _ in report.failures} == BAD
    return out


def encoding(model, source, out, *more):
    """The words of a call that writes five shards."""
    where = {"--model": model, "--data": source, "--out": out, "--shards": 5}
    return ["pose", "encode", *chain(*where.items()), *more]


def files(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def copy(tmp_path, source):
    """A corpus that may be changed; the files keep their times."""
    return shutil.copytree(source, tmp_path / "clips")


# --- the same whatever does the work


def test_shards_hold_what_the_files_hold(tmp_path, model, source, whole):
    report = encode_corpus(model, source, tmp_path / "codes", quiet=True)
    assert load_codes(whole) == load_codes(tmp_path / "codes") == list(read_shards(whole))
    tokenizer, clip = PoseTokenizer.from_pretrained(model), "прыжок 跳"
    alone = tokenizer.encode(replace(read_clip(source / "0" / f"{clip}.npz"), id=clip))
    assert next(c for c in read_shards(whole) if c.id == clip) == alone
    about = encode_corpus(model, source, tmp_path / "again", shard_size=7, quiet=True).to_dict()
    assert about.pop("shards") == 5 and about["frames"] == report.frames
    assert {k: v for k, v in about.items() if k != "out"} == {
        k: v for k, v in report.to_dict().items() if k != "out"
    }


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra: tokenize_lib[ray]")
def test_a_cluster_writes_the_same_bytes(tmp_path, monkeypatch, model, source, whole):
    """A local one. Bad clips and errors come back as they are; a cluster that was there before stays, another would be ended."""
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # Ray's own note of where it is
    try:
        started = dict(is_initialized=lambda: False, init=Mock(), shutdown=Mock())
        with patch.multiple(ray, **started):
            report = encode_corpus(
                model, source, tmp_path / "ray", shards=5, jobs=2, engine="ray", quiet=True
            )
        assert started["init"].call_args_list[0].kwargs["num_cpus"] == 2
        started["shutdown"].assert_called_once()
        assert files(tmp_path / "ray") == files(whole)
        assert {f for f, _ in report.failures} == BAD
        with pytest.raises(DataError, match="flat.npz: pose: 2D data where 3D is asked for"):
            encode_corpus(model, source / "zz", tmp_path / "bad", shards=1, engine="ray", quiet=True)
        with pytest.raises(ZeroDivisionError):
            list(work_through(divmod, [(1, 1), (1, 0)], 2, engine="ray"))
        assert ray.is_initialized()
    finally:
        ray.shutdown()


def test_without_ray_it_says_what_to_install(tmp_path, model, source):
    with patch.dict(sys.modules, {"ray": None}), pytest.raises(ConfigError, match=r"tokenize_lib\[ray\]"):
        encode_corpus(model, source, tmp_path / "out", shards=5, engine="ray", quiet=True)


def test_a_worker_that_dies_ends_the_call_with_an_error():
    with pytest.raises(TokenizeError, match="worker process died"):
        list(work_through(os._exit, [(1,)] * 4, 4, jobs=2))
    assert reusable_executor._executor is None or reusable_executor._executor._flags.shutdown


def test_clips_are_handed_out_by_the_dozen_and_held_by_the_frame(model, motion):
    """Long clips are not gathered in memory, and one bad clip does not cost the others of its dozen."""
    long = [Clip(np.zeros((12_000, 17, 3), np.float32))] * 3
    assert [len(p) for p in corpus._portions(long)] == [2, 1]
    clips = [*motion.clips[:3], DataError("torn")]
    bad = replace(motion.clips[3], pose=motion.clips[3].pose[:, :5], skeleton=None)
    found = corpus._together(PoseTokenizer.from_pretrained(model).encode, [bad, *clips])
    assert [type(c).__name__ for c in found] == ["DataError", "Codes", "Codes", "Codes", "DataError"]


# --- interrupted


def until_shard(process, out, n):
    while process.poll() is None and not (out / f"codes-{n:05d}.npz").exists():
        time.sleep(0.002)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_call_is_resumed_to_the_same_bytes(tmp_path, model, source, whole, jobs):
    words = encoding(model, source, tmp_path / "out", "--jobs", jobs)
    slow = "import tokenize_lib.pose.corpus as c, time; w = c.write_shard\n"
    slow += "c.write_shard = lambda *a: (time.sleep(0.3), w(*a))\n" if jobs == 1 else ""
    code = slow + "from tokenize_lib.cli.main import run; run()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until_shard(process, tmp_path / "out", 1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = files(tmp_path / "out")
    assert all(files(whole)[k] == v for k, v in left.items() if not k.startswith("."))  # whole files only
    (tmp_path / "out" / ".codes-00002.npz.0011aabb.tmp").write_bytes(
        b"PK"
    )  # what a kill while writing leaves
    report = encode_corpus(model, source, tmp_path / "out", shards=5, resume=True, quiet=True)
    assert files(tmp_path / "out") == files(whole)
    assert report.kept >= 10 and {f for f, _ in report.failures} == BAD


def test_interrupted_at_any_shard(tmp_path, model, source, whole):
    for stop in range(5):
        out, written = tmp_path / str(stop), []

        def interrupted(path, clips, stop=stop, written=written):
            if len(written) == stop:
                raise KeyboardInterrupt
            written.append(path)
            write_shard(path, clips)

        with patch.object(corpus, "write_shard", interrupted), pytest.raises(KeyboardInterrupt):
            encode_corpus(model, source, out, shards=5, quiet=True)
        with pytest.raises(FormatError, match="no codes"):
            load_codes(out)
        encode_corpus(model, source, out, shards=5, resume=True, quiet=True)
        assert files(out) == files(whole)


def test_resuming_follows_the_source(tmp_path, model, copy):
    """Changed, new, mended and removed clips, a damaged shard, another number of shards: as if encoded afresh."""
    out = tmp_path / "out"
    encode_corpus(model, copy, out, shards=5, quiet=True)
    before = files(out)

    def as_if_afresh(n, kept):
        report = encode_corpus(model, copy, out, shards=n, resume=True, quiet=True)
        encode_corpus(model, copy, tmp_path / "fresh", shards=n, force=True, quiet=True)
        assert files(out) == files(tmp_path / "fresh")
        assert kept is None or report.kept == kept
        return report

    as_if_afresh(5, kept=30)
    assert files(out) == before
    some = sorted((copy / "1").glob("*.npz"))
    write_clip(some[0], replace(read_clip(some[0]), pose=read_clip(some[0]).pose * 1.1))
    as_if_afresh(5, kept=29)
    (out / "codes-00003.npz").write_bytes(before["codes-00003.npz"][:200])
    as_if_afresh(5, kept=30 - len(read_shard(tmp_path / "fresh" / "codes-00003.npz")))
    some[0].unlink()
    shutil.copy(some[1], copy / "000_torn.npz")  # mended: a clip, whose id is used twice now
    report = as_if_afresh(5, kept=None)
    assert len(report.failures) == 1
    assert as_if_afresh(2, kept=None).shards == 2
    assert not list(out.glob("codes-00002.npz"))


def test_folders_are_not_mixed(tmp_path, model, motion, source, whole):
    before = files(whole)
    with pytest.raises(ConfigError, match="holds codes already"):
        encode_corpus(model, source, whole, shards=5, quiet=True)
    with pytest.raises(ConfigError, match="another layout"):
        encode_corpus(model, source, whole, resume=True, quiet=True)
    other = tmp_path / "other"
    train_tokenizer(motion, other, resolve_config(motion, TINY | {"train": TINY["train"] | {"seed": 5}}), device="cpu", quiet=True)  # fmt: skip
    with pytest.raises(ConfigError, match="another tokenizer"):
        encode_corpus(other, source, whole, shards=5, resume=True, quiet=True)
    with pytest.raises(FormatError, match="another tokenizer"):
        decode_corpus(other, whole, tmp_path / "back", quiet=True)
    for wrong in ({"shards": 2, "shard_size": 2}, {"shards": 0}, {"shard_size": -1}, {"engine": "dask"}):
        with pytest.raises(ConfigError):
            encode_corpus(model, source, tmp_path / "wrong", quiet=True, **wrong)
    with pytest.raises(FormatError, match="000_torn.npz"):
        encode_corpus(model, source, tmp_path / "strict", shards=5, strict=True, quiet=True)
    assert files(whole) == before


# --- back again


def test_shards_decode_to_every_length(tmp_path, model, source, whole):
    report = decode_corpus(model, whole, tmp_path / "back", quiet=True)
    assert report.done == 30
    for path in source.glob("[0-9]/*.npz"):
        clip = read_clip(path)
        assert read_clip(tmp_path / "back" / f"{path.stem}.npz").pose.shape == clip.pose.shape
    assert decode_corpus(model, whole, tmp_path / "back", resume=True, quiet=True).kept == 30


def test_a_damaged_shard_costs_itself_alone(tmp_path, model, whole):
    shutil.copytree(whole, tmp_path / "codes")
    data = bytearray(files(whole)["codes-00001.npz"])
    data[len(data) // 2] ^= 1
    (tmp_path / "codes" / "codes-00001.npz").write_bytes(data)
    report = decode_corpus(model, tmp_path / "codes", tmp_path / "back", quiet=True)
    assert report.done == 30 - len(read_shard(whole / "codes-00001.npz"))
    assert [f for f, _ in report.failures] == ["codes-00001.npz"]
    with pytest.raises(FormatError, match="codes-00001.npz"):
        load_codes(tmp_path / "codes")


def test_the_command_line_writes_the_same_with_two_processes_and_lists_failures(
    tmp_path, model, source, whole
):
    words = encoding(model, source, tmp_path / "out", "--json")
    code = "from tokenize_lib.cli.main import run; run()"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words), "--jobs", "2"], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert (report["clips"], report["shards"]) == (30, 5)
    assert {f["file"] for f in report["failures"]} == BAD
    lines = done.stderr.splitlines()
    assert all(line.startswith(("note: ", "warning: ")) for line in lines), (
        done.stderr
    )  # workers speak through the parent
    assert sum("left out" in line for line in lines) == 2
    assert files(tmp_path / "out") == files(whole)


# --- the file


def test_a_shard_cut_or_altered_anywhere_is_refused(tmp_path, whole):
    data, rng = files(whole)["codes-00000.npz"], np.random.default_rng(0)
    path, ours = tmp_path / "x.npz", read_shard(whole / "codes-00000.npz")
    for n in rng.integers(0, len(data), 40):
        path.write_bytes(data[:n])
        with pytest.raises(FormatError):
            read_shard(path)
    for n in rng.integers(0, len(data), 150):
        path.write_bytes(data[:n] + bytes([data[n] ^ 1 << rng.integers(8)]) + data[n + 1 :])
        try:
            assert read_shard(path) == ours  # a byte that says nothing, such as a time stamp
        except FormatError:
            pass


def test_ten_thousand_clips_make_small_shards(tmp_path):
    """A shard costs little more than its numbers; every clip comes back as it was."""
    rng = np.random.default_rng(0)
    clips = [
        Codes(rng.integers(0, 1024, (10, 3)), 40, 4, (1024,) * 3, id=f"clip{n}", fps=30.0,
              side={"scale": 0.25, "root": rng.normal(size=(2, 3)).astype(np.float32).tolist()})
        for n in range(10_000)
    ]  # fmt: skip
    write_shards(tmp_path, iter(clips), 4000)
    found = list(read_shards(tmp_path))
    assert len(list(tmp_path.glob("codes-*.npz"))) == 3
    assert all(
        (a.ids == b.ids).all() and (a.id, a.side) == (b.id, b.side) for a, b in zip(found, clips, strict=True)
    )
    numbers = 10_000 * (30 * 10 / 8 + 6 * 4)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 1.5 * numbers + 10_000 * 8

"""The command line from end to end: what it prints where, how it ends, what it leaves behind, and what it does when killed."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tokenize_lib.cli.main import run as program
from tokenize_lib.core.run import read_log
from tokenize_lib.pose.clips import read_clip, write_clip
from tokenize_lib.pose.synthetic import synthetic_motion
from tokenize_lib.quantize.codes import Codes
from tokenize_lib.quantize.shards import load_codes

STEPS = 120
TINY = ["model.d_model=8", "model.encoder.num_stgcn_blocks=1", "model.encoder.channels=[4]", "model.quantizer.codebook_size=16",
        "model.decoder.num_refine_blocks=0", "train.batch_size=4", "train.window_T=16", "train.num_workers=0",
        f"train.max_steps={STEPS}", "logging.log_every_steps=1", "logging.tensorboard=false"]  # fmt: skip
TINY = [word for setting in TINY for word in ("-o", setting)]
Result = namedtuple("Result", "code out err")


def cli(*words):
    """Run the program in this process: exit code, standard output, standard error."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["tokenize-lib", *map(str, words)]
    with (
        patch.object(sys, "argv", argv),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        program()
    return Result(stop.value.code, out.getvalue(), err.getvalue())


def good(*words, code=0):
    done = cli(*words)
    assert done.code == code, done.err
    return done


def started(*words):
    """Start the program as a process of its own."""
    code = "from tokenize_lib.cli.main import run; run()"
    command = [sys.executable, "-c", code, *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # as here: sums depend on it
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def refused(done, *expected):
    """Exit code 2, nothing on standard output, one line on standard error that says `expected`."""
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert (done.code, done.out, len(lines)) == (2, "", 1), done
    assert "Traceback" not in done.err
    for word in expected:
        assert word in lines[0]


@contextmanager
def without_permission(folder):
    """Nobody may write into `folder`; root loses its privilege meanwhile, or it could."""
    root = os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("cli")
    for parent in [home, *list(home.parents)[:2]]:
        parent.chmod(0o755)  # readable for whoever root becomes in `without_permission`
    return home


@pytest.fixture(scope="module")
def motion():
    return synthetic_motion(24, seed=3, frames=(17, 60))


@pytest.fixture(scope="module")
def clips(home, motion):
    for c in motion.clips:
        write_clip(home / "clips" / c.group / f"{c.id}.npz", replace(c, skeleton=motion.skeleton))
    return home / "clips"


@pytest.fixture(scope="module")
def prepared(home, clips):
    done = good("pose", "prepare", "--data", clips, "--out", home / "prepared", "--json")
    assert json.loads(done.out) == json.loads((home / "prepared" / "stats.json").read_text())
    return home / "prepared"


@pytest.fixture(scope="module")
def model(home, prepared):
    words = ["--data", prepared, "--out", home / "run", "--seed", 1, "--device", "cpu", "--json", *TINY]
    done = good("pose", "train", *words)
    assert json.loads(done.out) == json.loads((home / "run" / "metrics.json").read_text())
    return home / "run"


@pytest.fixture(scope="module")
def codes(home, model, clips):
    done = good("pose", "encode", "--model", model, "--data", clips, "--out", home / "codes", "--json")
    assert json.loads(done.out)["clips"] == 24
    return home / "codes"


# --- the examples of the contract


def test_prepare_writes_what_train_needs(prepared, motion):
    assert {p.name for p in prepared.iterdir()} == {
        "clips",
        "prepared.json",
        "skeleton.json",
        "splits.json",
        "stats.json",
    }
    splits = json.loads((prepared / "splits.json").read_text())
    assert sorted(i for ids in splits.values() for i in ids) == sorted(motion.ids)
    assert all(splits.values())


def test_train_leaves_a_run(model):
    assert {"config.yaml", "log.jsonl", "metrics.json", "environment.json", "checkpoints", "best"} <= {
        p.name for p in model.iterdir()
    }
    assert {p.name for p in (model / "best").iterdir()} == {"config.json", "model.safetensors"}
    terms = {k for row in read_log(model) for k in row if k.startswith("train/")}
    assert {f"train/{k}" for k in ("loss", "pos", "vel", "acc", "bone", "vq", "lr")} <= terms
    assert json.loads((model / "environment.json").read_text())["seed"] == 1


def test_eval_measures_a_split_and_keeps_it(home, model, prepared):
    words = [
        "pose",
        "eval",
        "--model",
        model,
        "--data",
        prepared,
        "--split",
        "test",
        "--out",
        home / "eval",
        "--json",
    ]
    first = good(*words)
    assert json.loads(first.out) == json.loads((home / "eval" / "metrics.json").read_text())
    assert (home / "eval" / "report.html").is_file()
    assert list((home / "eval" / "plots").glob("*.png"))
    refused(cli(*words), "eval")
    again = good(*words, "--force")
    assert json.loads(again.out) == json.loads(first.out)


def test_codes_have_the_promised_shape(codes, motion):
    found = {c.id: c for c in load_codes(codes)}
    for clip in motion.clips:
        assert found[clip.id].ids.shape == (-(-len(clip) // 4), 3)
        assert Codes.load(codes / f"{clip.id}.codes.json") == found[clip.id]
        assert found[clip.id].label == clip.label


def test_decode_gives_every_length_back(home, model, codes, motion):
    done = good("pose", "decode", "--model", model, "--data", codes, "--out", home / "back", "--json")
    assert json.loads(done.out)["frames"] == sum(map(len, motion.clips))
    for clip in motion.clips:
        back = read_clip(home / "back" / f"{clip.id}.npz")
        assert (back.pose.shape, back.fps, back.label) == (clip.pose.shape, clip.fps, clip.label)
        assert np.isfinite(back.pose).all()


def test_export_is_what_it_says(home, model):
    about = json.loads(good("pose", "export", "--model", model, "--out", home / "export", "--json").out)
    for name, tensors in {"codebooks": about["codebooks"], "model": about["tensors"]}.items():
        stored = load_file(home / "export" / f"{name}.safetensors")
        assert {k: list(v.shape) for k, v in stored.items()} == {k: v["shape"] for k, v in tensors.items()}
    refused(cli("pose", "export", "--model", model, "--out", home / "export"), "export")


def test_compare_puts_what_differs_in_front(home, model, prepared):
    other = [*TINY, "-o", "model.downsample.factor_l=8", "-o", "train.max_steps=2"]
    good("pose", "train", "--data", prepared, "--out", home / "l8", "--seed", 1, "--quiet", *other)
    text = good("compare", model, home / "l8", "--format", "markdown", "--out", home / "table").out
    assert text.splitlines()[0].startswith("| run | max_steps | factor_l |")
    assert {p.suffix for p in (home / "table").iterdir()} == {".md", ".csv", ".html"}
    rows = json.loads(good("compare", model, home / "l8", "--json").out)["runs"]
    assert [r["factor_l"] for r in rows] == [8, 4] or [r["factor_l"] for r in rows] == [4, 8]
    (home / "l8" / "metrics.json").write_text("{")
    assert good("compare", model, home / "l8", code=1).out


def test_registered_data_need_no_preparation(tmp_path):
    tiny = [*TINY, "-o", "train.max_steps=1"]
    good("pose", "train", "--data", "synthetic_2d", "--out", tmp_path / "run", "--quiet", *tiny)
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "dims: 2" in config


@pytest.mark.parametrize(
    "words", [["data", "list"], ["data", "info", "bandai_namco_1"], ["doctor"]], ids=" ".join
)
def test_what_is_here(words):
    assert len(good(*words).out.splitlines()) > 4
    assert isinstance(json.loads(good(*words, "--json").out), dict)


# --- streams


def test_results_and_progress_use_different_streams(home, model, clips, codes):
    words = [
        "pose",
        "encode",
        "--model",
        model,
        "--data",
        clips,
        "--out",
        home / "streams",
        "--json",
        "--jobs",
        2,
    ]
    process = started(*words)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["clips"] == 24  # one JSON object, and nothing else
    index = "code_indices.json"  # two processes, and the same codes as from one
    assert (home / "streams" / index).read_bytes() == (codes / index).read_bytes()
    assert "Traceback" not in err


def test_quiet_means_quiet(home, prepared):
    tiny = [*TINY, "-o", "train.max_steps=1"]
    done = good("pose", "train", "--data", prepared, "--out", home / "quiet", "--quiet", *tiny)
    assert done.err == ""


# --- one bad file among many


@pytest.fixture
def mixed(tmp_path, clips):
    shutil.copytree(clips, tmp_path / "mixed")
    some = sorted((tmp_path / "mixed").rglob("*.npz"))
    some[5].write_bytes(some[5].read_bytes()[:300])
    write_clip(tmp_path / "mixed" / "flat.npz", synthetic_motion(1, dims=2).clips[0])
    return tmp_path / "mixed", {some[5].name, "flat.npz"}


def test_encode_leaves_bad_files_out_and_does_the_rest(tmp_path, mixed, model):
    folder, bad = mixed
    words = ["pose", "encode", "--model", model, "--data", folder, "--out", tmp_path / "codes"]
    done = good(*words, "--json", code=1)
    report = json.loads(done.out)
    assert report["clips"] == 23
    assert {f["file"].rpartition("/")[2] for f in report["failures"]} == bad
    assert all(name in done.err for name in bad)
    assert len(load_codes(tmp_path / "codes")) == 23
    refused(cli(*words, "--strict", "--force"))


def test_prepare_and_train_leave_bad_files_out_and_do_the_rest(tmp_path, mixed):
    folder, bad = mixed
    done = good("pose", "prepare", "--data", folder, "--out", tmp_path / "prepared", "--json", code=1)
    assert {f["file"].rpartition("/")[2] for f in json.loads(done.out)["failures"]} == bad
    assert len(list((tmp_path / "prepared" / "clips").glob("*.npz"))) == 23
    refused(cli("pose", "prepare", "--data", folder, "--out", tmp_path / "strict", "--strict"))
    done = good(
        "pose", "train", "--data", folder, "--out", tmp_path / "run", *TINY, "-o", "train.max_steps=1", code=1
    )
    assert all(name in done.err for name in bad)
    assert (tmp_path / "run" / "metrics.json").exists()


def test_decode_leaves_bad_codes_out_and_does_the_rest(tmp_path, codes, model):
    shutil.copytree(codes, tmp_path / "codes")
    (tmp_path / "codes" / "code_indices.json").unlink()
    files = sorted((tmp_path / "codes").glob("*.codes.json"))
    files[2].write_text(files[2].read_text()[:100])
    report = json.loads(
        good(
            "pose",
            "decode",
            "--model",
            model,
            "--data",
            tmp_path / "codes",
            "--out",
            tmp_path / "b",
            "--json",
            code=1,
        ).out
    )
    assert report["clips"] == 23
    assert [f["file"] for f in report["failures"]] == [files[2].name]


# --- bad input: one line, exit code 2, nothing left behind


@pytest.mark.parametrize(
    "settings, expected",
    [
        (["model.downsample.factor=8"], ["model.downsample.factor", "factor_l"]),
        (["model.downsample.factor_l=3"], ["model.downsample.factor_l", "2, 4 or 8"]),
        (["train.max_steps=many"], ["train.max_steps", "many"]),
        (["train.max_steps"], ["dotted.key=value"]),
        (["data.dims=2"], ["data.dims", "3"]),
        (["train.window_T=2", "model.downsample.factor_l=4"], ["window_T"]),
    ],
)
def test_settings_that_cannot_be(tmp_path, prepared, settings, expected):
    given = [word for s in settings for word in ("-o", s)]
    refused(cli("pose", "train", "--data", prepared, "--out", tmp_path / "run", *given), *expected)
    assert not (tmp_path / "run").exists()


def test_2d_data_with_a_3d_model(tmp_path, model):
    flat = synthetic_motion(2, dims=2, frames=(20, 30))
    for c in flat.clips:
        write_clip(tmp_path / "flat" / f"{c.id}.npz", replace(c, skeleton=flat.skeleton))
    refused(
        cli("pose", "encode", "--model", model, "--data", tmp_path / "flat", "--out", tmp_path / "codes"),
        "2D",
        "3D",
    )
    three = ["-o", "data.dims=3", *TINY]
    refused(
        cli("pose", "train", "--data", tmp_path / "flat", "--out", tmp_path / "run", *three),
        "2D",
        "data.dims",
    )
    refused(
        cli("pose", "prepare", "--data", tmp_path / "flat", "--out", tmp_path / "p", "-o", "data.dims=3"),
        "2D",
        "3D",
    )
    assert {p.name for p in tmp_path.iterdir()} <= {"flat", "codes"}
    assert not list(tmp_path.glob("codes/*"))


@pytest.mark.parametrize(
    "arrays, expected",
    [
        ({"pose": np.zeros((0, 17, 3), "f4")}, "T = 0"),
        ({"positions": np.zeros((5, 17, 3), "f4")}, "pose"),
        ({"pose": np.zeros((5, 17), "f4")}, "rank"),
        ({"pose": np.zeros((5, 17, 4), "f4")}, "wrong D"),
        ({"pose": np.full((5, 17, 3), "a")}, "not real numbers"),
        ({"pose": np.zeros((5, 16, 3), "f4")}, "J does not match"),
        ({"pose": np.full((5, 17, 3), np.nan, "f4")}, "all NaN"),
        ({"pose": np.ones((5, 17, 3), "f4"), "conf": np.ones((5, 16, 1), "f4")}, "conf"),
        ({"pose": np.ones((5, 17, 3), "f4"), "conf": np.full((5, 17, 1), 2, "f4")}, "conf"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_files_that_hold_no_motion(tmp_path, model, arrays, expected):
    np.savez(tmp_path / "bad.npz", **arrays)
    refused(
        cli("pose", "encode", "--model", model, "--data", tmp_path / "bad.npz", "--out", tmp_path / "codes"),
        "bad.npz",
        expected,
    )
    assert not list(tmp_path.glob("codes/*"))


def test_files_that_are_something_else(tmp_path, model):
    (tmp_path / "bad.npz").write_text("frame,x,y")
    (tmp_path / "empty").mkdir()
    for name in ("bad.npz", "empty", "nowhere"):
        refused(
            cli("pose", "encode", "--model", model, "--data", tmp_path / name, "--out", tmp_path / "out"),
            name,
        )
        refused(cli("pose", "prepare", "--data", tmp_path / name, "--out", tmp_path / "out"), name)
        refused(cli("pose", "train", "--data", tmp_path / name, "--out", tmp_path / "out"), name)
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_shortest_clips(tmp_path, model, motion, frames):
    clip = replace(
        motion.clips[0],
        pose=motion.clips[0].pose[:frames],
        conf=None,
        timestamps=None,
        skeleton=motion.skeleton,
    )
    clip.pose[:, 4] = np.nan  # a joint that is never seen
    write_clip(tmp_path / "short.npz", clip)
    good("pose", "encode", "--model", model, "--data", tmp_path / "short.npz", "--out", tmp_path / "codes")
    good("pose", "decode", "--model", model, "--data", tmp_path / "codes", "--out", tmp_path / "back")
    assert read_clip(tmp_path / "back" / f"{clip.id}.npz").pose.shape == clip.pose.shape


def test_places_that_cannot_be_written(home, tmp_path, model, codes, prepared, clips):
    (home / "locked").mkdir(exist_ok=True)
    out = home / "locked" / "out"
    with without_permission(home / "locked"):
        done = [
            cli("pose", "prepare", "--data", clips, "--out", out),
            cli("pose", "train", "--data", prepared, "--out", out, *TINY),
            cli("pose", "eval", "--model", model, "--data", prepared, "--out", out),
            cli("pose", "encode", "--model", model, "--data", clips, "--out", out),
            cli("pose", "decode", "--model", model, "--data", codes, "--out", out),
            cli("pose", "export", "--model", model, "--out", out),
        ]
    for result in done:
        refused(result, "locked", "cannot be written")
    assert not list((home / "locked").iterdir())
    (tmp_path / "file").write_text("a file")
    refused(cli("pose", "train", "--data", prepared, "--out", tmp_path / "file", *TINY), "file")
    assert (tmp_path / "file").read_text() == "a file"


def _truncate(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])


def _flip(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def _edit(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"factor_l": 4', '"factor_l": 2'))


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "config.json"),
        (_truncate, "damaged"),
        (_flip, "altered"),
        (_edit, "altered"),
    ],
    ids=["no weights", "no settings", "truncated", "a bit flipped", "settings edited"],
)
def test_models_that_are_not_whole(tmp_path, model, clips, codes, damage, expected):
    shutil.copytree(model / "best", tmp_path / "model")
    damage(tmp_path / "model")
    refused(
        cli("pose", "encode", "--model", tmp_path / "model", "--data", clips, "--out", tmp_path / "out"),
        expected,
    )
    refused(
        cli("pose", "decode", "--model", tmp_path / "model", "--data", codes, "--out", tmp_path / "out"),
        expected,
    )
    assert not (tmp_path / "out").exists()


def _changed_codes(codes, path, change):
    data = json.loads((codes / "code_indices.json").read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    "change, expected",
    [
        (lambda d: d["clips"][0]["codes"][0].__setitem__(0, 16), "0 to 15"),
        (lambda d: d["clips"][0]["codes"][0].__setitem__(0, -1), "out of range"),
        (lambda d: d["clips"][0]["codes"].pop(), "shape"),
        (lambda d: d["clips"][0]["codes"][0].pop(), "ragged"),
        (lambda d: d.update(codebook_sizes=[32, 32, 32]), "codebook_sizes"),
        (lambda d: d["tokenizer"].update(hash="0" * 64), "0" * 64),
        (lambda d: d.update(version=9), "version"),
        (lambda d: d.update(format="other"), "format"),
    ],
)
def test_codes_that_cannot_be(tmp_path, model, codes, change, expected):
    file = _changed_codes(codes, tmp_path / "code_indices.json", change)
    refused(cli("pose", "decode", "--model", model, "--data", file, "--out", tmp_path / "back"), expected)
    assert not (tmp_path / "back").exists()


def test_nothing_finished_is_overwritten(home, tmp_path, model, prepared, clips, codes):
    before = {p: p.read_bytes() for folder in (model, codes) for p in folder.rglob("*") if p.is_file()}
    refused(cli("pose", "train", "--data", prepared, "--out", model, *TINY), "finished run")
    refused(cli("pose", "encode", "--model", model, "--data", clips, "--out", codes), "codes already")
    refused(cli("pose", "train", "--data", prepared, "--out", model, "--resume", "--force", *TINY), "exclude")
    refused(
        cli("pose", "decode", "--model", model, "--data", codes, "--out", next(clips.iterdir()), "--force"),
        "not a decoded clip",
    )
    refused(cli("pose", "train", "--data", prepared, "--out", clips, "--force", *TINY), "not those of a run")
    assert before == {
        p: p.read_bytes() for folder in (model, codes) for p in folder.rglob("*") if p.is_file()
    }


@pytest.mark.parametrize(
    "words, expected",
    [
        (["pose", "train"], "--data"),
        (["pose", "trian"], "Did you mean 'train'?"),
        (["pose", "encode", "--model", "m", "--data", "d", "--out", "o", "--jobs", "0"], "--jobs"),
        (["pose", "encode", "--model", "no_such_model", "--data", "d", "--out", "o"], "no_such_model"),
        (["data", "info", "bandai"], "bandai_namco_1"),
        (["compare", "no_such_run"], "no_such_run"),
    ],
)
def test_wrong_usage(tmp_path, monkeypatch, words, expected):
    monkeypatch.chdir(tmp_path)
    refused(cli(*words), expected)
    assert not list(tmp_path.iterdir())


def test_a_split_that_is_not_there(tmp_path, model, prepared, clips):
    words = ["--model", model, "--split", "exam", "--out", tmp_path / "out"]
    refused(cli("pose", "eval", "--data", prepared, *words), "exam", "train, val, test")
    refused(cli("pose", "encode", "--data", prepared, *words), "exam", "train, val, test")
    refused(cli("pose", "encode", "--data", clips, *words), "exam", "splits.json")
    assert not (tmp_path / "out").exists()


# --- interrupted


def weights(run):
    return (run / "best" / "model.safetensors").read_bytes()


def until_step(process, run, step):
    """Wait until a training process has logged a step."""
    while process.poll() is None:
        if (run / "log.jsonl").exists() and any(row.get("step", 0) >= step for row in read_log(run)):
            return
        time.sleep(0.002)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_training_stopped_anywhere_ends_with_the_same_weights(tmp_path, model, prepared, how):
    words = ["pose", "train", "--data", prepared, "--out", tmp_path / "run", "--device", "cpu", "--quiet"]
    process = started(*words, "--seed", 1, *TINY)
    step = random.randrange(1, STEPS // 2)
    print("stopped after step", step)
    until_step(process, tmp_path / "run", step)
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (130 if how == signal.SIGINT else -how), err
    assert ("--resume" in err) == (how == signal.SIGINT)
    assert not (tmp_path / "run" / "metrics.json").exists()
    refused(cli(*words), "unfinished run")
    good(*words, "--resume")  # the settings are those of the run
    assert weights(tmp_path / "run") == weights(model)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == json.loads(
        (model / "metrics.json").read_text()
    )


def test_encoding_stopped_half_way_does_the_other_half(tmp_path, model, clips, codes):
    words = ["pose", "encode", "--model", model, "--data", clips, "--out", tmp_path / "codes", "--json"]
    written, save = [], Codes.save

    def interrupted(self, path):
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(path)
        save(self, path)

    with patch.object(Codes, "save", interrupted):
        done = cli(*words)
    assert (done.code, done.out) == (130, "")
    assert done.err.splitlines()[-1].endswith("--resume")
    assert not (tmp_path / "codes" / "code_indices.json").exists()
    refused(cli(*words), "codes already")
    assert json.loads(good(*words, "--resume").out)["kept"] == 7
    assert (tmp_path / "codes" / "code_indices.json").read_bytes() == (
        codes / "code_indices.json"
    ).read_bytes()


def test_resume_does_not_mix_tokenizers(tmp_path, home, codes, model, clips, prepared):
    shutil.copytree(codes, tmp_path / "codes")
    other = [*TINY, "-o", "train.max_steps=1"]
    good("pose", "train", "--data", prepared, "--out", tmp_path / "other", "--quiet", *other)
    words = ["pose", "encode", "--model", tmp_path / "other", "--data", clips, "--out", tmp_path / "codes"]
    refused(cli(*words, "--resume"), "another tokenizer")
    assert (tmp_path / "codes" / "code_indices.json").exists()
    good(*words, "--force")
    refused(
        cli("pose", "decode", "--model", model, "--data", tmp_path / "codes", "--out", tmp_path / "b"),
        "another tokenizer",
    )

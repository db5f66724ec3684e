"""Ablations: every point once, failures listed, interruptions survived, and a table of what came out."""

import functools
import json
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import typer.testing

pytest.importorskip("papermill", reason="needs pip install 'tokenize_lib[dev]'")

from tokenize_lib.cli.main import app
from tokenize_lib.core.errors import ConfigError, DataError
from tokenize_lib.pose.ablation import (
    GRID,
    ablate,
    ablation_points,
    pareto_front,
    read_grid,
    read_variants,
    setting_name,
)

NAMES = "dataset split config seed out_dir resume factor_l num_codebooks codebook_size max_steps batch_size d_model"
PRETENDED = """
import json, time
from pathlib import Path

eval_dir = Path(out_dir) / "run" / "eval"
eval_dir.mkdir(parents=True, exist_ok=True)
(eval_dir.parent / "checkpoints").mkdir(exist_ok=True)
with open(eval_dir.parent / "log", "a") as f:
    print(json.dumps({"resume": resume, "seed": seed, "overrides": overrides}), file=f)
(eval_dir.parent / "checkpoints" / "last.ckpt").touch()
if (Path(dataset).with_name("wait")).exists():
    time.sleep(600)
at = dict(o.split("=") for o in overrides)
l = int(at.get("model.downsample.factor_l", 4))
if l == 8 and not resume:
    raise ValueError("collapsed")
(eval_dir / "config.yaml").write_text(json.dumps({"model": {"downsample": {"factor_l": l}}, "train": {"seed": seed}}))
(eval_dir / "metrics.json").write_text(json.dumps({"bits_per_frame": 30 / l, "mpjpe": float(l), "codebook_perplexity": [9.0]}))
"""
FAST = ["-o", "model.d_model=16", "-o", "model.quantizer.codebook_size=16", "-o", "train.max_steps=4", "-o", "train.batch_size=4",
        "-o", "train.window_T=16", "-o", "logging.tensorboard=false", "-o", "model.encoder.latent_dilations=[]"]  # fmt: skip


@pytest.fixture
def notebook(tmp_path):
    """Takes pose_train's parameters and writes what it writes, in no time; l = 8 fails until it is resumed."""
    cell = nbformat.v4.new_code_cell
    first = "\n".join(f"{n} = None" for n in NAMES.split()) + "\noverrides = ()"
    kernel = {"name": "python3", "display_name": "python3", "language": "python"}
    nb = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    nb.cells = [cell(first, metadata={"tags": ["parameters"]}), cell(PRETENDED)]
    nbformat.write(nb, tmp_path / "pretended.ipynb")
    return tmp_path / "pretended.ipynb"


def log(out, point):
    return [json.loads(line) for line in (out / point / "run" / "log").read_text().splitlines()]


def test_a_grid_is_read_as_it_stands_on_a_command_line():
    assert read_grid(["factor_l=2, 4", "noise_feedback=0,0.7"]) == {
        "factor_l": [2, 4],
        "noise_feedback": [0, 0.7],
    }
    assert read_grid(["encoder.channels=[8],[8, 16]"]) == {"encoder.channels": [[8], [8, 16]]}
    assert setting_name("noise_feedback") == "model.quantizer.noise_feedback"
    assert len(ablation_points(GRID)) == 36


@pytest.mark.parametrize("word", ["factor_l", "factor_l=", "factr_l=2", "enabled=true", "=2", "factor_l=[2"])
def test_a_grid_that_means_nothing_is_refused(word):
    with pytest.raises(ConfigError):
        read_grid([word])


def test_points_that_would_share_a_folder_are_refused():
    with pytest.raises(ConfigError, match="two points"):
        ablation_points({"factor_l": [4, 4]})


@pytest.mark.parametrize("text", ["", "variants: 3", "variants: {a: x=1}", "variants: {a: [x]}", "other: {}"])
def test_files_that_are_no_variants_are_refused(tmp_path, text):
    (tmp_path / "v.yaml").write_text(text)
    with pytest.raises(ConfigError, match="variants"):
        read_variants(tmp_path / "v.yaml")


def test_the_front_holds_what_nothing_beats():
    rows = [{"bits_per_frame": b, "mpjpe": e} for b, e in ((4, 3), (2, 5), (4, 2), (3, 6), (8, 2), (9, 1))]
    assert pareto_front(rows) == [1, 2, 5]
    assert pareto_front([]) == []


def test_failures_are_listed_and_resuming_does_what_is_missing(notebook, tmp_path):
    out, grid = tmp_path / "out", {"factor_l": [2, 8]}
    shared = {"notebook": notebook, "seeds": [0, 1], "quiet": True, "overrides": ["train.max_steps=3"]}
    result = ablate("synthetic_3d", out, grid, **shared, jobs=2)
    assert (result["points"], result["finished"]) == (4, 2)
    assert set(result["failed"].values()) == {"ValueError: collapsed"}
    assert log(out, "factor_l=2 seed=1") == [
        {"resume": False, "seed": 1, "overrides": ["train.max_steps=3", "model.downsample.factor_l=2"]}
    ]
    assert json.loads((out / "metrics.json").read_text()) == result
    with pytest.raises(ConfigError, match="holds an ablation"):
        ablate("synthetic_3d", out, grid, **shared)
    with pytest.raises(ConfigError, match="another ablation"):
        ablate("synthetic_3d", out, grid, **shared | {"overrides": []}, resume=True)

    again = ablate("synthetic_3d", out, {"factor_l": [8]}, **shared, resume=True)
    assert (again["points"], again["finished"], again["failed"]) == (4, 4, {})
    assert [len(log(out, f"factor_l={l} seed=0")) for l in (2, 8)] == [1, 2]
    assert log(out, "factor_l=8 seed=0")[1]["resume"]
    table = (out / "comparison.csv").read_text().splitlines()
    assert table[0] == "run,factor_l,seed,bits_per_frame,mpjpe,codebook_perplexity" and len(table) == 5
    assert (out / "pareto.png").stat().st_size > 1000
    assert {t["mode"] for t in json.loads((out / "pareto.json").read_text())["data"]} == {"markers", "lines"}


def test_nothing_is_run_when_a_point_cannot_be(notebook, tmp_path):
    for how, error in (
        ({"grid": {"factor_l": [4, 5]}}, ConfigError),
        ({"variants": {"a": ["model.nothing=1"]}}, ConfigError),
        ({"split": "vall"}, DataError),
        ({"notebook": tmp_path / "none.ipynb"}, ConfigError),
    ):
        with pytest.raises(error):
            ablate("synthetic_3d", tmp_path / "out", **{"notebook": notebook, "quiet": True} | how)
        assert not (tmp_path / "out").exists()


def test_a_foreign_folder_is_left_alone(notebook, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").touch()
    for how in ({}, {"resume": True}, {"force": True}):
        with pytest.raises(ConfigError, match="not those of an ablation"):
            ablate("synthetic_3d", tmp_path / "out", {"factor_l": [2]}, notebook=notebook, quiet=True, **how)


def test_a_killed_ablation_goes_on(notebook, tmp_path):
    (tmp_path / "wait").touch()
    data, out = tmp_path / "clips", tmp_path / "out"
    from tokenize_lib.pose.clips import write_clip
    from tokenize_lib.pose.synthetic import synthetic_motion

    motion = synthetic_motion(8, seed=0, frames=(20, 30), dropout=0)
    for c in motion.clips:
        c.skeleton = motion.skeleton
        write_clip(data / f"{c.id}.npz", c)
    code = "from tokenize_lib.cli.main import run; run()"
    words = [
        "pose",
        "ablate",
        "--data",
        data,
        "--out",
        out,
        "-g",
        "factor_l=2",
        "--notebook",
        notebook,
        "--quiet",
        "--json",
    ]
    command = [sys.executable, "-c", code, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    heeded = functools.partial(
        signal.signal, signal.SIGINT, signal.SIG_DFL
    )  # what a shell starts with & ignores it
    process = subprocess.Popen(command, **pipes, preexec_fn=heeded)
    for _ in range(1200):
        if (out / "factor_l=2" / "run" / "log").exists() or process.poll() is not None:
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "--resume" in err, err
    (tmp_path / "wait").unlink()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["finished"] == 1
    assert [r["resume"] for r in log(out, "factor_l=2")] == [False, True]


def test_command_line_with_variants_and_the_real_notebook(tmp_path):
    variants, out = tmp_path / "variants.yaml", tmp_path / "out"
    variants.write_text("variants:\n  greedy: [model.quantizer.beam_width=1]\n")
    words = [
        "pose",
        "ablate",
        "--data",
        "synthetic_2d",
        "--out",
        str(out),
        "--variants",
        str(variants),
        *FAST,
        "--quiet",
        "--json",
    ]
    done = typer.testing.CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [r["name"] for r in result["rows"]] == ["greedy"] and result["rows"][0]["mpjpe"] > 0
    run = out / "greedy"
    assert "beam_width: 1" in (run / "config.yaml").read_text()
    assert json.loads((run / "metrics.json").read_text())["split"] == "val"
    executed = nbformat.read(run / "notebook.ipynb", 4)
    assert all(c.execution_count for c in executed.cells if c.cell_type == "code")

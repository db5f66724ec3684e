"The main job end to end: prepare, train, evaluate, encode and decode a clip, and an executed notebook with plots."

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

from fastcore.script import Param, call_parse
from rich.console import Console
from rich.table import Table

from tokenize_lib.core.data import local_folder
from tokenize_lib.pose.clips import read_clip

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
console = Console()


def step(command: str, *args: str | Path) -> str:
    "Show a command, run it, return what it prints; end with its exit code if it fails."
    words = [command, *map(str, args)]
    shown = [Path(w).relative_to(ROOT).as_posix() if w.startswith(str(ROOT)) else w for w in words]
    console.print(f"\n$ {shlex.join(shown)}", style="bold", markup=False, soft_wrap=True)
    started = time.time()
    done = subprocess.run([BIN / words[0], *words[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(done.returncode)
    console.print(f"  {time.time() - started:.0f} s", style="dim")
    return done.stdout


def summary(metrics: dict, files: dict[str, Path]) -> None:
    "The last thing on the screen: what came out, and where to look."
    table = Table("metric", "value", title=f"{metrics['data']}, {metrics['split']} split")
    for name in (
        "mpjpe",
        "recon_l1",
        "vel_l1",
        "acc_l1",
        "bone_len_mae",
        "bits_per_frame",
        "bits_per_second",
    ):
        if metrics[name] is not None:
            table.add_row(name, f"{metrics[name]:.4g}")
    for name in ("codebook_perplexity", "codebook_usage"):
        table.add_row(name, ", ".join(f"{v:.3g}" for v in metrics[name]))
    console.print()
    console.print(table)
    for what, path in files.items():
        console.print(f"{what:>16}  {path.relative_to(ROOT)}", markup=False, soft_wrap=True)


@call_parse
def main(
    data: Param("Registry name; empty: real motion where it is, else synthetic", str) = "",
    steps: Param("Training steps", int) = 1200,
):
    "Run the demonstration into papermill_runs/demo."
    os.environ["PYTHONWARNINGS"] = "ignore"
    name = data or ("bandai_namco_1" if local_folder("bandai_namco_1") else "synthetic_3d")
    out = ROOT / "papermill_runs" / "demo" / name
    prepared, run, evaluation, codes = (out / p for p in ("prepared", "run", "eval", "codes"))
    console.print(f"Pose tokens of {name}", style="bold")
    step("tokenize-lib", "pose", "prepare", "--data", name, "--out", prepared, "--force", "--json")
    settings = ["-o", f"train.max_steps={steps}", "-o", "logging.log_every_steps=100"]
    step("tokenize-lib", "pose", "train", "--data", prepared, "--out", run, *settings, "--force", "--json")
    result = step(
        "tokenize-lib",
        "pose",
        "eval",
        "--model",
        run,
        "--data",
        prepared,
        "--out",
        evaluation,
        "--force",
        "--json",
    )

    splits = json.loads((prepared / "splits.json").read_text())
    clip = prepared / "clips" / f"{splits['test'][0]}.npz"
    step(
        "tokenize-lib", "pose", "encode", "--model", run, "--data", clip, "--out", codes, "--force", "--json"
    )
    step(
        "tokenize-lib",
        "pose",
        "decode",
        "--model",
        run,
        "--data",
        codes,
        "--out",
        out / "decoded",
        "--force",
        "--json",
    )
    back = next((out / "decoded").glob("*.npz"))
    assert len(read_clip(back)) == len(read_clip(clip)), "decoding returned another number of frames"

    notebook = out / "pose_eval.ipynb"
    parameters = {"model": run, "dataset": prepared, "out_dir": out / "notebook"}
    pairs = [w for k, v in parameters.items() for w in ("-p", k, str(v))]
    step(
        "papermill",
        ROOT / "nbs/experiments/pose_eval.ipynb",
        notebook,
        *pairs,
        "--log-level",
        "ERROR",
        "--no-progress-bar",
    )
    summary(
        json.loads(result),
        {
            "metrics": evaluation / "metrics.json",
            "plots": evaluation / "plots",
            "report": evaluation / "report.html",
            "notebook": notebook,
            "codes of a clip": codes,
            "decoded clip": back,
        },
    )

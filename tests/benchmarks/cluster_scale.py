"""What a corpus of N clips of 100 tokens costs, verb by verb: python tests/benchmarks/cluster_scale.py 10000

Each verb is a process of its own; CPU seconds and the most memory it held are those the operating system reports."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

TOKENS, LAYERS, SIZE, KINDS = 100, 3, 1024, 20


def write_codes(path, clips):
    """Random walks of codes around twenty places, in one file, written clip by clip."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, SIZE, (KINDS, LAYERS))
    head = {
        "format": "tokenize_lib.codes",
        "version": 1,
        "tokenizer": {"name": "walks", "hash": "0"},
        "factor_l": 4,
    }
    with path.open("w") as f:
        f.write(json.dumps(head | {"codebook_sizes": [SIZE] * LAYERS})[:-1] + ', "clips": [\n')
        for n in range(clips):
            steps = np.cumsum(rng.integers(-3, 4, (TOKENS, LAYERS)), 0)
            codes = ((places[rng.integers(KINDS)] + steps) % SIZE).tolist()
            clip = {"id": str(n), "length": 4 * TOKENS, "fps": 30.0, "codes": codes}
            f.write(json.dumps(clip, separators=(",", ":")) + (",\n" if n < clips - 1 else "\n"))
        f.write("]}\n")


def run(folder, *words):
    """One verb; its CPU seconds, and its memory in MB."""
    command = [sys.executable, "-c", "from tokenize_lib.cli.main import run; run()", "cluster", *words]
    child = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    _, status, used = os.wait4(child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, words
    print(
        f"{words[0]:16} {used.ru_utime + used.ru_stime:8.1f} CPU-s {used.ru_maxrss / 1000:8.0f} MB",
        flush=True,
    )


def main(clips):
    with tempfile.TemporaryDirectory() as d:
        write_codes(Path(d) / "code_indices.json", clips)
        codes = ("--data", "code_indices.json")
        run(d, "train-embedding", *codes, "--out", "encoder", "--quiet")
        run(d, "embed", "--model", "encoder", *codes, "--out", "embeddings", "--quiet")
        run(d, "fit-bayes-gmm", "--data", "embeddings", "--out", "clusters", "--quiet")
        run(d, "fit-hdbscan", "--data", "embeddings", "--out", "density", "--no-pictures", "--quiet")
        run(
            d,
            "predict",
            "--model",
            "clusters",
            "--encoder",
            "encoder",
            *codes,
            "--out",
            "assigned.jsonl",
            "--quiet",
        )
        if clips <= 10_000:
            run(d, "train-embedding", *codes, "--method", "lstm", "--out", "network", "--quiet")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)

"""How long people wait for the first answer; the baseline is the interpreter itself, in the same run."""

import subprocess
import sys

import pytest

STARTS = {
    "baseline: python": ["-c", "pass"],
    "import tokenize_lib": ["-c", "import tokenize_lib"],
    "tokenize-lib --help": ["-c", "from tokenize_lib.cli.main import run; run()", "--help"],
}


@pytest.mark.benchmark(group="start")
@pytest.mark.parametrize("arguments", STARTS.values(), ids=STARTS.keys())
def test_start(benchmark, tmp_path, arguments):
    command = [sys.executable, *arguments]
    done = benchmark(subprocess.run, command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()

"""Make torchaudio importable beside a CPU build of torch: the wheel's libraries want CUDA, its Python code does not."""

import importlib.util
from pathlib import Path

import torch

spec = importlib.util.find_spec("torchaudio")  # finds it without importing it
if spec and torch.version.cuda is None:
    for library in (Path(spec.origin).parent / "lib").glob("*.so"):
        library.unlink()
if spec:
    from torchaudio.functional import resample

    assert resample(torch.zeros(1, 48), 48000, 16000).shape == (1, 16)

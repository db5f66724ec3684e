"""Settings of a tokenizer that learns in seconds, and the motion it learns from."""

from tokenize_lib.pose.synthetic import synthetic_motion

TINY = {
    "train": {"batch_size": 4, "window_T": 32, "max_steps": 12},
    "model": {
        "d_model": 16,
        "encoder": {"latent_dilations": [1, 3]},
        "quantizer": {"codebook_size": 16, "code_dim": 8, "num_codebooks": 2},
    },
    "logging": {"tensorboard": False},
}


def tiny_motion():
    return synthetic_motion(24, seed=1, frames=(10, 60))

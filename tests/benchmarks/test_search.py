"""The quantiser's search against the textbook's distance matrix, in the same run."""

import pytest
import torch

from tokenize_lib.quantize.vq import VectorQuantizer


@pytest.fixture(scope="module")
def layer_and_data():
    torch.manual_seed(0)
    return VectorQuantizer(64, 1024, kmeans_init=False).eval(), torch.randn(2048, 64)


@pytest.mark.benchmark(group="search")
@pytest.mark.parametrize("way", ["baseline: cdist", "VectorQuantizer.encode"])
def test_search(benchmark, layer_and_data, way):
    layer, data = layer_and_data
    ways = {
        "baseline: cdist": lambda: torch.cdist(data, layer.embed).argmin(-1),
        "VectorQuantizer.encode": lambda: layer.encode(data),
    }
    codes = benchmark(ways[way])
    assert (codes == torch.cdist(data, layer.embed).argmin(-1)).float().mean() > 0.999

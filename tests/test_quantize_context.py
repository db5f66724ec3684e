"""Context model and range coder: what is written is read, whatever the order, the batch, the threads and the damage."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenize_lib.core.errors import DataError, FormatError
from tokenize_lib.quantize.codes import Codes
from tokenize_lib.quantize.context import ContextConfig, ContextModel, known_tables
from tokenize_lib.quantize.context_coding import code_bits, compress, decompress
from tokenize_lib.quantize.generate import continue_codes
from tokenize_lib.quantize.range_coder import RangeReader, RangeWriter


def random_model(sizes, dim=6, window=3, seed=0, scale=1.0):
    """A context model with weights at random: everything it does has to be exact all the same."""
    torch.manual_seed(seed)
    books = [torch.randn(k, dim) * scale * 0.5**q for q, k in enumerate(sizes)]
    model = ContextModel.for_codebooks(
        books, ContextConfig(window=window, width=16, hidden=16), {"name": "t", "hash": "h"}
    )
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.4)
    return model.eval()


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 70), min_size=1, max_size=4),
    tokens=st.integers(1, 30),
    groups=st.sampled_from([None, 1, 3]),
    seed=st.integers(0, 99),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_codes_survive_for_any_codebooks(sizes, tokens, groups, seed, scale):
    rng = np.random.default_rng(seed)
    model = random_model(sizes, seed=seed, scale=scale)
    layers = int(rng.integers(1, len(sizes) + 1))
    shape = (tokens, layers) if groups is None else (tokens, groups, layers)
    ids = rng.integers(0, sizes[:layers], shape)
    data = compress(model, ids)
    assert (decompress(model, data, shape) == ids).all()
    promised = code_bits(model, ids).sum()
    # one in 2^40 of equally likely codes has room in so few bytes
    assert np.log2(np.broadcast_to(sizes[:layers], shape)).sum() - 40 < 8 * len(data) < promised * 1.001 + 40


def test_bytes_hold_the_information_and_little_more():
    """Of codes as likely as the model says, no coder can write fewer bits on the average but by a few, and hardly ever any."""
    spent, promised = [], []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sizes = rng.integers(1, 70, rng.integers(1, 4)).tolist()
        model = random_model(sizes, seed=seed)
        ids = continue_codes(model, np.zeros((0, len(sizes)), int), 20, rng)
        spent.append(8 * len(compress(model, ids)))
        promised.append(code_bits(model, ids).sum())
    excess = np.subtract(spent, promised)
    assert -9 < excess.min() and excess.max() < 9
    assert 3 < excess.mean() < 8  # half a byte of rounding up, and what ends the number


def test_frequencies_do_not_depend_on_blocks_threads_or_a_copy():
    model = random_model([64, 64, 32], dim=16, window=8)
    ids = np.random.default_rng(0).integers(0, (64, 64, 32), (300, 3))

    def all_tables(which, block):
        return [
            np.concatenate(parts)
            for parts in zip(*(t for _, t in known_tables(which.exact, ids, block)), strict=True)
        ]

    first = all_tables(model, 512)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        copy = ContextModel.from_config(model.to_config()).eval()
        copy.load_state_dict(model.state_dict())
        for which, block in ((model, 1), (model, 37), (copy, 300)):
            for a, b in zip(first, all_tables(which, block), strict=True):
                assert (a == b).all()
    finally:
        torch.set_num_threads(before)


def test_sums_stay_exact_at_the_limits():
    """Weights and activations as large as they can get still give whole numbers below 2^53."""
    model = random_model([16], dim=8, window=4)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1e4)
    exact = model.exact
    seen = np.full((2, 4, 8), 64.0 * 2**10)
    state, guess = exact.look_back(seen, 1)
    table = exact.frequencies(state, guess, 0)
    for a in (state, guess, table):
        assert np.isfinite(a).all()
        assert (a == np.floor(a)).all()
        assert np.abs(a).max() < 2**53
    assert (table >= 1).all()


def test_the_model_follows_its_weights():
    model = random_model([8, 8])
    ids = np.zeros((5, 2), int)
    before = code_bits(model, ids)
    with torch.no_grad():
        model.frequency[0][0] += 3
    assert code_bits(model, ids)[:, 0].sum() < before[:, 0].sum()


def unlikely_symbols(seed, n):
    """Symbols that do not follow their tables, and tables of any length."""
    rng = np.random.default_rng(seed)
    tables = [np.floor(rng.exponential(1, rng.integers(1, 40)) * 1000) for _ in range(n)]
    tables = [t + (t.sum() == 0) for t in tables]
    return np.array([rng.integers(0, len(t)) for t in tables], int), tables


@pytest.mark.parametrize("seed, n", [(404, 8), (447, 30), (515, 30), (968, 30), (2260, 30)])
def test_a_last_word_that_carries_into_earlier_ones(seed, n):
    """The interval of the last symbol goes beyond the end of a word: a number cut short has to stay inside."""
    symbols, tables = unlikely_symbols(seed, n)
    writer = RangeWriter()
    writer.write(symbols, tables)
    assert RangeReader(writer.finish()).read(tables).tolist() == symbols.tolist()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_range_coder_in_any_pieces(data):
    symbols, tables = unlikely_symbols(data.draw(st.integers(0, 999)), n := data.draw(st.integers(0, 60)))
    writer, at = RangeWriter(), 0
    while at < n:
        step = data.draw(st.integers(1, 20))
        writer.write(symbols[at : at + step], tables[at : at + step])
        at += step
    reader = RangeReader(writer.finish())
    assert [int(reader.read([t])[0]) for t in tables] == symbols.tolist()


@pytest.fixture(scope="module")
def packed():
    model = random_model([32, 32, 32], dim=8)
    ids = np.random.default_rng(3).integers(0, 32, (20, 3))
    about = {"tokenizer": {"name": "t", "hash": "h"}, "id": "clip", "label": "wave", "fps": 30.0}
    codes = Codes(ids, 78, 4, (32, 32, 32), side={"scale": 2.5, "root": [[0.25, 1.0]]}, **about)
    return model, codes, codes.to_bytes(model)


def test_clips_as_bytes(packed):
    model, codes, data = packed
    assert Codes.from_bytes(data, model) == codes
    assert Codes.from_bytes(codes.to_bytes()) == codes
    assert Codes.from_bytes(codes.to_bytes(model), model).side == codes.side


def test_paths_come_back_exactly_and_cost_what_numbers_cost(packed):
    model, codes, _ = packed
    path = np.cumsum(np.random.default_rng(0).normal(size=(78, 3)), 0)
    for root, most in ((path.astype(np.float32), 78 * 3 * 4), (path, 78 * 3 * 8)):
        clip = replace(
            codes, side={"scale": 0.1, "root": root.tolist(), "source": {"fps": 24.0, "length": 62}}
        )
        data = clip.to_bytes(model)
        assert Codes.from_bytes(data, model).side == clip.side
        assert len(data) < len(codes.to_bytes(model)) + most + 60


def test_an_older_clip_is_named_as_such(packed):
    model, _, data = packed
    with pytest.raises(FormatError, match="older format.*pack the codes again"):
        Codes.from_bytes(b"TLC1" + data[4:], model)


@settings(max_examples=100, deadline=None)
@given(edit=st.dictionaries(st.sampled_from(["arrays", "numbers", "side", "payloads", "codes"]),
                            st.recursive(st.none() | st.integers(-9, 2**40) | st.text(max_size=3),
                                         lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=2)),
                            min_size=1))  # fmt: skip
def test_a_header_that_lies_is_a_format_error(packed, edit):
    model, codes, data = packed
    size = int.from_bytes(data[8:12], "big")
    head = json.loads(zlib.decompress(data[12 : 12 + size])) | edit
    text = zlib.compress(json.dumps(head).encode())
    body = len(text).to_bytes(4, "big") + text + data[12 + size :]
    try:
        read = Codes.from_bytes(data[:4] + zlib.crc32(body).to_bytes(4, "big") + body, model)
    except FormatError:
        return
    assert (read.ids == codes.ids).all()


def test_every_cut_and_every_altered_byte_is_found(packed):
    model, _, data = packed
    for n in range(len(data)):
        with pytest.raises(FormatError):
            Codes.from_bytes(data[:n], model)
        with pytest.raises(FormatError):
            Codes.from_bytes(data[:n] + bytes([data[n] ^ 0x81]) + data[n + 1 :], model)


@settings(max_examples=100, deadline=None)
@given(junk=st.binary(max_size=200))
def test_junk_with_a_valid_checksum_is_a_format_error(packed, junk):
    model, _, data = packed
    with pytest.raises(FormatError):
        Codes.from_bytes(data[:4] + zlib.crc32(junk).to_bytes(4, "big") + junk, model)


def test_the_wrong_model_is_refused(packed):
    model, codes, data = packed
    with pytest.raises(FormatError, match="context model"):
        Codes.from_bytes(data)
    with pytest.raises(FormatError, match="another context model"):
        Codes.from_bytes(data, random_model([32, 32, 32], dim=8, seed=1))
    stranger = ContextModel.for_codebooks(
        [torch.randn(32, 8)] * 3, ContextConfig(), {"name": "t", "hash": "x"}
    )
    with pytest.raises(DataError, match="another tokenizer"):
        codes.to_bytes(stranger)

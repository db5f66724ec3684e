"""Properties of the quantisers, and what the reader of codes must refuse, tried on many random cases."""

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokenize_lib.core.errors import DataError, FormatError
from tokenize_lib.quantize.codes import Codes, Stream, read_code_indices, write_code_indices
from tokenize_lib.quantize.rvq import ResidualVQ
from tokenize_lib.quantize.shards import load_codes
from tokenize_lib.quantize.usage import CodeUsage
from tokenize_lib.quantize.vq import VectorQuantizer

quick = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


# --- quantisers


@quick
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=5),
    ema=st.booleans(),
    cosine=st.booleans(),
    dropout=st.sampled_from([0.0, 0.7]),
    padding=st.sampled_from([0.0, 1e8, float("nan"), float("inf")]),
)
def test_padding_changes_nothing(seed, lengths, ema, cosine, dropout, padding):
    """Codes, values, loss, gradient and all that is learnt are the same whatever the padding holds."""
    torch.manual_seed(seed)
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    z = torch.randn(len(lengths), 9, 4)
    results = []
    for fill in (0.0, padding):
        torch.manual_seed(seed)
        options = dict(ema_update=ema, cosine=cosine, quantizer_dropout=dropout, dead_code_threshold=1e-2)
        rvq = ResidualVQ(4, 2, [12, 5], code_dim=3, **options)
        x = z.where(mask[..., None], fill).requires_grad_()
        for _ in range(3):
            out = rvq(x, mask)
        (out.loss + out.z_q.square().sum()).backward()
        codes = rvq.eval().encode(x, mask)
        results.append(
            [out.z_q, out.codes, out.loss, out.perplexity, x.grad, codes, *rvq.state_dict().values()]
        )
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
    z_q, codes = results[0][0], results[0][1]
    assert not z_q[~mask].any() and not codes[~mask].any() and z_q.isfinite().all()


@quick
@given(
    seed=st.integers(0, 10**6),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    n=st.integers(1, 40),
)
def test_codes_are_in_range_and_each_layer_decodes(seed, sizes, n):
    torch.manual_seed(seed)
    rvq = ResidualVQ(3, len(sizes), sizes, dead_code_threshold=1e-3)
    for _ in range(3):
        out = rvq(torch.randn(2, n, 3))
    assert (out.codes >= 0).all() and (out.codes < torch.tensor(sizes)).all()
    assert ((out.perplexity >= 1 - 1e-4) & (out.perplexity <= torch.tensor(sizes) + 1e-4)).all()
    z = torch.randn(2, n, 3)
    codes = rvq.eval().encode(z)
    torch.testing.assert_close(rvq.decode(codes), rvq(z).z_q)
    torch.testing.assert_close(rvq.decode(codes, 1), rvq.layers[0].decode(codes[..., 0]))


@quick
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 12), ema=st.booleans())
def test_resumed_training_is_bit_identical(seed, cut, ema):
    def train(rvq, steps):
        for step in steps:
            torch.manual_seed(seed + step)
            rvq(torch.randn(2, 8, 3))

    options = dict(dim=3, num_codebooks=2, codebook_size=24, dead_code_threshold=1e-2, ema_update=ema)
    straight, first, second = ResidualVQ(**options), ResidualVQ(**options), ResidualVQ(**options)
    first.load_state_dict(straight.state_dict())
    train(straight, range(12))
    train(first, range(cut))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(second, range(cut, 12))
    for name, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("ema", [True, False])
def test_every_dead_code_is_revived_on_valid_vectors(ema):
    torch.manual_seed(0)
    vq = VectorQuantizer(2, 32, ema_update=ema, dead_code_threshold=1e-3)
    near, far = torch.randn(4, 50, 2), torch.randn(4, 50, 2) + 100
    mask = torch.ones(4, 50, dtype=torch.bool)
    mask[2:] = False
    vq(torch.cat([near[:2], far[2:]]), mask)
    assert vq.embed.abs().max() < 20
    for _ in range(1200):  # the data moves away: old codes die and follow
        vq(torch.cat([far[:2], -far[2:]]), mask)
    assert (vq.embed > 50).all()


def test_a_codebook_larger_than_the_first_batches_fills_up():
    torch.manual_seed(0)
    rvq = ResidualVQ(4, 2, 200, dead_code_threshold=1e-3)
    data = torch.randn(1500, 4)
    for step in range(500):
        rvq(data[torch.randint(1500, (1, 32))] if step else data[None, :3])
    codes = rvq.eval().encode(data)
    assert min(len(codes[:, q].unique()) for q in range(2)) >= 180


def test_an_overflow_does_not_reach_the_codebook():
    torch.manual_seed(0)
    rvq = ResidualVQ(4, 2, 16)
    for step in range(6):
        z = torch.randn(2, 20, 4)
        z[0, step] = [float("inf"), float("nan")][step % 2]
        out = rvq(z)
    assert not out.loss.isfinite()  # it is not hidden either
    assert all(v.isfinite().all() for v in rvq.state_dict().values() if v.is_floating_point())


def test_a_batch_without_valid_vectors_costs_nothing():
    rvq = ResidualVQ(4, 2, 16)
    before = copy.deepcopy(rvq.layers[0].embed)
    out = rvq(torch.randn(2, 5, 4, requires_grad=True), torch.zeros(2, 5, dtype=torch.bool))
    out.loss.backward()
    assert out.loss == 0 and not rvq.layers[0].initialised
    assert torch.equal(rvq.layers[0].embed, before)


def test_kept_search_terms_never_go_stale():
    torch.manual_seed(0)
    vq, z = VectorQuantizer(4, 16, kmeans_init=False).eval(), torch.randn(50, 4)
    vq.encode(z)
    vq.load_state_dict(
        {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in vq.state_dict().items()}
    )
    assert torch.equal(vq.encode(z), torch.cdist(z, vq.embed).argmin(1))
    vq.encode(z)
    vq.train()
    vq.embed.data.copy_(torch.randn(16, 4))
    assert torch.equal(vq.eval().encode(z), torch.cdist(z, vq.embed).argmin(1))
    twin = copy.deepcopy(vq)
    twin.embed.mul_(-1)
    assert torch.equal(twin.encode(-z), vq.encode(z))


def test_decode_refuses_foreign_codes():
    rvq = ResidualVQ(4, 2, 16)
    for bad in (torch.full((1, 2), 16), torch.full((1, 2), -1)):
        with pytest.raises(DataError, match="out of range"):
            rvq.decode(bad)
    with pytest.raises(DataError, match="too few layers"):
        rvq.decode(torch.zeros(3, 1, dtype=torch.int64), num_codebooks=2)


# --- usage


@quick
@given(seed=st.integers(0, 10**6), parts=st.integers(1, 5))
def test_usage_of_parts_adds_up(seed, parts):
    rng = np.random.default_rng(seed)
    codes, mask = rng.integers(0, 7, (20, 6, 2)), rng.random((20, 6)) < 0.6
    whole, total = CodeUsage([7, 7]).update(codes, mask), CodeUsage([7, 7])
    for c, m in zip(np.array_split(codes, parts), np.array_split(mask, parts), strict=True):
        total = total + CodeUsage([7, 7]).update(torch.from_numpy(c), torch.from_numpy(m))
    np.testing.assert_array_equal(whole.counts, total.counts)
    assert whole.counts[0].sum() == mask.sum()
    assert all(1 <= p <= 7 + 1e-9 for p in whole.perplexity())


# --- the codes format

names = st.text(max_size=8).filter(lambda s: "\ud800" not in s and s.isprintable())


@st.composite
def clips(draw, max_frames=40):
    sizes = tuple(draw(st.lists(st.integers(1, 2000), min_size=1, max_size=4)))
    length, factor = draw(st.integers(1, max_frames)), draw(st.sampled_from([1, 2, 4, 8, 64]))
    tokens = -(-length // factor)
    shape = draw(st.sampled_from([(tokens, len(sizes)), (tokens, 3, len(sizes))]))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    coarse = Stream(rng.integers(0, 9, (-(-length // 16), 1)), length, 16, (9,))
    return Codes(
        rng.integers(0, sizes, shape),
        length,
        factor,
        sizes,
        {"name": draw(names), "hash": draw(names)},
        id=draw(names),
        label=draw(st.none() | names),
        fps=draw(st.none() | st.sampled_from([30, 29.97])),
        side=draw(
            st.none() | st.dictionaries(names, st.floats(allow_nan=False, allow_infinity=False) | names)
        ),
        streams=draw(st.sampled_from([{}, {"coarse": coarse}])),
    )


@quick
@given(clip=clips())
def test_codes_round_trip(clip, tmp_path):
    clip.save(tmp_path / "a.codes.json")
    back = Codes.load(tmp_path / "a.codes.json")
    assert back == clip and back.ids.dtype == np.int64
    assert (back.label, back.fps, back.side, back.id) == (clip.label, clip.fps, clip.side, clip.id)
    assert back.bits == pytest.approx(clip.ids[..., 0].size * np.log2(clip.codebook_sizes).sum())


GOOD = Codes([[1, 0], [7, 3], [2, 2]], 10, 4, (8, 4), {"name": "t", "hash": "0"}, id="walk", fps=30)


def broken(at, value):
    """A good file with one thing changed; `...` removes it."""

    def change(data):
        *path, last = at
        for step in path:
            data = data[step]
        if value is ...:
            del data[last]
        else:
            data[last] = value

    return change


CLIP = ("clips", 0)
WRONG = {
    "no format": (("format",), ...),
    "other format": (("format",), "tokenize_lib.model"),
    "foreign version": (("version",), 2),
    "version of a wrong type": (("version",), True),
    "unknown header field": (("colour",), 1),
    "clips missing": (("clips",), ...),
    "clips not a list": (("clips",), {}),
    "clip not an object": (CLIP, 3),
    "tokenizer missing": (("tokenizer",), ...),
    "tokenizer without hash": (("tokenizer",), {"name": "t"}),
    "factor zero": (("factor_l",), 0),
    "factor float": (("factor_l",), 4.0),
    "sizes empty": (("codebook_sizes",), []),
    "sizes bool": (("codebook_sizes",), [8, True]),
    "sizes of another Q": (("codebook_sizes",), [8]),
    "id missing": ((*CLIP, "id"), ...),
    "id a number": ((*CLIP, "id"), 7),
    "length missing": ((*CLIP, "length"), ...),
    "length zero": ((*CLIP, "length"), 0),
    "length of another L": ((*CLIP, "length"), 13),
    "length text": ((*CLIP, "length"), "10"),
    "fps negative": ((*CLIP, "fps"), -30),
    "side a list": ((*CLIP, "side"), []),
    "unknown clip field": ((*CLIP, "colour"), 1),
    "codes missing": ((*CLIP, "codes"), ...),
    "codes null": ((*CLIP, "codes"), None),
    "codes empty": ((*CLIP, "codes"), []),
    "codes flat": ((*CLIP, "codes"), [1, 2, 3]),
    "codes ragged": ((*CLIP, "codes"), [[1, 0], [7], [2, 2]]),
    "codes of mixed depth": ((*CLIP, "codes"), [[1, 0], [7, [3]], [2, 2]]),
    "codes text": ((*CLIP, "codes"), [[1, 0], [7, "3"], [2, 2]]),
    "codes float": ((*CLIP, "codes"), [[1, 0], [7, 3.0], [2, 2]]),
    "codes bool": ((*CLIP, "codes"), [[1, 0], [7, True], [2, 2]]),
    "codes null inside": ((*CLIP, "codes"), [[1, 0], [7, None], [2, 2]]),
    "codes negative": ((*CLIP, "codes"), [[1, 0], [7, -1], [2, 2]]),
    "codes out of range": ((*CLIP, "codes"), [[1, 0], [8, 3], [2, 2]]),
    "codes enormous": ((*CLIP, "codes"), [[1, 0], [2**70, 3], [2, 2]]),
    "codes too deep": ((*CLIP, "codes"), [[[[1, 0]]], [[[7, 3]]], [[[2, 2]]]]),
    "streams a list": ((*CLIP, "streams"), [1]),
    "stream without codes": ((*CLIP, "streams"), {"coarse": {"factor_l": 16, "codebook_sizes": [8]}}),
    "stream of another L": (
        (*CLIP, "streams"),
        {"coarse": {"factor_l": 16, "codebook_sizes": [8], "codes": [[1], [1]]}},
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_reader_refuses(case, tmp_path):
    file = tmp_path / "bad.codes.json"
    GOOD.save(file)
    data = json.loads(file.read_text())
    broken(*WRONG[case])(data)
    file.write_text(json.dumps(data))
    with pytest.raises(FormatError) as e:
        Codes.load(file)
    assert str(file) in str(e.value)


def test_reader_refuses_clips_with_one_id(tmp_path):
    file = tmp_path / "code_indices.json"
    write_code_indices(file, [GOOD])
    data = json.loads(file.read_text())
    data["clips"] *= 2
    file.write_text(json.dumps(data))
    with pytest.raises(FormatError, match="'walk'"):
        read_code_indices(file)


@quick
@given(
    cut=st.floats(0, 0.99), flips=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=3)
)
def test_reader_survives_damage(cut, flips, tmp_path):
    """A truncated file is refused; a file with changed bytes is refused or still valid, and nothing else is raised."""
    file = tmp_path / "a.codes.json"
    GOOD.save(file)
    whole = file.read_bytes()
    file.write_bytes(whole.rstrip()[: int(cut * len(whole.rstrip()))])
    with pytest.raises(FormatError):
        Codes.load(file)
    damaged = bytearray(whole)
    for at, byte in flips:
        damaged[at % len(whole)] = byte
    file.write_bytes(damaged)
    try:
        assert Codes.load(file).ids.shape == (3, 2)
    except FormatError as e:
        assert "a.codes.json" in str(e)


def test_a_folder_of_codes(tmp_path):
    import dataclasses

    with pytest.raises(FormatError, match="no codes"):
        load_codes(tmp_path)
    other = dataclasses.replace(GOOD, id="run")
    GOOD.save(tmp_path / "walk.codes.json")
    other.save(tmp_path / "sub" / "run.codes.json")
    assert sorted(c.id for c in load_codes(tmp_path)) == ["run", "walk"]
    dataclasses.replace(other, id="alien", tokenizer={"name": "t", "hash": "1"}).save(
        tmp_path / "z.codes.json"
    )
    with pytest.raises(FormatError, match="another tokenizer"):
        load_codes(tmp_path)
    write_code_indices(tmp_path / "code_indices.json", [GOOD])
    assert load_codes(tmp_path) == [GOOD]

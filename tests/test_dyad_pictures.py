"""Pictures of a conversation: the command line on prepared data, what the browser shows, odd input, and nothing half written."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import typer.testing
from PIL import Image

from tokenize_lib.cli.dyad_look import app
from tokenize_lib.core.errors import ConfigError, DataError, FormatError
from tokenize_lib.dyad.animation import animate, cast, filmstrip
from tokenize_lib.dyad.animation_page import Actor, conversation_page, pack_motion
from tokenize_lib.dyad.curves import plot_curves
from tokenize_lib.dyad.face_mesh import ProxyFace
from tokenize_lib.dyad.flame import FlameFace
from tokenize_lib.dyad.prepare import prepare_dialogues
from tokenize_lib.dyad.synthetic import synthetic_dialogues

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Two short dialogues, prepared, and a prediction of one participant of the first, without a neck."""
    folder = tmp_path_factory.mktemp("dyad")
    source = synthetic_dialogues(folder / "raw", dialogues=2, seconds=4.0, sample_rate=16_000)
    prepare_dialogues(source, folder / "raw", folder / "prepared", quiet=True)
    pair = json.loads((folder / "prepared" / "manifest.json").read_text())[0]
    where = folder / "pred" / pair["dialog_id"]
    where.mkdir(parents=True)
    np.save(where / f"{pair['listener_id']}.npy", np.zeros((pair["T"], 51), np.float32))
    return folder, pair


def call(*words):
    done = typer.testing.CliRunner().invoke(app, list(map(str, words)))
    return done.exit_code, done.output


def scene(page):
    return json.loads(re.search(r'id="data">([^\n]*)</script>', page.read_text("utf-8"))[1])


def test_a_page_of_prepared_data_with_a_prediction(prepared, tmp_path):
    folder, pair = prepared
    common = ("--data", folder / "prepared", "--out", tmp_path / "a.html")
    code, said = call(*common, "--pred", folder / "pred", "--start", 1, "--seconds", 2, "--json", "--quiet")
    assert code == 0, said
    told = json.loads(said)
    assert told["frames"] == 60 and told["dialog_id"] == pair["dialog_id"]
    assert sorted(told["heads"]) == sorted(
        [pair["speaker_id"], pair["listener_id"], f"{pair['listener_id']}, predicted"]
    )
    shown = scene(tmp_path / "a.html")
    assert shown["frames"] == 60 and [bool(a["loud"]) for a in shown["actors"]].count(True) == 2
    before = (tmp_path / "a.html").read_bytes()
    assert call(*common)[0] == 2 and (tmp_path / "a.html").read_bytes() == before
    assert call(*common, "--force", "--seconds", 1)[0] == 0 and (tmp_path / "a.html").read_bytes() != before


@pytest.mark.parametrize(
    "words, says",
    [
        (("--dialog", "nobody"), "no such conversation"),
        (("--start", "9"), "after the end"),
        (("--pred", "."), "no prediction of this conversation"),
        (("--flame", "no.pkl"), "flame.is.tue.mpg.de"),
    ],
)
def test_what_cannot_be_shown_is_said_and_nothing_is_written(prepared, tmp_path, words, says):
    code, said = call("--data", prepared[0] / "prepared", "--out", tmp_path / "a.html", *words)
    assert code == 2 and says in " ".join(said.split()) and not list(tmp_path.iterdir())


def test_a_film_that_breaks_leaves_nothing(tmp_path, monkeypatch):
    motion = {"A": np.zeros((3, 54)), "B": np.zeros((3, 51))}
    assert animate(motion, None, tmp_path / "good.mp4", 25).stat().st_size > 500

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("tokenize_lib.dyad.animation.draw_head", broken)
    with pytest.raises(KeyboardInterrupt):
        animate(motion, None, tmp_path / "bad.mp4", 25)
    assert [p.name for p in tmp_path.iterdir()] == ["good.mp4"]


def test_motion_without_a_face_in_it_is_refused(tmp_path):
    broken = np.zeros((5, 54))
    broken[2, 3] = np.nan
    for motion in (broken, np.zeros((5, 50)), np.zeros(5)):
        with pytest.raises(DataError, match="not a motion"):
            animate({"A": motion}, None, tmp_path / "a.html", 30)
    with pytest.raises(DataError, match="numbers 0 to 3"):
        cast({"A": np.zeros((2, 54))}, 30, states={"A": np.array([0, 7])})
    with pytest.raises(FormatError, match="no such file"):
        animate({"A": np.zeros((5, 54))}, {"A": tmp_path / "none.wav"}, tmp_path / "a.html", 30)
    assert not list(tmp_path.iterdir())


def test_one_frame_can_be_shown(tmp_path):
    motion = {"A": np.zeros((1, 54))}
    assert scene(animate(motion, None, tmp_path / "a.html", 29.97))["frames"] == 1
    assert len(filmstrip(cast(motion, 30), [0], 30).axes) == 1
    assert plot_curves({"A": motion["A"]}, np.zeros(1, int)).axes


def test_packing_holds_for_heads_that_turn_a_lot():
    """All coefficients swing to their limits and the neck to 40°; between the frames sampled, too."""
    rng, face = np.random.default_rng(0), ProxyFace()
    steps = np.cumsum(rng.normal(size=(900, 54)), 0)
    motion = 3 * np.sin(steps / 20) * np.r_[np.ones(50), 0.1, [0.25] * 3]
    motion[:, 50] = np.abs(motion[:, 50])
    packed = pack_motion(face, [motion, motion[::-1, :51]])
    for which, m in enumerate((motion, motion[::-1, :51])):
        for t in range(0, 900, 180):
            error = np.abs(packed.vertices(which, slice(t, t + 9)) - face.vertices(m[t : t + 9]))
            assert error.max() < 2e-3 and error.mean() < 1e-4


def test_what_is_not_flame_is_told(tmp_path):
    (tmp_path / "text.pkl").write_text("no pickle")
    (tmp_path / "text.npz").write_text("no archive")
    for file in ("text.pkl", "text.npz"):
        with pytest.raises(FormatError):
            FlameFace(tmp_path / file, trust_pickle=True)
    with pytest.raises(ConfigError, match="no pickle is read unasked"):
        FlameFace(tmp_path / "text.pkl")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_browser_draws_what_python_draws(tmp_path):
    """The same head in both renderers: the page's picture has skin, hair and shirt where `draw_head` has them."""
    motion = np.zeros((2, 54))
    motion[1, 50:52] = 0.3, 0.3
    actor = Actor("", motion, ProxyFace("#00a000"))
    (tmp_path / "a.html").write_text(conversation_page([actor], 1, ""), "utf-8")
    shots = []
    for second in (0, 1):
        target = tmp_path / f"{second}.png"
        words = ["--headless=new", "--no-sandbox", "--enable-unsafe-swiftshader", "--hide-scrollbars", f"--user-data-dir={tmp_path}/profile",
                 "--window-size=500,700", "--virtual-time-budget=3000", f"--screenshot={target}"]  # fmt: skip
        done = subprocess.run(
            [BROWSER, *words, f"file://{tmp_path}/a.html#t={second}.01"], capture_output=True, timeout=120
        )
        if not target.exists():
            pytest.skip(f"Chromium takes no pictures here ({done.returncode})")
        shots.append(np.asarray(Image.open(target).convert("RGB")).astype(int))
    r, g, b = np.moveaxis(shots[0], -1, 0)
    skin, shirt = (r > 150) & (r > g + 20) & (g > b + 10), (g > r + 60) & (g > b + 60)
    assert skin.sum() > 10_000 and shirt.sum() > 3_000
    assert np.argwhere(skin)[:, 0].mean() < np.argwhere(shirt)[:, 0].mean()  # a head above its shirt
    assert (np.abs(shots[0] - shots[1]).max(-1) > 30).sum() > 5_000

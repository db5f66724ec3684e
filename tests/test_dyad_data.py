"""Recorded dialogues from files to windows: what people have on their disks, interrupted calls, workers, the command line."""

import io
import json
import shutil
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch
from rich.console import Console
from typer.testing import CliRunner

import tokenize_lib.dyad.prepare as prepare_module
from tokenize_lib.cli.main import app
from tokenize_lib.core.errors import ConfigError, DataError, FormatError
from tokenize_lib.core.files import read_npz, write_npz
from tokenize_lib.dyad.config import DialogueConfig, FeatureConfig
from tokenize_lib.dyad.dataset import DyadicBatches, DyadicDataset, build_dataset
from tokenize_lib.dyad.manifest import read_manifest
from tokenize_lib.dyad.motion import load_motion
from tokenize_lib.dyad.prepare import prepare_dialogues
from tokenize_lib.dyad.synthetic import synthetic_dialogues


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Four conversations of four seconds."""
    folder = tmp_path_factory.mktemp("dialogues")
    return synthetic_dialogues(folder, dialogues=4, seconds=4, seed=3)


@pytest.fixture
def corpus(made, tmp_path):
    """A copy to spoil: the list as a dictionary, and its root."""
    root = tmp_path / "data"
    shutil.copytree(made.parents[1], root)
    return json.loads(made.read_text()), root


def prepare(corpus, out, **options):
    entries, root = corpus
    listing = root / "list.json"
    listing.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return prepare_dialogues(listing, root, out, **options)


def first_person(corpus):
    """Identity and entry of the first person of the first dialogue."""
    dialogue = next(iter(corpus[0].values()))
    return next(iter(dialogue.items()))


def content(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def without(key):
    def spoil(path):
        write_npz(path, **{k: v for k, v in read_npz(path).items() if k != key})

    return spoil


def changed(key, change):
    def spoil(path):
        arrays = read_npz(path)
        write_npz(path, **arrays | {key: change(arrays[key])})

    return spoil


def nan_at(frame):
    def change(values):
        values[frame] = np.nan
        return values

    return change


def cut_off(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


def make_empty(path):
    path.write_bytes(b"")


UNUSABLE = {
    "no wav": ("audio_path", remove, "no such file"),
    "no npz": ("flame_coeff_save_path", remove, "cannot be read"),
    "no state": ("state_path", remove, "cannot be read"),
    "empty wav": ("audio_path", make_empty, "not audio"),
    "torn wav": ("audio_path", cut_off, "truncated"),
    "torn npz": ("flame_coeff_save_path", cut_off, "not an .npz archive"),
    "no key": ("flame_coeff_save_path", without("jaw_params"), "jaw_params: missing"),
    "flat": (
        "flame_coeff_save_path",
        changed("expression_params", lambda x: x[:, 0]),
        "expected [120, 1, 100]",
    ),
    "narrow": (
        "flame_coeff_save_path",
        changed("shape_params", lambda x: x[..., :100]),
        "expected [120, 1, 300]",
    ),
    "nan": ("flame_coeff_save_path", changed("pose_params", nan_at(7)), "the first is frame 7"),
    "states of another kind": ("state_path", lambda p: np.save(p, np.full(120, 7)), "no such state: found 7"),
    "state pickled": (
        "state_path",
        lambda p: np.save(p, np.array([{}]), allow_pickle=True),
        "not a whole .npy",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used_is_named_and_the_rest_goes_on(corpus, tmp_path, name):
    key, spoil, words = UNUSABLE[name]
    spoil(corpus[1] / first_person(corpus)[1][key])
    report = prepare(corpus, tmp_path / "out")
    assert [d for d, _ in report.failures] == [next(iter(corpus[0]))]
    assert words in report.failures[0][1].replace("; found", ": found")
    assert report.stats["dialogues"] == 3 and len(read_manifest(tmp_path / "out").pairs) == 6
    with pytest.raises(DataError):
        prepare(corpus, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict/manifest.json").exists()


def other_sound(path, rate=48000, channels=1, subtype="FLOAT", seconds=4.0, gain=1.0):
    sound = gain * soundfile.read(path)[0][: round(seconds * rate)]
    sound = np.pad(sound, (0, round(seconds * rate) - len(sound)))
    soundfile.write(path, np.repeat(sound[:, None], channels, 1), rate, subtype=subtype)


@pytest.mark.parametrize(
    ("sound", "frames", "words"),
    [
        ({"rate": 44100}, 120, "44100 Hz mono FLOAT"),
        ({"channels": 2, "subtype": "PCM_16"}, 120, "48000 Hz stereo PCM_16"),
        ({"subtype": "PCM_24", "channels": 3}, 120, "3 channels PCM_24"),
        ({"seconds": 2.999}, 89, "last 4.00 s, the audio 3.00 s"),
        ({"seconds": 4.8}, 120, "they would fit at 25 fps"),
        ({"gain": 0.0}, 120, "the audio is silent"),
    ],
)
def test_what_is_odd_is_said_and_used(corpus, tmp_path, sound, frames, words):
    person, entry = first_person(corpus)
    other_sound(corpus[1] / entry["audio_path"], **sound)
    report = prepare(corpus, tmp_path / "out")
    assert not report.failures and any(person in r and words in r for _, r in report.remarks)
    pair = read_manifest(tmp_path / "out").pairs[0]
    assert pair.T == frames == len(load_motion(pair.speaker_motion)) == len(np.load(pair.listener_state))
    item = DyadicDataset([pair], DialogueConfig(is_train=False))[0]
    assert abs(len(item["speaker_audio"]) - frames / 30 * 16000) < 1
    assert (item["speaker_audio"].abs().max() > 1e-4) == ("gain" not in sound)


def test_a_list_as_it_was_sent_with_a_comma_too_many(corpus, tmp_path):
    entries, root = corpus
    text = json.dumps(entries, indent=2)
    report = prepare((f"{text[:-2]},\n}}", root), tmp_path / "out")
    assert report.stats["dialogues"] == 4
    (where, said), *_ = report.remarks
    assert where == "list.json" and f"line {text.count(chr(10))}" in said


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": {"p": {}, "p": {}}}', "\ud800".encode("utf-8", "surrogatepass")]
)
def test_a_list_that_is_none(tmp_path, text):
    listing = tmp_path / "list.json"
    listing.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FormatError, match=r"list\.json"):
        prepare_dialogues(listing, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()


def test_alone_or_in_company(corpus, tmp_path):
    entries, root = corpus
    a, b, c, d = entries
    entries[a].popitem()
    entries[b] |= {"P9999": next(iter(entries[c].values()))}
    report = prepare(corpus, tmp_path / "out")
    assert [x for x, _ in report.failures] == [a, b]
    assert "found 1" in report.failures[0][1] and "found 3" in report.failures[1][1]
    with pytest.raises(DataError, match="Of 2 dialogues none"):
        prepare(({a: entries[a], b: entries[b]}, root), tmp_path / "none")


def test_one_frame_goes_all_the_way(corpus, tmp_path):
    entries, _ = corpus
    for dialogue in entries.values():
        next(iter(dialogue.values()))["valid_frames_num"] = 1
    prepare(corpus, tmp_path / "out")
    cfg = DialogueConfig(manifest_path=str(tmp_path / "out"))
    data = build_dataset(cfg, features=FeatureConfig(), audio=True)
    item, batch = data[0], DyadicBatches(data, 3)(0)
    assert item["listener_motion"].shape == (1, 54) and item["speaker_audio"].shape == (533,)
    assert batch["mask"].sum(1).tolist() == [1, 1, 1] and batch["speaker_features"].shape == (3, 150, 40)


def test_an_interrupted_call_goes_on_where_it_was(corpus, tmp_path, monkeypatch):
    calls, one = Counter(), prepare_module._prepare_one

    def interrupted(folder, *rest):
        calls[folder.name] += 1
        if sum(calls.values()) == 3:
            raise KeyboardInterrupt
        return one(folder, *rest)

    monkeypatch.setattr(prepare_module, "_prepare_one", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(corpus, tmp_path / "out")
    assert not (tmp_path / "out/manifest.json").exists()
    assert prepare(corpus, tmp_path / "out").written == 2
    assert sorted(calls.values()) == [1, 1, 1, 2]
    monkeypatch.undo()
    prepare(corpus, tmp_path / "straight")
    assert content(tmp_path / "out") == content(tmp_path / "straight")


def test_two_processes_write_the_same_and_a_torn_file_is_made_again(corpus, tmp_path):
    prepare(corpus, tmp_path / "one")
    prepare(corpus, tmp_path / "two", jobs=2)
    assert content(tmp_path / "one") == content(tmp_path / "two")
    pair = read_manifest(tmp_path / "two").pairs[0]
    cut_off(pair.speaker_motion)
    with pytest.raises(FormatError, match=r"not a whole \.npy"):
        DyadicDataset([pair], DialogueConfig())[0]
    assert prepare(corpus, tmp_path / "two").written == 1
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_a_source_that_changes_is_read_again(corpus, tmp_path):
    assert prepare(corpus, tmp_path / "out").written == 4
    entry = first_person(corpus)[1]
    changed("expression_params", lambda x: x + 1)(corpus[1] / entry["flame_coeff_save_path"])
    assert prepare(corpus, tmp_path / "out").written == 1
    assert prepare(corpus, tmp_path / "out", fps=25).written == 4  # says another length
    assert prepare(corpus, tmp_path / "out", fps=25).written == 0


def test_a_prepared_folder_can_be_moved(corpus, tmp_path):
    prepare(corpus, tmp_path / "out")
    before = DyadicDataset(read_manifest(tmp_path / "out").pairs, DialogueConfig())
    expected = [before.window(i, 0) for i in range(8)]
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    after = DyadicDataset(read_manifest(tmp_path / "elsewhere").pairs, DialogueConfig())
    for i, item in enumerate(expected):
        assert all(torch.equal(x, after.window(i, 0)[k]) for k, x in item.items() if torch.is_tensor(x))


def test_workers_and_epochs_draw_windows_of_their_own(corpus, tmp_path):
    prepare(corpus, tmp_path / "out")
    pairs = read_manifest(tmp_path / "out").pairs[:1] * 12  # the same pair: what differs is what is drawn
    data = DyadicDataset(pairs, DialogueConfig(window_frames=30))

    def epoch(loader):
        return [int(start) for batch in loader for start in batch["start"]]

    torch.manual_seed(0)
    loader = torch.utils.data.DataLoader(data, batch_size=3, num_workers=2)
    first, second = epoch(loader), epoch(loader)
    assert len(set(first)) > 6 and first != second and first[:3] != first[3:6]
    torch.manual_seed(0)
    assert epoch(torch.utils.data.DataLoader(data, batch_size=3, num_workers=2)) == first


def test_rates_that_do_not_go_together(corpus, tmp_path):
    entries, _ = corpus
    for dialogue in list(entries.values())[:2]:
        for entry in dialogue.values():
            entry["fps"] = 29.97
    report = prepare(corpus, tmp_path / "out")
    assert report.stats["fps"] == {"29.97": 2, "30": 2} and not report.failures
    with pytest.raises(ConfigError, match=r"29\.97, 30"):
        DyadicDataset(read_manifest(tmp_path / "out").pairs, DialogueConfig())
    ntsc = [p for p in read_manifest(tmp_path / "out").pairs if p.fps == 30000 / 1001]
    assert len(DyadicDataset(ntsc, DialogueConfig(window_frames=90))[0]["speaker_audio"]) in (48048, 48049)


def test_the_same_rate_written_in_two_ways_is_one(corpus, tmp_path):
    for dialogue in corpus[0].values():
        for entry, fps in zip(dialogue.values(), (29.97, 30000 / 1001), strict=True):
            entry["fps"] = fps
    report = prepare(corpus, tmp_path / "out")
    assert report.stats["fps"] == {"29.97": 4} and not report.failures
    cfg = DialogueConfig(manifest_path=str(tmp_path / "out"), fps=29.97)
    assert build_dataset(cfg, "all").fps == 30000 / 1001
    for fps in (float("inf"), float("nan"), 0, -30):
        with pytest.raises(ConfigError, match="fps"):
            prepare(corpus, tmp_path / "none", fps=fps)


def test_what_lies_behind_the_valid_frames_is_not_looked_at(corpus, tmp_path):
    person, entry = first_person(corpus)
    changed("expression_params", nan_at(slice(90, None)))(corpus[1] / entry["flame_coeff_save_path"])
    np.save(corpus[1] / entry["state_path"], np.r_[np.load(corpus[1] / entry["state_path"])[:90], [9] * 30])
    assert len(prepare(corpus, tmp_path / "out").failures) == 1
    entry["valid_frames_num"] = 90.0  # as a table has it
    report = prepare(corpus, tmp_path / "out")
    assert not report.failures
    said = [text for d, text in report.remarks if d == next(iter(corpus[0]))]
    assert said == [f"{person}: valid_frames_num is 90 of 120 frames"]
    assert {p.T for p in read_manifest(tmp_path / "out").pairs} == {90, 120}


@pytest.mark.parametrize("name", ["x" * 256, "ä" * 150, "\ud800", "a\nb", "manifest.json", "features"])
def test_a_name_that_cannot_be_a_folder_leaves_out_one_dialogue(corpus, tmp_path, name):
    entries, root = corpus
    first = next(iter(entries))
    report = prepare(
        ({name: entries[first]} | {d: e | {"fps": 30} for d, e in entries.items()}, root), tmp_path / "out"
    )
    assert report.stats["dialogues"] == 4 and [d for d, _ in report.failures] == [
        name.encode("utf-8", "backslashreplace").decode()
    ]


def test_a_split_outlives_the_growth_of_its_corpus(corpus, tmp_path):
    entries, root = corpus
    a, b, c, d = entries
    some, thirds = {x: entries[x] for x in (b, c, d)}, {"shares": (1, 1, 1)}
    prepare((some, root), tmp_path / "out", **thirds)
    old = read_manifest(tmp_path / "out").splits
    for again in (entries, dict(reversed(entries.items()))):
        prepare((again, root), tmp_path / "out", **thirds)
        new = read_manifest(tmp_path / "out").splits
        assert all(set(old[side]) <= set(new[side]) for side in old) and sum(map(len, new.values())) == 4
    (train,), (test,) = ([x for x in old[side] if x in some] for side in ("train", "test"))
    guest, host = next(iter(entries[train].items())), next(iter(entries[test].items()))
    report = prepare((some | {"new": dict([guest, host])}, root), tmp_path / "out", **thirds)
    assert set(read_manifest(tmp_path / "out").splits["train"]) == {train, test, "new"}
    assert any("were on train and test" in text for _, text in report.remarks)
    asked = prepare((entries, root), tmp_path / "out", shares=(1, 0, 0))
    assert asked.stats["split"] == {"train": 4, "val": 0, "test": 0}


def test_people_are_who_speaker_id_says(corpus, tmp_path):
    entries, root = corpus
    named = {
        d: {k: e | {"speaker_id": e["speaker_id"]} for k, e in zip("AB", x.values(), strict=True)}
        for d, x in entries.items()
    }
    report = prepare((named, root), tmp_path / "named")
    assert report.stats["groups"] == 4 and report.stats["participants"] == 8 and report.stats["split"]["test"]
    for e in named.values():
        e["B"] |= {"speaker_id": "the same host"}
    assert prepare((named, root), tmp_path / "host").stats["groups"] == 1
    for e in named.values():
        e["A"].pop("speaker_id"), e["B"].pop("speaker_id")
    assert prepare((named, root), tmp_path / "keys").stats["groups"] == 1


def test_a_whole_corpus_at_another_rate_is_said_first_and_once(corpus, tmp_path):
    report = prepare(corpus, tmp_path / "out", fps=25)
    said = "4 of 4 dialogues would fit at 30 fps: run again with --fps 30"
    assert report.remarks[0] == ("list.json", said)
    console = Console(width=150, record=True, file=io.StringIO())
    console.print(report)
    shown = console.export_text()
    assert (
        shown.index(said) < shown.index("8 times: 120 frames at 25 fps last 4.80 s")
        and shown.count("note") == 2
    )
    assert not any("run again" in text for _, text in prepare(corpus, tmp_path / "out", fps=30).remarks)


def run(*arguments):
    result = CliRunner().invoke(app, ["dyad", "prepare", *map(str, arguments)])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_line_says_what_happened(corpus, tmp_path):
    entries, root = corpus
    listing = root / "dataset_jsons/synthetic.json"
    (root / first_person(corpus)[1]["audio_path"]).unlink()
    code, out, err = run("--data", listing, "--out", tmp_path / "out", "--json")
    assert code == 1 and json.loads(out)["dialogues"] == 3
    assert (
        "left out: " in err
        and next(iter(entries)) in err
        and "no such file" in err
        and "Traceback" not in err
    )
    code, out, err = run("--data", listing, "--out", tmp_path / "out")
    assert code == 1 and "left out" in out and "3 dialogues" in out
    code, out, err = run("--data", listing, "--out", tmp_path / "strict", "--strict")
    assert code == 2 and out == "" and err.count("error:") == 1
    code, out, err = run("--data", listing, "--root", tmp_path, "--out", tmp_path / "nowhere")
    assert code == 2 and "Of 4 dialogues none could be used" in err

"""The sound of events, cut from real recordings."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from faithad import schemas, storage
from faithad.audit import sounds
from faithad.audit.expected_sounds import _griffin_lim, expected_sound, reconstructing
from faithad.audit.outcome import read_scores
from faithad.audit.sounds import clip_sounds, event_sounds
from faithad.config.audit import load_written_audit
from faithad.features import Normalization, log_mel
from faithad.model.checkpoint import TrainedModel
from faithad.model.classical import fit_classical
from faithad.runs import layout
from faithad.runs.tables import read_events, read_manifest
from faithad.scoring.trained_ensemble import AnyModel, load_any
from faithad.settings import FeatureSettings
from tests.audit.conftest import FEATURES, FIRST, ODD, RATE_HZ, SECOND

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def none_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sounds that are expected take longest: tests of them ask for them."""
    monkeypatch.setattr(sounds, "MOST_EXPECTED", 0)


def model_of(audit: Any) -> AnyModel:
    return load_any(load_written_audit(storage.join(audit.out, layout.AUDIT)).model)


def sounds_of(
    audit: Any, events: pa.Table | None = None, former: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    events = read_events(audit.out) if events is None else events
    before = None if former is None else pa.Table.from_pylist(former, schema=schemas.SOUNDS)
    table = event_sounds(events, read_manifest(audit.out), read_scores(audit.out), model_of(audit), before)
    assert table.schema.equals(schemas.SOUNDS)
    return table.to_pylist()


def test_each_event_with_two_seconds_around_it(audit: Any) -> None:
    rows = sounds_of(audit)
    # By strength; of the event over two recordings the part with the highest score. Before the start, after the end of
    # a recording nothing is heard.
    assert [(row["recording"], row["onset_s"], row["duration_s"]) for row in rows] == [
        (FIRST, 48.0, 12.0),
        (FIRST, 0.0, 12.0),
        (ODD, 8.0, 14.0),
    ]
    for row in rows:
        with soundfile.SoundFile(io.BytesIO(row["opus"])) as file:
            assert (file.format, file.subtype, file.samplerate, file.channels) == ("OGG", "OPUS", 24_000, 1)
            assert file.frames == pytest.approx(24_000 * row["duration_s"], abs=1)
        assert len(row["opus"]) < 3_000 * row["duration_s"]  # of white noise; 2,000 for 16 kbit/s
        # The noise is at full scale, and resampling makes its peaks higher.
        assert -6 < row["gain_db"] < 0


def test_the_spectrogram_is_that_of_the_recording(audit: Any) -> None:
    row = sounds_of(audit)[2]
    samples = audit.sounds[ODD][8 * RATE_HZ : 22 * RATE_HZ].mean(axis=1) / 2**15
    frames = log_mel(torch.from_numpy(samples.astype(np.float32))[None], FEATURES)[0].numpy()
    np.testing.assert_allclose(np.reshape(row["log_mel"], (row["n_mels"], -1)), frames, atol=0.2)


def test_a_long_event_is_cut_around_its_strongest_moment(audit: Any) -> None:
    event = read_events(audit.out).to_pylist()[0]
    ids = read_manifest(audit.out)["clip_id"].to_pylist()[:6]
    event |= {"clip_ids": ids, "parts": [{"recording": FIRST, "onset_s": 0.0, "offset_s": 60.0}]}
    (row,) = sounds_of(audit, pa.Table.from_pylist([event], schema=schemas.EVENTS))
    # Its worst second begins at 54 s; the recording ends at 60 s.
    assert (row["onset_s"], row["duration_s"]) == (30.0, 30.0)
    assert len(row["log_mel"]) == 600 * FEATURES.n_mels


def test_the_same_sound_is_the_same_file(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """libsndfile draws a number for each file; with that of another one, and its checksums, it decodes as before."""
    rows = sounds_of(audit)
    time.sleep(1.1)  # it draws by the clock
    assert sounds_of(audit) == rows
    monkeypatch.setattr(sounds, "_with_serial_0", bytes)
    for row, drawn in zip(rows, sounds_of(audit), strict=True):
        assert row["opus"] != drawn["opus"]
        ours, theirs = (soundfile.read(io.BytesIO(file["opus"]))[0] for file in (row, drawn))
        np.testing.assert_array_equal(ours, theirs)


def test_the_number_of_threads_changes_nothing(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drivers have as many cores as their machine. PyTorch shares long sums among its threads, and rounds them so."""
    monkeypatch.setattr(sounds, "MOST_EXPECTED", 20)
    used: set[int] = set()

    def counted(waveforms: torch.Tensor, features: FeatureSettings) -> torch.Tensor:
        used.add(torch.get_num_threads())
        return log_mel(waveforms, features)

    monkeypatch.setattr(sounds, "log_mel", counted)
    n_threads, by_threads = torch.get_num_threads(), []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            by_threads.append(sounds_of(audit))
            assert torch.get_num_threads() == n
    finally:
        torch.set_num_threads(n_threads)
    assert used == {1}
    differing = [
        {name for name in first if first[name] != row[name]}
        for rows in by_threads[1:]
        for first, row in zip(by_threads[0], rows, strict=True)
    ]
    assert not any(differing), differing


def test_what_was_not_heard_is_not_read(audit: Any) -> None:
    """The clip of the second recording from 40 s on failed, perhaps because it crashes the decoder."""
    event = read_events(audit.out).to_pylist()[0]
    ids = [clip["clip_id"] for clip in read_manifest(audit.out).to_pylist() if clip["recording"] == SECOND]
    event |= {"clip_ids": ids[3:4], "parts": [{"recording": SECOND, "onset_s": 30.0, "offset_s": 40.0}]}
    (row,) = sounds_of(audit, pa.Table.from_pylist([event], schema=schemas.EVENTS))
    assert (row["onset_s"], row["duration_s"]) == (28.0, 12.0)


def test_a_recording_that_is_gone_costs_its_own_sound(audit: Any) -> None:
    audit.places[ODD].unlink()
    rows = sounds_of(audit)
    assert [row["opus"] is None for row in rows] == [False, False, True]
    assert "does not exist" in rows[2]["reason"]


def test_the_strongest_have_their_sound(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "MOST_SOUNDS", 1)
    assert [row["recording"] for row in sounds_of(audit)] == [FIRST]


def test_silence_is_not_made_louder(audit: Any) -> None:
    soundfile.write(audit.places[ODD], np.zeros((30 * RATE_HZ, 2), np.int16), RATE_HZ, subtype="PCM_16")
    assert sounds_of(audit)[2]["gain_db"] == 0.0


def test_what_was_cut_before_is_not_cut_again(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "MOST_EXPECTED", 2)
    rows = sounds_of(audit)
    for path in audit.places.values():
        path.unlink()
    assert sounds_of(audit, former=rows) == rows
    # An event that is longer now is another sound; what could not be read is tried again.
    other = [rows[0] | {"duration_s": 13.0}, rows[1] | {"opus": None}, rows[2]]
    assert [row["opus"] is None for row in sounds_of(audit, former=other)] == [True, True, False]
    monkeypatch.setattr(sounds, "MOST_EXPECTED", 1)
    assert [row["expected"] is None for row in sounds_of(audit, former=rows)] == [False, True, True]


def test_the_expected_sound_has_the_levels_of_the_reconstruction(audit: Any) -> None:
    """A network that gives back what it hears: its expected sound is the sound, but for the phases."""
    at_s = np.arange(30 * RATE_HZ) / RATE_HZ
    tones = 0.1 * np.sin(2 * np.pi * 500 * at_s) * (at_s % 2 < 1) + 0.05 * np.sin(2 * np.pi * 1_500 * at_s)
    soundfile.write(audit.places[ODD], np.stack([tones, tones], axis=1), RATE_HZ, subtype="PCM_16")
    trained = model_of(audit)
    assert isinstance(trained, TrainedModel)
    clips = [clip for clip in read_manifest(audit.out).to_pylist() if clip["recording"] == ODD]
    identity = torch.nn.Identity()
    identity.n_mels, identity.n_frames = 16, 400  # type: ignore[assignment]
    same = replace(trained, network=identity)
    samples, level = expected_sound(same, clips, onset_s=8.0, duration_s=14.0)
    assert samples.shape == (14 * RATE_HZ,)
    heard, expected = (
        log_mel(torch.from_numpy(sound.astype(np.float32))[None], FEATURES)[0]
        for sound in (tones[8 * RATE_HZ : 22 * RATE_HZ], samples)
    )
    loud = heard > heard.max() - 40
    # The picture has what the network gives, but where the seconds begin and end.
    off_db = np.abs(level[:, 1:-1] - heard.numpy()[:, 1 : level.shape[1] - 1])
    assert (off_db[loud.numpy()[:, 1 : level.shape[1] - 1]] < 0.5).mean() > 0.95
    assert (heard - expected)[loud].abs().median() < 1
    # The tone goes on and off at the same times.
    band = heard[:, :30].mean(dim=1).argmax()
    assert np.corrcoef(heard[band], expected[band])[0, 1] > 0.9
    np.testing.assert_array_equal(samples, expected_sound(same, clips, onset_s=8.0, duration_s=14.0).samples)


def test_the_strongest_have_what_the_model_expects(audit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sounds, "MOST_EXPECTED", 1)
    rows = sounds_of(audit)
    assert [row["expected"] is None for row in rows] == [False, True, True]
    with soundfile.SoundFile(io.BytesIO(rows[0]["expected"])) as file:
        assert (file.format, file.samplerate) == ("OGG", 24_000)
        assert file.frames == pytest.approx(24_000 * rows[0]["duration_s"], abs=1)
    assert [row["expected_log_mel"] is None for row in rows] == [False, True, True]
    assert len(rows[0]["expected_log_mel"]) % rows[0]["n_mels"] == 0


def test_windows_that_do_not_overlap_are_rebuilt() -> None:
    """Griffin-Lim needs windows that overlap, which features need not have."""
    features = FeatureSettings(sample_rate_hz=4_000, n_fft=200, hop_samples=200, n_mels=16)
    noise = torch.from_numpy(0.1 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32))
    level = log_mel(noise[None], features)[0]
    rebuilt = _griffin_lim(10 ** (level / 10), features, len(noise))
    assert rebuilt.shape == noise.shape
    assert 0.5 < rebuilt.std() / noise.std() < 2


def test_a_model_that_only_scores_expects_nothing() -> None:
    network = fit_classical("one_class_svm", torch.randn(30, 16, 401), seed=0)
    trained = TrainedModel(network, Normalization.identity(16), FEATURES, "one_class_svm", 0, None, 0, "0" * 12)
    assert reconstructing(trained) == {}


def test_the_sound_of_whole_clips(audit: Any) -> None:
    """Of a study's example clips; published spectrograms have none, and a file that is gone costs its own."""
    clips = {clip["recording"]: clip for clip in read_manifest(audit.out).to_pylist() if clip["onset_s"] == 10.0}
    audit.places[ODD].unlink()
    spectrogram = clips[FIRST] | {"clip_id": "p", "uri": "planer/MPD_1.pt"}
    table = clip_sounds([clips[ODD], spectrogram, clips[FIRST]])
    assert table.schema.equals(schemas.CLIP_SOUNDS)
    gone, heard = table.to_pylist()
    assert (gone["clip_id"], gone["opus"]) == (clips[ODD]["clip_id"], None)
    assert "does not exist" in gone["reason"]
    assert heard["clip_id"] == clips[FIRST]["clip_id"]
    with soundfile.SoundFile(io.BytesIO(heard["opus"])) as file:
        assert (file.subtype, file.samplerate, file.frames) == ("OPUS", 24_000, pytest.approx(240_000, abs=1))

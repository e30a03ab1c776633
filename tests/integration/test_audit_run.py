"""`faithad audit --model` on real recordings: its tables, the cascade, what it refuses, and what it says."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from faithad import schemas
from faithad.config.audit import load_audit_run
from faithad.config.study import Study
from faithad.errors import CheckpointError, ConfigError, RecordingError, StudyError
from faithad.features import log_mel
from faithad.model.checkpoint import load_model
from faithad.pipelines.audit.run import Outcome, run_audit
from tests.integration.audits import RATE, WEEK_CLIPS, make_run, table

pytestmark = pytest.mark.usefixtures("local_ray")


def test_an_audit_says_what_it_came_to(audited: tuple[Path, Outcome]) -> None:
    out, outcome = audited
    assert (outcome.n_done, outcome.n_failed, outcome.n_skipped) == (WEEK_CLIPS, 1, 1)
    n_events = len(table(out, "events.parquet"))
    assert n_events >= 2
    assert outcome.line == (
        f"{WEEK_CLIPS} of {WEEK_CLIPS} clips audited, 1 recording unreadable, "
        f"1 part of the recordings skipped (see {out}/ledger.parquet). Not heard: 2 recordings of unknown length. "
        f"{n_events} events: {out}/events.parquet  Report: {out}/report.html"
    )
    assert "</html>" in (out / "report.html").read_text()
    assert not (out / "attempts").exists()


def test_every_table_has_its_schema(audited: tuple[Path, Outcome]) -> None:
    out, _ = audited
    for name, schema in {
        "manifest.parquet": schemas.MANIFEST,
        "ledger.parquet": schemas.LEDGER,
        "events.parquet": schemas.EVENTS,
        "scores": schemas.SCORES,
        "attributions": schemas.attributions(16, 100),
        "faithfulness": schemas.FAITHFULNESS,
        "spectrograms": schemas.spectrograms(16, 100),
    }.items():
        files = sorted((out / name).glob("*.parquet")) if (out / name).is_dir() else [out / name]
        assert files
        for file in files:
            assert pq.read_schema(file).equals(schema), name


def test_every_second_of_every_recording_is_accounted_for(audited: tuple[Path, Outcome], week: Path) -> None:
    out, _ = audited
    ledger = table(out, "ledger.parquet")
    assert ledger.equals(ledger.sort_values(["recording", "onset_s"], kind="stable", na_position="first"))
    whole = ledger[ledger["clip_id"].isna()].set_index("recording")
    assert whole["status"].to_dict() == {"week 7/broken.wav": "failed", "week 7/talk.mp3": "skipped"}
    assert whole["reason"].str.len().min() > 10
    clips = ledger[ledger["clip_id"].notna()]
    assert (clips["status"] == "done").all()
    for name, rows in clips.groupby("recording"):
        length_s = soundfile.info(week.parent / str(name)).duration
        ends = np.concatenate([[0.0], (rows["onset_s"] + rows["duration_s"]).to_numpy()])
        assert (rows["onset_s"].to_numpy() <= ends[:-1] + 1e-9).all()
        assert ends[-1] == pytest.approx(length_s)


def test_a_clip_deep_in_a_long_recording_is_scored_as_if_alone(
    audited: tuple[Path, Outcome], finished: Study, week: Path
) -> None:
    out, _ = audited
    manifest = table(out, "manifest.parquet").set_index("clip_id")
    scores = table(out, "scores").set_index("clip_id").join(manifest[["recording", "onset_s"]])
    trained = load_model(f"{finished.root}/models/mae-0")
    for name, onset_s in (("long.wav", 410.0), ("long.wav", 630.0), ("noise.flac", 15.0)):
        sound, _ = soundfile.read(week / name, dtype="float32", start=int(onset_s * RATE), frames=10 * RATE)
        x = trained.prepare(log_mel(torch.from_numpy(sound)[None], trained.features))
        with torch.inference_mode():
            score = float((trained.network(x) - x).square().double().mean())
        clip = scores[(scores["recording"] == f"week 7/{name}") & (scores["onset_s"] == onset_s)]
        assert clip["score"].item() == pytest.approx(score, rel=1e-5)
    long = scores[scores["recording"] == "week 7/long.wav"].set_index("onset_s")["score"]
    assert long.idxmax() == 410.0


def test_alarms_become_events_with_reasons(audited: tuple[Path, Outcome], finished: Study) -> None:
    out, _ = audited
    scores = table(out, "scores")
    alarm = load_model(f"{finished.root}/models/mae-0").alarm
    assert alarm is not None
    durations_s = table(out, "manifest.parquet").set_index("clip_id")["duration_s"][scores["clip_id"]]
    thresholds = [alarm.of_length(duration_s, clip_s=10.0).threshold for duration_s in durations_s]
    assert scores["threshold"].tolist() == thresholds
    assert len(set(thresholds)) == 2, "one clip is short"
    assert (scores["alarm"] == (scores["score"] > scores["threshold"])).all()
    alarmed = set(scores[scores["alarm"]]["clip_id"])
    assert set(table(out, "attributions")["clip_id"]) == alarmed
    events = table(out, "events.parquet")
    assert {clip for clips in events["clip_ids"] for clip in clips} == alarmed
    noise = events[events["recording"] == "week 7/noise.flac"].iloc[0]
    assert (noise["onset_s"], noise["duration_s"], noise["method"]) == (0.0, 25.0, "saliency")
    assert 0 <= noise["faithfulness"] <= 1
    # The one clip whose whole maps are kept is the one that stands out most.
    kept = table(out, "spectrograms")["clip_id"].tolist()
    assert kept == [scores.loc[scores["score"].idxmax(), "clip_id"]]


def test_a_finished_audit_is_not_done_again(audited: tuple[Path, Outcome], finished: Study, week: Path) -> None:
    out, outcome = audited
    before = times(out)
    assert run_audit(make_run(finished, week, out)) == outcome
    assert times(out) == before


@pytest.mark.parametrize("below", ["", "/results/of/monday"])
def test_results_do_not_go_among_the_recordings(finished: Path, week: Path, below: str) -> None:
    with pytest.raises(ConfigError, match=rf"to go to {week}{below}, which lies in the folder of the recordings"):
        run_audit(make_run(finished, week, Path(f"{week}{below}")))
    assert not (week / "stages").exists()


# What depends on which clips are explained.
_OF_EXPLANATIONS = (
    *("attr", "expl", "faith", "spec", "controls", "lines", "localization", "events", "states", "reasons", "sounds"),
    *("operating", "report", "model", "ledger.parquet"),
    *("audit.yaml", "stages/explain", "stages/events"),
)


@pytest.mark.parametrize("explain", ["top:2", "none"])
def test_another_choice_of_what_is_explained_leaves_the_scores(
    explain: str, audited: tuple[Path, Outcome], finished: Study, week: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(audited[0], out)
    before = times(out)
    run = make_run(finished, week, out, f"audit.explain={explain}")
    with pytest.raises(
        StudyError, match=rf"'explain'(.|\n)*audit.explain: 'alarms' then, '{explain}' now(.|\n)*--redo"
    ):
        run_audit(run)
    run_audit(run, redo=True)
    after = times(out)
    for name in before:
        is_made_anew = name.startswith(_OF_EXPLANATIONS)
        assert (after.get(name) == before[name]) is (not is_made_anew), name
    if explain == "none":
        assert not (out / "attributions").exists()
        assert table(out, "events.parquet")["method"].isna().all()
    else:
        scores = table(out, "scores").sort_values("score")
        assert set(table(out, "attributions")["clip_id"]) == set(scores["clip_id"][-2:])


def test_other_events_cost_no_audit(audited: tuple[Path, Outcome], finished: Study, week: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(audited[0], out)
    before = times(out)
    (out / "summary").mkdir()
    (out / "summary" / "events.parquet").touch()  # an evaluation of the events that go
    run_audit(make_run(finished, week, out, "events.method=error_map", "events.merge_gap_s=0"))
    assert not (out / "summary").exists()
    assert set(table(out, "events.parquet")["method"]) == {"error_map"}
    changed = {name for name, time in times(out).items() if before.get(name) != time}
    assert changed == {
        "audit.yaml", "events.parquet", "ledger.parquet", "model.json", "operating_points.parquet", "reasons.parquet",
        "report.html", "sounds.parquet", "stages/events.json", "states.parquet",
    }  # fmt: skip


def test_other_inputs_are_refused_and_named(
    audited: tuple[Path, Outcome], finished: Study, week: Path, tmp_path: Path
) -> None:
    out, here = tmp_path / "out", tmp_path / "week 7"
    shutil.copytree(audited[0], out)
    shutil.copytree(week, here)
    run, before_move = make_run(finished, here, out), times(out)
    assert run_audit(run).n_done == WEEK_CLIPS, "the recordings may move"
    assert {Path(uri).parent for uri in table(out, "manifest.parquet")["uri"]} == {here}
    assert {name for name, time in times(out).items() if before_move[name] != time} == {"manifest.parquet"}

    samples, _ = soundfile.read(here / "short.wav", dtype="int16")
    soundfile.write(here / "short.wav", samples[::-1], RATE)  # of the same size
    (here / "noise.flac").unlink()
    shutil.copy(here / "long.wav", here / "another.wav")
    before = times(out)
    with pytest.raises(StudyError) as caught:
        run_audit(run)
    told = str(caught.value)
    assert "files that came: week 7/another.wav\n" in told
    assert "files that went: week 7/noise.flac\n" in told
    assert "files that changed: week 7/short.wav\n" in told
    with pytest.raises(StudyError, match=r"  model: '\w+' then, '\w+' now"):
        run_audit(make_run(finished, week, out, model="ae-0"))
    with pytest.raises(StudyError, match=r"  alarm.threshold: (.*) then, (.*) now"):
        run_audit(make_run(finished, week, out, "alarm.pooling=worst_second"))
    assert times(out) == before


def test_an_alarm_of_its_own_needs_the_scores_that_it_is_fitted_to(finished: Study, week: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    shutil.copy(f"{finished.root}/models/mae-0/model.safetensors", model)
    run = load_audit_run(
        None, model=str(model), recordings=[str(week)], out=str(tmp_path / "o"), overrides=["alarm.rule=quantile"]
    )
    with pytest.raises(StudyError, match=r"validation_scores\.parquet, which it is fitted to, is missing"):
        run_audit(run)


def test_nothing_to_audit_is_an_error(finished: Study, tmp_path: Path) -> None:
    sounds = tmp_path / "sounds"
    sounds.mkdir()
    with pytest.raises(RecordingError, match="holds no recordings"):
        run_audit(make_run(finished, sounds, tmp_path / "o"))
    soundfile.write(sounds / "short.wav", np.zeros(RATE), RATE)
    with pytest.raises(RecordingError, match=r"not one recording gave a clip(.|\n)*short\.wav: .*remainder: drop"):
        run_audit(make_run(finished, sounds, tmp_path / "o", "remainder=drop"))
    with pytest.raises(CheckpointError, match="no trained model"):
        run_audit(make_run(finished, sounds, tmp_path / "o", model="absent"))


def test_recordings_that_are_all_broken_are_told(finished: Study, tmp_path: Path) -> None:
    (tmp_path / "sounds").mkdir()
    (tmp_path / "sounds" / "a.wav").write_text("no sound at all, just words")
    outcome = run_audit(make_run(finished, tmp_path / "sounds", tmp_path / "o"))
    assert outcome.n_failed == 1
    assert outcome.line.startswith("0 of 0 clips audited, 1 recording unreadable (see ")
    assert table(tmp_path / "o", "ledger.parquet")["status"].tolist() == ["failed"]


def times(out: Path) -> dict[str, Any]:
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}

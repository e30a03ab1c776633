"""Clips that kill their process, with real processes that are really killed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from faithad.runs.attempts import attempt, count_deaths

CLIPS = ["a", "b", "c", "d"]
# Does a shard like a worker: dies of the clips that it is told, alone or together with others.
WORKER = """
import json, os, signal, sys
from faithad.runs.attempts import attempt
mark, run, deadly, crowd = sys.argv[1], sys.argv[2], sys.argv[3].split(","), int(sys.argv[4])
clips = sys.argv[5].split(",")
def work(positions):
    if any(clips[k] in deadly for k in positions) or len(positions) >= crowd:
        os.kill(os.getpid(), signal.SIGKILL)
    return [clips[k] for k in positions]
found = attempt(mark, clips, run=run, what="Reading this clip", together=work, alone=lambda k: work([k]))
print(json.dumps([found.result, {clips[k]: reason for k, reason in found.left_out.items()}]))
"""


def lives(
    tmp_path: Path, *, deadly: str = "", crowd: int = 9, run: str | None = "r", clips: str = "a,b,c,d"
) -> tuple[int, object, object]:
    """Start the worker until it ends well: how often it died, what it did, and what it left out."""
    for deaths in range(20):
        arguments = [str(tmp_path / "mark.json"), run or f"run {deaths}", deadly, str(crowd), clips]
        answer = subprocess.run([sys.executable, "-c", WORKER, *arguments], capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            result, left_out = json.loads(answer.stdout)
            return deaths, result, left_out
        assert answer.returncode == -9, answer.stderr
    raise AssertionError("it dies for ever")


def test_a_clip_that_kills_is_left_out_and_all_others_are_done_together(tmp_path: Path) -> None:
    deaths, result, left_out = lives(tmp_path, deadly="c")
    assert deaths == 4
    assert result == ["a", "b", "d"]
    assert list(left_out) == ["c"]
    assert left_out["c"].startswith("Reading this clip ended its process 2 times")
    assert left_out["c"].endswith("Look at the recording."), "a study has no --retry-failed"
    assert not (tmp_path / "mark.json").exists()


def test_a_clip_without_neighbours_is_told_sooner(tmp_path: Path) -> None:
    deaths, result, left_out = lives(tmp_path, deadly="c", clips="c")
    assert (deaths, result, list(left_out)) == (2, None, ["c"])
    assert lives(tmp_path, clips="c") == (0, ["c"], {})


def test_several_clips_that_kill(tmp_path: Path) -> None:
    deaths, result, left_out = lives(tmp_path, deadly="a,d")
    assert deaths == 6
    assert (result, list(left_out)) == (["b", "c"], ["a", "d"])


def test_clips_that_only_die_together_are_given_up_together(tmp_path: Path) -> None:
    deaths, result, left_out = lives(tmp_path, crowd=3)
    assert deaths == 6
    assert result is None
    assert list(left_out) == CLIPS
    assert "each of them passes alone" in left_out["a"]


def test_the_death_of_a_whole_run_says_half_as_much(tmp_path: Path) -> None:
    """Each attempt belongs to another run, whose driver was killed with it."""
    deaths, _, left_out = lives(tmp_path, deadly="c", run=None)
    assert deaths == 8
    assert list(left_out) == ["c"]


def test_an_error_is_no_death(tmp_path: Path) -> None:
    def fails(positions: list[int]) -> None:
        assert (tmp_path / "mark.json").exists()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        attempt(str(tmp_path / "mark.json"), CLIPS, run="r", what="Reading this clip", together=fails, alone=print)
    assert not (tmp_path / "mark.json").exists()


def test_deaths_are_counted_as_they_are_noticed(tmp_path: Path) -> None:
    mark = {"at": "together", "pid": 1, "host": "h", "run": "r", "died": {"together": 2.0, "c": 1.0}}
    (tmp_path / "one.json").write_text(json.dumps(mark))
    (tmp_path / "two.json").write_text(json.dumps(mark | {"died": {}}))
    assert count_deaths(str(tmp_path)) == 3.0
    assert count_deaths(str(tmp_path / "nothing")) == 0.0

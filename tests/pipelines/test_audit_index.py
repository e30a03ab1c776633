"""The recordings of an audit in clips, without Ray: what is said of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from faithad.clips.manifest import Recording
from faithad.clips.recordings import AudioHeader
from faithad.config_audit import AuditRun
from faithad.pipelines.audit import index


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([20.0, 10.0], "index: 3 clips of 2 recordings"),
        ([10.0, None], "index: 1 clip of 1 recording, 1 recording or part of one skipped or failed"),
        ([25.0, None, 3.0], "index: 2 clips of 1 recording, 3 recordings or parts of them skipped or failed"),
    ],
)
def test_what_is_said_of_the_clips(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: list[float | None],
    said: str,
) -> None:
    headers = [AudioHeader(s, 8_000, 1, int(8_000 * s)) if s else "cannot be decoded" for s in seconds]
    monkeypatch.setattr(index, "read_headers", lambda *_, **__: iter(headers))
    (tmp_path / "mill").mkdir()
    run = AuditRun(model="m", recordings=(str(tmp_path / "mill"),), out=str(tmp_path / "out"), remainder="drop")
    recordings = [Recording(f"mill/{k}.wav", f"{tmp_path}/mill/{k}.wav", "test") for k in range(len(seconds))]
    index.index_recordings(run, recordings, {}, clip_s=10.0)
    assert capsys.readouterr().out.splitlines()[-1] == said

"""Secrets in a location are refused before anything is written, and no message repeats them."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from faithad import cli, storage
from faithad.config.audit import load_audit_run
from faithad.config.study import load_study
from faithad.errors import ConfigError, StudyError, holds_secrets, masked

SECRET = "wJalrWITNESSbPxRfiCY"
WITH_SECRETS = [
    f"s3://AKIAWITNESS:{SECRET}@bucket/mill",
    f"S3://AKIAWITNESS:{SECRET}@bucket/mill?region=eu-west-1",
    f"s3://AKIAWITNESS:{SECRET}/with+slash@bucket/mill",
    f"s3://{SECRET}@bucket/mill",
    f"s3://bucket/mill?region=eu-west-1&secret_key={SECRET}",
    f"s3://bucket/mill?access_key={SECRET}",
    f"s3://bucket/mill?endpoint_override=http://name:{SECRET}@127.0.0.1:9000",
    f"s3://bucket/mill?endpoint_override=http%3A%2F%2Fname%3A{SECRET}%40127.0.0.1",
    f"https://bucket.s3.amazonaws.com/mill?X-Amz-Signature={SECRET}",
    f"https://account.blob.core.windows.net/mill?sv=2022&sig={SECRET}",
    f"abfs://container:{SECRET}@account.dfs.core.windows.net/mill",
    f"abfs://container@account.dfs.core.windows.net/mill?client_secret={SECRET}",
    f"hdfs://name:{SECRET}@host:8020/mill",
]
WITHOUT = [
    "runs/mill",
    "/data/name:word@host/mill",
    "s3://bucket/mill",
    "s3://bucket/name@host/key=1/mill?region=eu-west-1&scheme=http&endpoint_override=127.0.0.1:9000",
    "gs://anonymous@bucket/mill",
    "gs://bucket/mill?project_id=p&retry_limit_seconds=60",
    "abfs://container@account.dfs.core.windows.net/mill?credential_kind=default",
    "hdfs://host:8020/name@host",
    "file:///data/mill",
    "file:///data/R&D/key=3/design=2",
    "s3://bucket/R&D design=v2;monkey=1/mill",
]


@pytest.mark.parametrize("location", WITH_SECRETS)
def test_a_secret_is_found_and_left_out(location: str) -> None:
    assert holds_secrets(location)
    for text in (location, f"Location {location!r} cannot be opened", f"a {location}, b ({location})\n{location}"):
        assert SECRET not in masked(text)
        assert masked(masked(text)) == masked(text)
    with pytest.raises(StudyError) as caught:
        storage.locate(location)
    assert "put it into the environment" in str(caught.value)
    for told in (str(caught.value), repr(caught.value), repr(pickle.loads(pickle.dumps(caught.value)))):
        assert SECRET not in told


@pytest.mark.parametrize("sign", ["'", '"', " ", "#"])
def test_a_password_of_any_signs_is_left_out(sign: str) -> None:
    with pytest.raises(StudyError, match="put it into the environment") as caught:
        storage.locate(f"s3://AKIAWITNESS:{sign}{SECRET}@bucket/mill")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("location", WITHOUT)
def test_places_are_no_secrets(location: str) -> None:
    assert not holds_secrets(location)
    assert masked(f"Location {location!r}: x") == f"Location {location!r}: x"


@given(st.text())
@settings(max_examples=50, deadline=None, derandomize=True)
def test_any_text_is_taken(text: str) -> None:
    assert masked(masked(text)) == masked(text)
    assert holds_secrets(f"s3://{text}") in (True, False)


STUDY: dict[str, Any] = {
    "name": "mill",
    "root": "runs",
    "data": {"root": "mill", "train": ["a"], "test": ["b"], "annotations": "c.csv"},
}
AUDIT: dict[str, Any] = {"model": "models/mae-0", "recordings": ["week"], "out": "runs/week", "annotations": "labels"}


@pytest.mark.parametrize("key", ["root", "data.root", "data.train", "data.test", "data.annotations", "data.split.csv"])
@pytest.mark.parametrize("location", WITH_SECRETS[:5])
def test_no_setting_of_a_study_holds_one(tmp_path: Path, key: str, location: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY))
    value = f"['{location}']" if key in ("data.train", "data.test") else f"'{location}'"
    _refused(lambda: load_study(str(file), overrides=[f"{key}={value}"]), key)
    nested: Any = location if "[" not in value else [location]
    for part in reversed(key.split(".")[1:]):
        nested = {part: nested}
    section = {**STUDY["data"], **nested} if key.startswith("data.") else nested
    file.write_text(yaml.safe_dump(STUDY | {key.split(".")[0]: section}))
    _refused(lambda: load_study(str(file)), key)


@pytest.mark.parametrize("key", AUDIT)
def test_no_setting_of_an_audit_holds_one(tmp_path: Path, key: str) -> None:
    file = tmp_path / "audit.yaml"
    for location in WITH_SECRETS:
        file.write_text(yaml.safe_dump(AUDIT | {key: [location] if key == "recordings" else location}))
        _refused(lambda: load_audit_run(str(file)), key)


def test_not_even_where_all_else_is_wrong(tmp_path: Path) -> None:
    """Broken YAML and values of a wrong type are quoted in messages."""
    for text in (f"root: [{WITH_SECRETS[0]}", f"root: [{WITH_SECRETS[0]}]\nname: 1", f"'{WITH_SECRETS[0]}'"):
        (tmp_path / "study.yaml").write_text(text)
        for read in (load_study, load_audit_run):
            with pytest.raises(ConfigError) as caught:
                read(str(tmp_path / "study.yaml"))
            assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--config", WITH_SECRETS[0]],
        ["study", "--config", "study.yaml", "--set", f"root={WITH_SECRETS[0]}"],
        ["study", "--config", "study.yaml", "--set", f"root {WITH_SECRETS[0]}"],
        ["audit", "--model", WITH_SECRETS[2], "--recordings", "week", "--out", "out"],
        ["audit", "--model", "m", "--recordings", WITH_SECRETS[4], "--out", WITH_SECRETS[5]],
        ["export", WITH_SECRETS[0], "--to", "labels", "--format", "csv"],
        ["export-clips", "audit", "--to", WITH_SECRETS[0]],
        ["evaluate", "--audit", WITH_SECRETS[0], "--annotations", "labels"],
        ["synth", "--out", WITH_SECRETS[0]],
    ],
)
def test_no_command_repeats_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: Sequence[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(STUDY))
    monkeypatch.setattr("sys.argv", ["faithad", *arguments])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1
    said = capsys.readouterr()
    assert "Error: " in said.err
    assert SECRET not in said.out + said.err
    assert [file.name for file in tmp_path.rglob("*")] == ["study.yaml"]


def _refused(load: Any, key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load()
    assert f"{key}: " in str(caught.value)
    assert "holds a password or a key" in str(caught.value)
    assert SECRET not in str(caught.value)

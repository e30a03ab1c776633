"""What was finished stays true: files of an audit that are truncated, overwritten or gone are made again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import faithad
from faithad import storage
from faithad.audit.exports import export_events
from faithad.audit.reference import evaluate_audit
from faithad.clips.annotations import Annotation, write_annotations
from faithad.config.audit import AuditRun, load_audit_run
from faithad.errors import DamagedError, StudyError
from faithad.features import Normalization
from faithad.model.alarm import AlarmThreshold
from faithad.model.checkpoint import TrainedModel, save_model
from faithad.model.skip_cae_transformer import SkipCAETransformer
from faithad.pipelines.audit.run import run_audit
from faithad.report.audit_page import render_audit_report
from faithad.runs.prune import prune
from faithad.settings import FeatureSettings
from tests.full_disks import places_where_full, small_disk
from tests.pipelines.audits_without_ray import without_ray
from tests.tables import differences

pytestmark = pytest.mark.long

RATE_HZ = 8_000
FEATURES = FeatureSettings(sample_rate_hz=RATE_HZ, n_fft=1000, hop_samples=1000, n_mels=16)
SETTINGS = ("audit.explain=all", "audit.maps=8", "audit.percentiles=[95]", "attribution.methods=[error_map]",
            "events.method=error_map")  # fmt: skip


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[60] ^= 1  # of a table, in its first column
    file.write_bytes(content)


KINDS: dict[str, Callable[[Path], object]] = {
    "empty": lambda file: file.write_bytes(b""),
    "half": cut,
    "flipped": flip,
    "gone": Path.unlink,
}
# Tables that are written shard by shard, and the others.
SHARDED = ("scores", "ledger", "explained", "attributions", "localization", "faithfulness", "controls", "lines",
           "spectrograms")  # fmt: skip
WHOLE = ("manifest", "health", "inputs", "index_ledger", "ledger", "events", "states", "reasons", "sounds",
         "operating_points")  # fmt: skip
kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuditRun]:
    """A finished audit of eight annotated clips, all of which alarm and are explained, in as many shards."""
    folder = tmp_path_factory.mktemp("audit")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SkipCAETransformer(16, 80)
    trained = TrainedModel(
        network=network, normalization=Normalization.identity(16), features=FEATURES, name="mae", seed=0,
        alarm=AlarmThreshold("quantile", "mean", 0.05, 2.0, 18.0, 20), best_epoch=1, config_hash="0" * 12,
    )  # fmt: skip
    save_model(trained, str(folder / "model"))
    (folder / "mill").mkdir()
    generator = np.random.default_rng(0)
    soundfile.write(folder / "mill" / "a.wav", generator.uniform(-1, 1, 80 * RATE_HZ), RATE_HZ)
    reference = [Annotation("a.wav", k + 1, "x", 10.0 * k, 10.0 * k + 10.0, ((2.0, 4.0),)) for k in range(8)]
    write_annotations(reference, str(folder / "annotations.csv"))
    changes = [*SETTINGS, f"annotations={folder / 'annotations.csv'}"]
    with without_ray():
        audit = load_audit_run(
            None, model=str(folder / "model"), recordings=[str(folder / "mill")], out=str(folder / "out"),
            overrides=changes,
        )  # fmt: skip
        run_audit(audit)
        yield audit


@pytest.fixture
def copy(run: AuditRun, tmp_path: Path) -> AuditRun:
    """The same audit in a folder that a test may damage."""
    shutil.copytree(run.out, tmp_path / "out")
    return run.model_copy(update={"out": str(tmp_path / "out")})


def shard(audit: AuditRun, table: str, number: int = 3) -> Path:
    return Path(audit.out) / table / f"part-{number:05d}.parquet"


def test_the_audit_has_every_kind_of_table(run: AuditRun) -> None:
    for table in SHARDED:
        assert len(list((Path(run.out) / table).glob("*.parquet"))) == 8, table
    assert len(faithad.events(run.out)) == 1


@kinds
@pytest.mark.parametrize("table", [table for table in SHARDED if table not in ("ledger", "explained")])
def test_no_reader_takes_a_damaged_shard_for_the_table(copy: AuditRun, table: str, kind: str) -> None:
    file = shard(copy, table)
    KINDS[kind](file)
    named = re.escape(f"{file} is damaged: ") + "[^.]*"
    with pytest.raises(DamagedError, match=named):
        faithad.read_table(copy.out, table)
    if table not in ("localization", "controls", "lines"):
        with pytest.raises(DamagedError, match=named):
            render_audit_report(copy.out)
    if table in ("scores", "attributions", "faithfulness", "lines"):
        with pytest.raises(DamagedError, match=named):
            evaluate_audit(copy.out, str(copy.annotations))


@kinds
@pytest.mark.parametrize("table", ["ledger", "explained"])
def test_no_reader_takes_a_shard_without_a_whole_ledger(copy: AuditRun, table: str, kind: str) -> None:
    KINDS[kind](shard(copy, table))
    if kind == "flipped":  # its rows are damaged, but not its list of files, which is right
        faithad.read_table(copy.out, "scores")
        return
    with pytest.raises(DamagedError, match=r"part-00003\.parquet is damaged"):
        faithad.read_table(copy.out, "scores" if table == "ledger" else "attributions")


@pytest.mark.parametrize("kind", ["empty", "half", "flipped"])
@pytest.mark.parametrize("table", ["manifest", "events", "ledger"])
def test_no_reader_takes_a_damaged_table(copy: AuditRun, tmp_path: Path, table: str, kind: str) -> None:
    file = Path(copy.out) / f"{table}.parquet"
    KINDS[kind](file)
    named = re.escape(f"{file} is damaged: it is no whole Parquet file (")
    with pytest.raises(DamagedError, match=named):
        faithad.read_table(copy.out, table)
    with pytest.raises(DamagedError, match=named):
        render_audit_report(copy.out)
    if (table, kind) != ("events", "flipped"):  # in a column that it does not read
        with pytest.raises(DamagedError, match=named):
            evaluate_audit(copy.out, str(copy.annotations))
    if table != "ledger":
        with pytest.raises(DamagedError, match=named):
            export_events(copy.out, str(tmp_path / "labels"), format="label-studio")


def test_a_pruned_audit_is_whole_but_for_its_maps(copy: AuditRun) -> None:
    agreement = evaluate_audit(copy.out, str(copy.annotations))
    before = {path: path.read_bytes() for path in Path(copy.out).rglob("*") if path.is_file()}
    told = prune(copy.out, dry_run=True)
    assert told.startswith(f"{copy.out} holds ")
    assert re.search(r"whole maps +[0-9.]+ kB   made again by an audit into another folder", told)
    assert "Nothing was removed" in told
    assert {path: path.read_bytes() for path in Path(copy.out).rglob("*") if path.is_file()} == before
    maps = faithad.read_table(copy.out, "attributions")
    assert maps["map"].notna().all()
    told = prune(copy.out, dry_run=False)
    assert told.endswith("were removed.")
    assert sum(path.stat().st_size for path in Path(copy.out).rglob("*") if path.is_file()) < sum(
        map(len, before.values())
    )
    # Readers have all the rest, and say what is gone.
    pruned_maps = faithad.read_table(copy.out, "attributions")
    assert pruned_maps["map"].isna().all()
    for name in ("clip_id", "curve", "degenerate"):
        assert pruned_maps[name].map(repr).tolist() == maps[name].map(repr).tolist()
    with pytest.raises(StudyError, match="`faithad prune` removed the table 'spectrograms' from"):
        faithad.read_table(copy.out, "spectrograms")
    assert evaluate_audit(copy.out, str(copy.annotations)) == agreement
    page = storage.read_text(render_audit_report(copy.out))
    assert "`faithad prune` removed the whole maps, spectrograms: events have no maps." in page
    # The same command finds a finished audit, and nothing is left to prune.
    times = {path: path.stat().st_mtime_ns for path in Path(copy.out).rglob("part-*.parquet")}
    assert run_audit(copy).line.startswith("8 of 8 clips audited. 1 event: ")
    assert {path: path.stat().st_mtime_ns for path in Path(copy.out).rglob("part-*.parquet")} == times
    told = prune(copy.out, dry_run=False)
    assert told.endswith("removed before: whole maps, spectrograms\nThere is nothing that can be made again.")


def test_a_prune_that_was_killed_goes_on(copy: AuditRun, monkeypatch: pytest.MonkeyPatch) -> None:
    written = storage.write_bytes

    def killed(location: str, content: bytes, **options: bool) -> None:
        if location.endswith("attributions/part-00003.parquet"):
            raise KeyboardInterrupt
        written(location, content, **options)

    monkeypatch.setattr(storage, "write_bytes", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(copy.out, dry_run=False)
    monkeypatch.undo()
    prune(copy.out, dry_run=False)
    assert faithad.read_table(copy.out, "attributions")["map"].isna().all()
    assert run_audit(copy).line.startswith("8 of 8 clips audited. 1 event: ")


def test_nothing_is_pruned_that_cannot_be_made_again(copy: AuditRun, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="There is no run of faithad in"):
        prune(str(tmp_path / "elsewhere"), dry_run=True)
    recording = Path(str(copy.recordings[0])) / "a.wav"
    recording.rename(recording.with_suffix(".away"))
    try:
        with pytest.raises(StudyError, match=r"1 recording of 1 of the run in .* nothing is removed: .*a\.wav"):
            prune(copy.out, dry_run=False)
    finally:
        recording.with_suffix(".away").rename(recording)
    (Path(copy.out) / "stages" / "explain.begun.json").write_text("{}")
    with pytest.raises(StudyError, match="is not finished: stage 'explain' has begun"):
        prune(copy.out, dry_run=False)
    assert faithad.read_table(copy.out, "attributions")["map"].notna().all()


@kinds
def test_the_same_command_makes_damaged_shards_again(
    run: AuditRun, copy: AuditRun, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every table has lost another shard."""
    files = [shard(copy, table, number) for number, table in zip((*range(8), 0), SHARDED, strict=True)]
    before = {file: file.read_bytes() for file in sorted(Path(copy.out).rglob("part-*.parquet"))}
    for file in files:
        KINDS[kind](file)
    assert run_audit(copy).line.startswith("8 of 8 clips audited. 1 event: ")
    assert not differences(copy.out, run.out)
    assert {file: file.read_bytes() for file in before} == before
    said = capsys.readouterr().out
    ledgers = {"ledger", "explained"} if kind == "gone" else set[str]()  # then their shards are as if never made
    for file in files:
        assert (f"{file} is damaged: " in said) is (file.parent.name not in ledgers), said
    assert said.count("audited again") == len(files) - len(ledgers)


@kinds
def test_the_same_command_makes_damaged_tables_again(run: AuditRun, copy: AuditRun, kind: str) -> None:
    for name in WHOLE:
        KINDS[kind](Path(copy.out) / f"{name}.parquet")
    for name in ("report.html", "model.json"):
        KINDS[kind](Path(copy.out) / name)
    run_audit(copy)
    assert not differences(copy.out, run.out)
    for name in ("report.html", "model.json"):
        assert (Path(copy.out) / name).read_text() == (Path(run.out) / name).read_text().replace(run.out, copy.out)


@pytest.mark.parametrize("kind", ["empty", "half"])
def test_damaged_marks_count_as_none(run: AuditRun, copy: AuditRun, kind: str) -> None:
    for mark in ("stages/score.json", "stages/explain.json", "stages/events.json", "format.json"):
        KINDS[kind](Path(copy.out) / mark)
    before = shard(copy, "scores").stat().st_mtime_ns
    run_audit(copy)
    assert not differences(copy.out, run.out)
    assert shard(copy, "scores").stat().st_mtime_ns == before, "nothing is audited again"


@pytest.mark.parametrize("kind", ["empty", "half", "flipped"])
def test_a_half_done_audit_goes_on_over_all_that_a_power_cut_leaves(run: AuditRun, copy: AuditRun, kind: str) -> None:
    """Its score step is cut off after six shards: their files, and all marks, are damaged."""
    out = Path(copy.out)
    for name in ("events.parquet", "ledger.parquet", "report.html", "model.json", "stages/events.json"):
        (out / name).unlink()
    for table in ("explained", "attributions", "localization", "faithfulness", "spectrograms"):
        shutil.rmtree(out / table)
    (out / "stages" / "score.json").rename(out / "stages" / "score.begun.json")
    (out / "stages" / "explain.json").unlink()
    for number in (6, 7):
        shard(copy, "ledger", number).unlink()
    (out / "attempts").mkdir()
    mark = '{"at": "together", "pid": 1, "host": "a", "run": "b", "died": {}}'
    (out / "attempts" / "ledger-audit-00006.json").write_text(mark)
    (out / "attempts" / "ledger-read-00007.json").write_text(mark)
    damaged = [shard(copy, "scores", 0), shard(copy, "scores", 6), shard(copy, "ledger", 1), out / "manifest.parquet"]
    if kind != "flipped":  # which may change what a mark says
        damaged += [*(out / "attempts").iterdir(), *(out / "stages").iterdir(), out / "format.json"]
    for file in damaged:
        KINDS[kind](file)
    run_audit(copy)
    assert not differences(copy.out, run.out)
    assert not (out / "attempts").exists()


def test_shards_of_other_clips_are_made_again(
    run: AuditRun, copy: AuditRun, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(shard(copy, "ledger", 4), shard(copy, "ledger", 5))
    run_audit(copy)
    assert f"{shard(copy, 'ledger', 5)} lists other clips." in capsys.readouterr().out
    assert not differences(copy.out, run.out)


def test_a_whole_audit_is_left_alone(run: AuditRun, copy: AuditRun, capsys: pytest.CaptureFixture[str]) -> None:
    times = {file: file.stat().st_mtime_ns for file in Path(copy.out).rglob("*.parquet")}
    run_audit(copy)
    assert {file: file.stat().st_mtime_ns for file in Path(copy.out).rglob("*.parquet")} == times
    assert "damaged" not in capsys.readouterr().out


def test_a_process_compares_a_shard_once_until_it_changes(
    run: AuditRun, copy: AuditRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    read_checked = storage.read_checked

    def counted(location: str, checksum: storage.Checksum) -> bytes:
        compared.append(location)
        return read_checked(location, checksum)

    monkeypatch.setattr(storage, "read_checked", counted)
    files = [str(shard(copy, "faithfulness", number)) for number in range(8)]  # which nothing else reads
    for again in (files, []):
        compared.clear()
        run_audit(copy)
        assert [file for file in files if file in compared] == again
    flip(Path(files[3]))
    run_audit(copy)
    assert files[3] in compared
    assert not differences(copy.out, run.out)


def test_an_audit_goes_on_after_a_full_disk(run: AuditRun, tmp_path: Path) -> None:
    """The disk is full at its first write, and then a little later at each try."""
    with small_disk(tmp_path / "disk", 1 << 23) as disk:
        audit = run.model_copy(update={"out": str(disk.folder / "out")})
        full = {Path(place).parts[1] for place in places_where_full(disk, lambda: run_audit(audit), step_bytes=36_000)}
        assert {"stages", "report.html"} <= full
        assert full & {*(f"{table}.parquet" for table in WHOLE), "audit.yaml", "model.json"}
        assert full & set(SHARDED)
        assert not differences(audit.out, run.out)
        assert {file.name for file in disk.folder.rglob(".*")} == {".ballast"}, "no file that was cut off is left"

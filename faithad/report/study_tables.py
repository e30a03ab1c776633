"""The tables below a study's root that the report reads, as pandas frames; nothing is loaded that is not drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from faithad import listing, parquet, schemas, storage
from faithad.errors import StudyError
from faithad.report.health import read_health
from faithad.report.reading import (
    Example,
    examples,
    look_up,
    pictured_clips,
    read_settings,
    required,
    with_one_clock,
)
from faithad.runs import layout
from faithad.runs.formats import require_readable
from faithad.runs.tables import read_manifest, read_whole
from faithad.vocabulary import CORRECTED, PAPER

MAX_EXAMPLES = 4

_MANIFEST_COLUMNS = [name for name in schemas.MANIFEST.names if name != "uri"]
_SCORE_COLUMNS = ["clip_id", "model", "seed", "score", "worst_second_score", "paper_score", "threshold", "alarm"]


@dataclass(frozen=True)
class StudyTables:
    """A finished study. `scores` has the manifest's columns of each clip in addition to its own.

    Under several protocols, detection, F-scores and faithfulness are those of `paper`, whose figures were published;
    the verdicts, in `comparison` and `controls`, are those of `corrected`, as are `judged_f_score` and
    `judged_faithfulness`, and `paper_comparison` has the others.
    `normalized` has the rows of normalised faithfulness; `replacements`, `bands` and `sanity` are of the deep clips.
    They are empty where only the paper's protocol ran. `figure_controls` are of the protocol of the figures.
    `seconds` says how well curves rank the seconds of clips, `psds` how many labels detections find.
    `flat_curves` has one row per (model, method): how many of its `n_curves` were flagged `degenerate`. `sounds` has
    the rows of schemas.CLIP_SOUNDS by clip.
    """

    settings: dict[str, Any]
    settings_text: str
    manifest: pd.DataFrame
    ledger: pd.DataFrame
    health: pa.Table
    epochs: pd.DataFrame
    scores: pd.DataFrame
    detection: pd.DataFrame
    f_score: pd.DataFrame
    faithfulness: pd.DataFrame
    judged_f_score: pd.DataFrame
    judged_faithfulness: pd.DataFrame
    comparison: pd.DataFrame
    controls: pd.DataFrame
    figure_controls: pd.DataFrame
    paper_comparison: pd.DataFrame
    normalized: pd.DataFrame
    seconds: pd.DataFrame
    psds: pd.DataFrame
    replacements: pd.DataFrame
    bands: pd.DataFrame
    sanity: pd.DataFrame
    flat_curves: pd.DataFrame
    examples: list[Example]
    sounds: dict[str, dict[str, Any]]

    def setting(self, key: str) -> Any:
        """The value at a dotted key of the resolved configuration, or None."""
        return look_up(self.settings, key)


def read_study(root: str) -> StudyTables:
    """Read everything that the report shows.

    Args:
        root: the study's root, a local path or a URI.

    Raises:
        StudyError: a stage has not run yet (the message names it), `study.yaml` is no YAML mapping, or a newer faithad
            made the tables.
    """
    require_readable(root)
    problem = f"There is no study at {root}: no study.yaml. Check the root, or run `faithad index` first."
    text, settings = read_settings(required(root, layout.STUDY, StudyError(problem)))
    required(root, layout.MANIFEST, _not_run_yet(root, "index"))
    manifest = with_one_clock(read_manifest(root).select(_MANIFEST_COLUMNS).to_pandas())
    epochs = listing.list_files(storage.join(root, layout.MODELS), suffixes=["/epochs.parquet"])
    audits = _audits(root)
    if not audits:
        raise _not_run_yet(root, "audit" if epochs else "train")
    scores = _of_audits(audits, layout.SCORES, schemas.SCORES, _SCORE_COLUMNS)
    test, are_both = manifest[manifest["split"] == "test"], settings.get("protocol") == "both"
    protocol, judge = (PAPER, CORRECTED) if are_both else (settings.get("protocol"),) * 2
    compared = {
        name: _summary(root, "comparison", schemas.COMPARISON, name, needed=False) for name in {protocol, judge}
    }
    annotated = bool(test["annotated"].any())
    histories = [schemas.EPOCHS.empty_table(), *(parquet.read_table(location) for _, location in epochs)]
    return StudyTables(
        settings=settings,
        settings_text=text,
        manifest=manifest,
        ledger=_read(root, layout.summary("ledger"), stage="evaluate"),
        health=read_health(root),
        epochs=pa.concat_tables(histories, promote_options="default").to_pandas(),  # 0.1.0 has no gradient_norm
        scores=scores.merge(manifest, on="clip_id", how="left", validate="many_to_one"),
        detection=_summary(root, "detection", schemas.DETECTION_SUMMARY, protocol, needed=test["label"].nunique() == 2),
        f_score=_summary(root, "f_score", schemas.F_SCORE_SUMMARY, protocol, needed=annotated),
        faithfulness=_faithfulness(root, protocol),
        judged_f_score=_summary(root, "f_score", schemas.F_SCORE_SUMMARY, judge, needed=annotated),
        judged_faithfulness=_faithfulness(root, judge),
        comparison=compared[judge],
        controls=_summary(root, "controls", schemas.CONTROLS_SUMMARY, judge, needed=False),
        figure_controls=_summary(root, "controls", schemas.CONTROLS_SUMMARY, protocol, needed=False),
        paper_comparison=compared[protocol] if are_both else compared[judge][:0],
        normalized=_faithfulness(root, judge, "normalized_faithfulness"),
        seconds=_summary(root, "seconds", schemas.SECONDS_SUMMARY, protocol, needed=False),
        psds=_summary(root, "psds", schemas.PSDS_SUMMARY, protocol, needed=False),
        replacements=_summary(root, "replacements", schemas.REPLACEMENTS, judge, needed=False),
        bands=_summary(root, "bands", schemas.BANDS, judge, needed=False),
        sanity=_summary(root, "sanity", schemas.SANITY, judge, needed=False),
        flat_curves=_flat_curves(audits),
        examples=_examples(audits, manifest),
        sounds=_sounds(root),
    )


def example_clips(root: str) -> list[str]:
    """The clips that the page shows with their maps, at most MAX_EXAMPLES."""
    return _choose(read_manifest(root).to_pandas(), _pictured(_audits(root))[1])


def _sounds(root: str) -> dict[str, dict[str, Any]]:
    location = storage.join(root, layout.CLIP_SOUNDS)
    rows = parquet.read_table(location).to_pylist() if storage.exists(location) else []
    return {row["clip_id"]: row for row in rows}


def _not_run_yet(root: str, stage: str) -> StudyError:
    return StudyError(f"The stage `{stage}` has not finished for the study at {root}. Run `faithad {stage}` first.")


def _read(root: str, path: str, *, stage: str) -> pd.DataFrame:
    return parquet.read_table(required(root, path, _not_run_yet(root, stage))).to_pandas()


def _summary(root: str, name: str, schema: pa.Schema, protocol: Any, *, needed: bool) -> pd.DataFrame:
    """The rows of a protocol that have a value; none where the table is neither there nor needed."""
    if not needed and not storage.exists(storage.join(root, layout.summary(name))):
        return schema.empty_table().to_pandas()
    table = _read(root, layout.summary(name), stage="evaluate")
    if protocol in set(table["protocol"]):
        table = table[table["protocol"] == protocol]
    for column, of_older in {"score": "paper", "anomaly_type": "all"}.items():
        if column in schema.names and column not in table:
            table[column] = of_older
    value = "mean" if "mean" in table else "estimate"
    return table[table[value].notna()].reset_index(drop=True)


def _faithfulness(root: str, protocol: Any, metric: str = "faithfulness") -> pd.DataFrame:
    rows = _summary(root, "faithfulness", schemas.FAITHFULNESS_SUMMARY, protocol, needed=True)
    if "metric" not in rows:  # older releases had one
        rows["metric"] = "faithfulness"
    return rows[rows["metric"] == metric].reset_index(drop=True)


def _audits(root: str) -> dict[tuple[str, int], str]:
    """The folder of every audit that has scores, by (model, seed), in order."""
    folder = storage.join(root, layout.AUDITS)
    paths = [path.split("/") for path, _ in listing.list_files(folder, suffixes=[".parquet"])]
    runs = {parts[0].rpartition("-")[::2] for parts in paths if parts[1:2] == [layout.SCORES]}
    known = sorted((model, int(seed)) for model, seed in runs if seed.isdecimal())
    return {run: storage.join(root, layout.audit(*run)) for run in known}


def _of_audits(audits: dict[tuple[str, int], str], table: str, schema: pa.Schema, columns: list[str]) -> pd.DataFrame:
    parts = [read_whole(folder, table, schema, columns=columns) for folder in audits.values()]
    return pa.concat_tables(parts).to_pandas()


def _flat_curves(audits: dict[tuple[str, int], str]) -> pd.DataFrame:
    flags = _of_audits(audits, "attributions", schemas.attributions(1, 1), ["model", "method", "degenerate"])
    counts = flags.groupby(["model", "method"])["degenerate"].agg(["sum", "size"]).reset_index()
    return counts.rename(columns={"sum": "n_flat", "size": "n_curves"})


def _examples(audits: dict[tuple[str, int], str], manifest: pd.DataFrame) -> list[Example]:
    """The example clips under the first seed of each model that kept their spectrograms, clip by clip."""
    pictured, kept = _pictured(audits)
    chosen = _choose(manifest, kept)
    shown = [example for folder in pictured.values() for example in examples(folder, chosen)]
    return sorted(shown, key=lambda example: (chosen.index(example.clip_id), example.model))


def _pictured(audits: dict[tuple[str, int], str]) -> tuple[dict[str, str], set[str]]:
    """The folder of the first seed of each model that kept spectrograms, and all clips that are in one of these."""
    pictured: dict[str, str] = {}
    kept: set[str] = set()
    for (model, _), folder in audits.items():
        if model not in pictured and (clips := pictured_clips(folder)):
            pictured[model] = folder
            kept |= clips
    return pictured, kept


def _choose(manifest: pd.DataFrame, available: set[str]) -> list[str]:
    """At most MAX_EXAMPLES clips: annotated ones first, every anomaly type once before any comes twice."""
    clips = manifest[manifest["clip_id"].isin(available)].sort_values(["recording", "onset_s", "clip_id"])
    turn = clips.groupby(["annotated", "anomaly_type"], dropna=False).cumcount()
    rank = clips.assign(turn=turn, normal=clips["label"].ne(1))
    best = rank.sort_values(["annotated", "normal", "turn"], ascending=[False, True, True], kind="stable")
    kept = best.head(MAX_EXAMPLES).sort_values(["recording", "onset_s", "clip_id"])
    return [str(clip_id) for clip_id in kept["clip_id"]]

"""More epochs for what was trained to its end: the training goes on from its last state, as if it had not ended.

So the last state stays, in `training/` of the study's root or in the trial's folder, where no epoch depends on how many
there are (`Train.ends_anywhere`).
"""

from __future__ import annotations

from dataclasses import replace

from faithad import listing, storage
from faithad.config.study import Study
from faithad.progress import console
from faithad.runs import layout
from faithad.runs.stages import ResumableStage, Settings

EPOCHS = "train.epochs"


def state_location(study: Study, model: str, seed: int, fingerprint: str) -> str:
    """Where the last state of a training with this fingerprint is."""
    return storage.join(study.root, layout.training(model, seed), fingerprint, layout.STATE)


def epochs_before(stage: ResumableStage) -> int | None:
    """How many epochs the results of a stage were to have, if it is now to have more and nothing else differs."""
    before = stage.settings_before()
    if before is None or EPOCHS not in before or stage.differing(before) != {EPOCHS}:
        return None
    epochs: int = before[EPOCHS]
    return epochs if epochs < stage.settings[EPOCHS] else None


def with_more_epochs(study: Study, stage: ResumableStage, model: str, seed: int) -> ResumableStage:
    """The stage of a training: where it had fewer epochs before, ready to go on from its last state, or with the reason
    why it cannot.
    """
    before = epochs_before(stage)
    if before is None:
        return stage
    if not study.train.ends_anywhere:
        return replace(stage, hint=why_it_ends(study, before))
    settings: Settings = {**stage.settings, EPOCHS: before}
    target = state_location(study, model, seed, stage.fingerprint)
    source = state_location(study, model, seed, replace(stage, settings=settings).fingerprint)
    if not storage.exists(target):
        if not storage.exists(source):
            hint = (
                f"It cannot go on from epoch {before}: its last state was removed, or a release before 0.2.0 made it.\n"
            )
            return replace(stage, hint=hint)
        storage.write_bytes(target, storage.read_bytes(source))
    console.print(
        f"train {model}-{seed}: goes on from its last state; {EPOCHS} {before} then, {stage.settings[EPOCHS]} now"
    )
    return replace(stage, may_differ=lambda key: key == EPOCHS)


def epochs_of(stage: ResumableStage, fingerprint: str) -> int | None:
    """With how many fewer epochs the stage of a training has this fingerprint; None if it never has."""
    for epochs in range(1, stage.settings.get(EPOCHS, 1)):
        if replace(stage, settings={**stage.settings, EPOCHS: epochs}).fingerprint == fingerprint:
            return epochs
    return None


def why_it_ends(study: Study, before: int) -> str:
    return (
        f"It cannot go on from epoch {before}: with train.schedule {study.train.schedule!r} the learning rate of each "
        "epoch depends on how many there are.\n"
    )


def remove_other_states(study: Study, model: str, seed: int, fingerprint: str) -> None:
    """Keep of a finished training's states the last one alone, or none if it can never go on."""
    folder = storage.join(study.root, layout.training(model, seed))
    if not study.train.ends_anywhere:
        storage.delete(folder)
        return
    for relative, _ in listing.list_files(folder, suffixes=[".pt"]):
        other = relative.split("/")[0]
        if other != fingerprint:
            storage.delete(storage.join(folder, other))

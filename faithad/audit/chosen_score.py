"""Which score an audit computes: the one that is stored with the model, or the paper's."""

from __future__ import annotations

from dataclasses import replace

from faithad.config.audit import AuditRun
from faithad.errors import ConfigError
from faithad.scoring.choices import PAPER, ROBUST, Score, chosen_score, score_name
from faithad.scoring.trained_ensemble import AnyModel, TrainedEnsemble


def with_score(run: AuditRun, trained: AnyModel) -> AnyModel:
    """The model with the score that the run's key `score` asks for.

    Raises:
        ConfigError: the model does not have it.
    """
    if run.score is None:
        return trained
    if isinstance(trained, TrainedEnsemble):
        if run.score == ROBUST:
            return trained
        raise ConfigError(
            f"The model in {run.model} is an ensemble, whose score is the sum of its members': leave score out."
        )
    wanted = chosen_score(run.score, trained.name)
    if wanted == PAPER:
        return replace(trained, score=None)
    stored = None if trained.score is None else Score(**trained.score.choices)
    if wanted != stored:
        raise ConfigError(
            f"The audit asks for the score {score_name(wanted, trained.name)!r}, and the model in {run.model} has "
            f"{score_name(stored, trained.name)!r}. What a score needs is fitted to normal clips: train the model with "
            "`score` set in its study, or leave the key out."
        )
    return trained

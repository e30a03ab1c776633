"""Ray Data under the pipelines: what a stage that fails says, and how many actors a cluster carries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from faithad.config import Study
from faithad.errors import CheckpointError, StudyError
from faithad.pipelines.audit import _n_actors
from faithad.pipelines.shards import consume, dataset

pytestmark = pytest.mark.usefixtures("local_ray")


def _fail(row: dict[str, Any]) -> dict[str, Any]:
    raise CheckpointError("the model is of another mill")


def _count(row: dict[str, Any]) -> dict[str, Any]:
    return {"n_done": row["n"], "n_failed": 0}


def test_what_goes_wrong_in_a_worker_is_the_reason_that_the_user_reads() -> None:
    with pytest.raises(StudyError) as caught:
        consume(dataset([{"n": 1}]).map(_fail), title="audit", n_clips=1)
    assert str(caught.value) == "The stage 'audit' stopped: CheckpointError: the model is of another mill"


def test_each_row_is_a_block_of_its_own() -> None:
    rows = dataset([{"n": number} for number in range(7)])
    assert rows.num_blocks() == 7
    consume(rows.map(_count), title="count", n_clips=21)


@pytest.mark.parametrize(("asked", "got"), [(None, 3), (1, 1), (50, 3)])
def test_actors_leave_room_for_a_reader(small_study: Callable[..., Study], asked: int | None, got: int) -> None:
    """Three cores carry three actors of 0.75 and readers; were more started, all would wait for ever."""
    assert _n_actors(small_study(audit={"actors": asked}).audit) == got


def test_a_gpu_that_is_not_there_is_refused(small_study: Callable[..., Study]) -> None:
    with pytest.raises(StudyError, match=r"asks for 0\.5 GPU, the cluster has 0.*audit\.gpus_per_actor"):
        _n_actors(small_study(audit={"gpus_per_actor": 0.5}).audit)

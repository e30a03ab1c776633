"""Ray Data under the pipelines: what a stage that fails says, and how many workers a cluster carries."""

from __future__ import annotations

from typing import Any

import pytest

from faithad.config_sections import Audit
from faithad.errors import CheckpointError, StudyError
from faithad.pipelines.audit_passes import count_actors, count_readers
from faithad.pipelines.shards import Tally, consume, dataset
from faithad.progress import Ticker

pytestmark = pytest.mark.usefixtures("local_ray")


def _fail(row: dict[str, Any]) -> dict[str, Any]:
    raise CheckpointError("the model is of another mill")


def _count(row: dict[str, Any]) -> dict[str, Any]:
    return {"n_done": row["n"], "n_failed": 1}


def tally() -> tuple[Tally, Ticker]:
    ticker = Ticker("count", 21, None)
    return Tally(ticker), ticker


def test_what_goes_wrong_in_a_worker_is_the_reason_that_the_user_reads() -> None:
    with pytest.raises(StudyError) as caught:
        consume(dataset([{"n": 1}]).map(_fail), title="audit", tally=tally()[0])
    assert str(caught.value) == "The stage 'audit' stopped: CheckpointError: the model is of another mill"


def test_each_row_is_a_block_of_its_own_and_is_counted() -> None:
    rows = dataset([{"n": number} for number in range(7)])
    assert rows.num_blocks() == 7
    counted, ticker = tally()
    consume(rows.map(_count), title="count", tally=counted)
    assert (ticker._done, ticker._note) == (28, "7 failed")


@pytest.mark.parametrize(("asked", "n_shards", "got"), [(None, 9, 3), (1, 9, 1), (50, 9, 3), (None, 2, 2)])
def test_actors_leave_room_for_readers(asked: int | None, n_shards: int, got: int) -> None:
    """Three cores carry three actors of 0.75 and readers; were more started, all would wait for ever."""
    assert count_actors(Audit(actors=asked), n_shards=n_shards) == got


@pytest.mark.parametrize(
    ("asked", "n_actors", "n_shards", "got"),
    [(None, 3, 9, 2), (None, 1, 9, 2), (3, 3, 9, 3), (50, 3, 9, 3), (5, 1, 2, 2)],
)
def test_readers_share_what_actors_leave(asked: int | None, n_actors: int, n_shards: int, got: int) -> None:
    assert count_readers(Audit(readers=asked), n_actors=n_actors, n_shards=n_shards) == got


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(StudyError, match=r"asks for 0\.5 GPU, the cluster has 0.*audit\.gpus_per_actor"):
        count_actors(Audit(gpus_per_actor=0.5), n_shards=1)

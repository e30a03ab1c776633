"""Ray Data under the pipelines: what a stage that fails says, and how many workers a cluster carries."""

from __future__ import annotations

import time
from typing import Any

import pytest

from faithad.config.sections import Audit
from faithad.errors import CheckpointError, StorageError, StudyError
from faithad.pipelines.audit.passes import Spread, spread, wait_for_room
from faithad.pipelines.shards import stream
from faithad.pipelines.shards.stream import Tally, consume, dataset
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


def _fail_in_a_library(row: dict[str, Any]) -> dict[str, Any]:
    try:
        raise OSError("When getting information for key 'x': error 503")
    except OSError as error:
        raise StorageError("The store does not answer") from error


def test_our_own_error_says_more_than_the_one_that_it_was_made_of() -> None:
    with pytest.raises(StudyError, match="stopped: StorageError: The store does not answer"):
        consume(dataset([{"n": 1}]).map(_fail_in_a_library), title="audit", tally=tally()[0])


def _hang(row: dict[str, Any]) -> dict[str, Any]:
    time.sleep(15)
    return row


def test_a_stage_in_which_nothing_is_finished_ends_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "_PATIENCE_S", 1)
    with pytest.raises(
        StudyError, match=r"no clips were finished for 1 s\..*Run the same command again: it goes on"
    ) as caught:
        consume(dataset([{"n": 1}]).map(_hang), title="audit", tally=tally()[0])
    assert "DataContext" not in str(caught.value)


def test_each_row_is_a_block_of_its_own_and_is_counted() -> None:
    rows = dataset([{"n": number} for number in range(7)])
    assert rows.num_blocks() == 7
    counted, ticker = tally()
    consume(rows.map(_count), title="count", tally=counted)
    assert (ticker._done, ticker._note) == (28, "7 failed")


@pytest.mark.parametrize(("asked", "n_shards", "got"), [(None, 9, 3), (1, 9, 1), (50, 9, 3), (None, 2, 2)])
def test_actors_leave_room_for_readers(asked: int | None, n_shards: int, got: int) -> None:
    """Three cores carry three actors of 0.75 and readers; were more started, all would wait for ever."""
    found = spread(Audit(actors=asked), cpus=3, gpus=0, n_shards=n_shards)
    assert (found.actors, found.most_actors, found.threads) == (got, got, 3 // got)


@pytest.mark.parametrize(
    ("asked", "actors", "n_shards", "got"),
    [(None, 3, 9, 2), (None, 1, 9, 2), (3, 3, 9, 3), (50, 3, 9, 3), (5, 1, 2, 2)],
)
def test_readers_share_what_actors_leave(asked: int | None, actors: int, n_shards: int, got: int) -> None:
    assert spread(Audit(readers=asked, actors=actors), cpus=3, gpus=0, n_shards=n_shards).readers == got


@pytest.mark.parametrize(("asked", "most"), [(None, 40), (5, 5)])
def test_where_machines_may_join_the_shards_or_the_settings_are_the_limit(asked: int | None, most: int) -> None:
    found = spread(Audit(actors=asked), cpus=3, gpus=0, n_shards=40, grows=True)
    assert found == Spread(actors=3, most_actors=most, readers=None, threads=1)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(StudyError, match=r"asks for 0\.5 GPU, the cluster has 0.*audit\.gpus_per_actor"):
        spread(Audit(gpus_per_actor=0.5), cpus=3, gpus=0, n_shards=1)
    with pytest.raises(StudyError, match=r"asks for 1 CPU and 0\.5 GPU, .* have: 2 CPU, 0 GPU.*audit\.gpus_per_actor"):
        wait_for_room(Audit(gpus_per_actor=0.5))

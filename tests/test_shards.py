"""Shards of a grid: each picture falls to one of them, and they leave what one run leaves."""

from __future__ import annotations

import multiprocessing
import shutil
from pathlib import Path

import pytest
from grids import draw, pictures, tables, tiny_files, tiny_grid

from lcm_arith.errors import UsageError
from lcm_arith.evaluation.drawing.engine import units
from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.shards import WHOLE, Shard, parse_shard
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.running import Drawn


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def grid(files: Path) -> Grid:
    return tiny_grid(files)


@pytest.fixture(scope="module")
def whole(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(grid, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def table(grid: Grid, whole: Drawn) -> tuple[bytes, bytes]:
    return tables(grid, whole)


@pytest.mark.parametrize("count", [1, 2, 3, 50])
def test_every_unit_falls_whole_to_one_shard(grid: Grid, whole: Drawn, count: int) -> None:
    keys = whole.store.keys
    parts = [units(Shard(number + 1, count).rows(grid.rows, keys)) for number in range(count)]
    assert sorted(sum(parts, ()), key=repr) == sorted(units(grid.rows), key=repr)


def test_a_shard_does_not_depend_on_where_the_files_lie(
    grid: Grid, files: Path, tmp_path: Path
) -> None:
    shutil.copytree(files, tmp_path / "elsewhere")
    elsewhere = tiny_grid(tmp_path / "elsewhere")
    for number in (1, 2, 3):
        here, there = (
            Shard(number, 3).rows(each.rows, keys_of(Sources())) for each in (grid, elsewhere)
        )
        assert [(row.role, row.l1, row.steps, row.guidance) for row in here] == [
            (row.role, row.l1, row.steps, row.guidance) for row in there
        ]


def test_shards_in_any_order_in_folders_copied_together_leave_what_one_run_leaves(
    grid: Grid, whole: Drawn, table: tuple[bytes, bytes], tmp_path: Path
) -> None:
    drawn = [draw(grid, tmp_path / str(number), shard=Shard(number, 3)) for number in (3, 1, 2)]
    assert sum(each.counters.pictures for each in drawn) == whole.counters.pictures
    for number in (2, 3, 1):
        if (tmp_path / str(number)).exists():  # a shard that nothing falls to leaves no folder
            shutil.copytree(tmp_path / str(number), tmp_path / "all", dirs_exist_ok=True)
    found = draw(grid, tmp_path / "all")
    assert found.counters.pictures == 0
    assert pictures(tmp_path / "all") == pictures(whole.store.folder)
    assert tables(grid, found) == table


def test_shards_that_write_one_folder_at_once_leave_what_one_run_leaves(
    grid: Grid, whole: Drawn, tmp_path: Path
) -> None:
    """The last is also drawn twice at once: the same chunks, committed over each other."""
    fork = multiprocessing.get_context("fork")
    running = [
        fork.Process(target=draw, args=(grid, tmp_path), kwargs={"shard": Shard(number, 2)})
        for number in (1, 2, 2)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0, 0, 0]
    assert draw(grid, tmp_path).counters.pictures == 0
    assert pictures(tmp_path) == pictures(whole.store.folder)


def test_a_shard_is_written_as_people_count() -> None:
    assert parse_shard("1/1") == WHOLE
    assert str(parse_shard("2/16")) == "2/16"
    for text in ("0/3", "4/3", "1/0", "1", "a/b", "-1/3", "1/3/3", " 1/3", "1.0/3", ""):
        with pytest.raises(UsageError, match="shard"):
            parse_shard(text)

"""A grid that is killed at any call that changes a file ends, run again, as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from grids import draw, pictures, tables, tiny_files, tiny_grid
from tracer import TracingRefusedError, traced


def test_a_grid_killed_at_its_calls_goes_on_to_the_bytes_of_a_whole_one(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # a process that was forked must not wait for threads of ours
    grid = tiny_grid(tiny_files(tmp_path / "files"), "1", seeds=1)
    whole = draw(grid, tmp_path / "whole")
    place = tmp_path / "killed"
    place.mkdir()
    try:
        for kill_at in (2, 6):  # while the first chunk is committed, and the next time later
            run = traced(lambda: draw(grid, place).counters.pictures, place, kill_at=kill_at)
            assert run.killed
    except TracingRefusedError as error:
        pytest.skip(str(error))
    found = draw(grid, place)
    assert 0 < found.counters.pictures <= whole.counters.pictures
    assert pictures(place) == pictures(whole.store.folder)
    assert tables(grid, found) == tables(grid, whole)

"""Progress on stderr: a bar for each stage on a terminal, one line for each otherwise."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def starting(quiet: bool = False) -> Iterator[None]:
    """Say so on a terminal while libraries are imported, which takes seconds where disks are slow.

    Args:
        quiet: show nothing.
    """
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(file=sys.stderr).status("starting"):
        yield


@contextmanager
def progress(quiet: bool, totals: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
    """Give a callback that takes a stage's name and how much of it is done.

    Args:
        quiet: show nothing.
        totals: how much there is to do in the stages where that is known.
    """
    if quiet:
        yield lambda stage, done: None
    elif sys.stderr.isatty():
        with _bars(totals) as show:
            yield show
    else:
        yield _lines()


def _lines() -> Callable[[str, int], None]:
    seen: set[str] = set()

    def show(stage: str, done: int) -> None:
        if stage not in seen:
            seen.add(stage)
            print(f"{stage} ...", file=sys.stderr, flush=True)

    return show


@contextmanager
def _bars(totals: Mapping[str, int]) -> Iterator[Callable[[str, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    tasks: dict[str, TaskID] = {}
    name, count = TextColumn("{task.description:>16}"), TextColumn("{task.completed:>4.0f}")
    bars = Progress(name, BarColumn(), count, TimeElapsedColumn(), console=Console(file=sys.stderr))

    def finish() -> None:
        for task in tasks.values():
            bars.update(task, total=max(bars.tasks[task].completed, 1), completed=None)
            bars.stop_task(task)

    def show(stage: str, done: int) -> None:
        if stage not in tasks:
            finish()
            tasks[stage] = bars.add_task(stage, total=totals.get(stage))
        bars.update(tasks[stage], completed=done)

    with bars:
        yield show
        finish()

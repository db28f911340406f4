"""Children of a supervisor, with real processes: started again, watched, and never left behind."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from coordinator.wire.children import Backoff, Children, ChildSpec

QUICK = Backoff(first_seconds=0.05, longest_seconds=0.2, stable_seconds=60)
SLEEPER = "import time; time.sleep(600)"
# Starts a grandchild, writes both process ids, and ignores a polite request to end.
STUBBORN_FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(f"{os.getpid()} {grandchild.pid}")
time.sleep(600)
"""
SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from coordinator.wire.children import Children, ChildSpec
async def main():
    children = Children()
    folder = Path(sys.argv[1])
    children.start(ChildSpec(name="family", argv=(sys.executable, "-c", sys.argv[2], str(folder / "pids")),
                             environment={}, log=folder / "log"))
    await asyncio.sleep(600)
asyncio.run(main())
"""


def spec(folder: Path, code: str, *arguments: str, **options: object) -> ChildSpec:
    return ChildSpec(
        name="child",
        argv=(sys.executable, "-c", code, *arguments),
        environment={"GREETING": "hello"},
        log=folder / "child.log",
        **options,  # type: ignore[arg-type]
    )


async def until(condition: Callable[[], bool], seconds: float = 8.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the awaited state did not come"
        await asyncio.sleep(0.02)


def supervised(scenario: Callable[[Children], Awaitable[None]]) -> None:
    async def main() -> None:
        children = Children(backoff=QUICK)
        try:
            await scenario(children)
        finally:
            await children.stop(grace_seconds=1)

    asyncio.run(main())


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "State:\tZ" not in status.read_text()


def read_pids(path: Path) -> list[int]:
    return [int(pid) for pid in path.read_text().split()] if path.exists() else []


def test_a_child_that_ends_is_started_again_and_its_output_is_kept(tmp_path: Path) -> None:
    async def scenario(children: Children) -> None:
        children.start(spec(tmp_path, "import os, sys; print(os.environ['GREETING']); sys.exit(3)"))
        await until(lambda: children.states()[0].starts >= 3)
        assert children.states()[0].last_exit == 3

    supervised(scenario)

    assert (tmp_path / "child.log").read_text().splitlines()[:2] == ["hello", "hello"]
    assert (tmp_path / "child.log").stat().st_mode & 0o777 == 0o600


def test_a_killed_child_is_reported_with_its_signal(tmp_path: Path) -> None:
    async def scenario(children: Children) -> None:
        children.start(spec(tmp_path, "import os; os.kill(os.getpid(), 9)"))
        await until(lambda: children.states()[0].last_exit is not None)
        assert children.states()[0].last_exit == 128 + signal.SIGKILL

    supervised(scenario)


def test_back_off_doubles_up_to_the_longest_and_resets_after_a_stable_period() -> None:
    backoff = Backoff()

    assert backoff.after(None, ran_seconds=0) == 1
    assert backoff.after(1, ran_seconds=0) == 2
    assert backoff.after(16, ran_seconds=0) == 30
    assert backoff.after(30, ran_seconds=59) == 30
    assert backoff.after(30, ran_seconds=60) == 1


def test_a_child_that_lives_but_does_not_work_is_restarted(tmp_path: Path) -> None:
    async def never_works() -> bool:
        return False

    async def scenario(children: Children) -> None:
        children.start(
            spec(tmp_path, SLEEPER, watch=never_works, watch_seconds=0.05, watch_failures=2)
        )
        await until(lambda: children.states()[0].starts >= 2)

    supervised(scenario)


def test_a_watch_that_hangs_counts_as_not_working(tmp_path: Path) -> None:
    async def hangs() -> bool:
        await asyncio.sleep(600)
        return True

    async def scenario(children: Children) -> None:
        children.start(spec(tmp_path, SLEEPER, watch=hangs, watch_seconds=0.05, watch_failures=2))
        await until(lambda: children.states()[0].starts >= 2)

    supervised(scenario)


def test_one_good_answer_between_bad_ones_prevents_a_restart(tmp_path: Path) -> None:
    answers: list[bool] = []

    async def works_every_other_time() -> bool:
        answers.append(len(answers) % 2 == 1)
        return answers[-1]

    async def scenario(children: Children) -> None:
        children.start(
            spec(
                tmp_path,
                SLEEPER,
                watch=works_every_other_time,
                watch_seconds=0.02,
                watch_failures=2,
            )
        )
        await until(lambda: len(answers) >= 10)
        assert children.states()[0].starts == 1

    supervised(scenario)


def test_stop_ends_a_child_that_ignores_sigterm_and_its_grandchild(tmp_path: Path) -> None:
    async def scenario(children: Children) -> None:
        children.start(spec(tmp_path, STUBBORN_FAMILY, str(tmp_path / "pids")))
        await until(lambda: len(read_pids(tmp_path / "pids")) == 2)

    supervised(scenario)

    # The group has been killed by now; a killed process takes the kernel a moment to end.
    asyncio.run(until(lambda: not any(is_running(pid) for pid in read_pids(tmp_path / "pids"))))


def test_stop_lets_a_child_clean_up_first(tmp_path: Path) -> None:
    polite = (
        "import signal, sys, time, pathlib\n"
        "def leave(*_):\n    pathlib.Path(sys.argv[1]).write_text('left'); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\nprint('ready', flush=True)\ntime.sleep(600)"
    )

    async def scenario(children: Children) -> None:
        children.start(spec(tmp_path, polite, str(tmp_path / "mark")))
        await until((tmp_path / "child.log").exists)
        await until(lambda: "ready" in (tmp_path / "child.log").read_text())

    supervised(scenario)

    assert (tmp_path / "mark").read_text() == "left"


def test_a_child_that_was_stopped_is_not_started_again(tmp_path: Path) -> None:
    async def scenario(children: Children) -> None:
        children.start(spec(tmp_path, SLEEPER))
        await until(lambda: children.states()[0].process_group is not None)
        state = children.states()[0]
        await children.stop(grace_seconds=1)
        await asyncio.sleep(0.3)
        assert state.starts == 1
        assert state.process_group is None
        assert children.states() == ()

    supervised(scenario)


def test_a_leftover_grandchild_dies_with_the_child_that_started_it(tmp_path: Path) -> None:
    async def scenario(children: Children) -> None:
        children.start(spec(tmp_path, STUBBORN_FAMILY, str(tmp_path / "pids")))
        await until(lambda: len(read_pids(tmp_path / "pids")) == 2)
        child, grandchild = read_pids(tmp_path / "pids")
        os.kill(child, signal.SIGKILL)
        await until(lambda: not is_running(grandchild))

    supervised(scenario)


def test_nothing_survives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    supervisor = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(tmp_path), STUBBORN_FAMILY],
        cwd=Path(__file__).parents[2],
    )
    asyncio.run(until(lambda: len(read_pids(tmp_path / "pids")) == 2))

    supervisor.kill()
    supervisor.wait()

    family = read_pids(tmp_path / "pids")
    asyncio.run(until(lambda: not any(is_running(pid) for pid in family)))


def test_two_children_of_one_name_are_refused(tmp_path: Path) -> None:
    async def scenario(children: Children) -> None:
        children.start(spec(tmp_path, SLEEPER))
        with pytest.raises(ValueError, match="already supervised"):
            children.start(spec(tmp_path, SLEEPER))

    supervised(scenario)

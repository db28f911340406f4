"""The peak memory of a process and of all that it starts, as the kernel counts it (VmHWM, proc(5)).

The high-water mark never falls, so reading it now and then loses nothing but what a process added in its last moments.
"""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

POLL_SECONDS = 0.2
BYTES_PER_KIB = 1024


class PeakWatch:
    """Watches a process tree in a thread, between entering and leaving the context."""

    def __init__(self, root: int) -> None:
        """Takes the process id of the tree's root."""
        self._root = root
        self._peaks: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def peaks(self) -> dict[str, int]:
        """Program -> peak bytes of the largest process that ran it."""
        return dict(self._peaks)

    def _watch(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            for process in process_tree(self._root):
                program, peak = _read_peak(process)
                self._peaks[program] = max(peak, self._peaks.get(program, 0))


def peak_bytes() -> int:
    """This process's own peak so far.

    Not getrusage: its peak is inherited from the process that started this one.
    """
    return _peak_of(Path("/proc/self/status").read_text(encoding="utf-8"))


def process_tree(root: int) -> list[int]:
    """The process and its descendants that are alive now."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            children.setdefault(_parent(folder), []).append(int(folder.name))
    found, frontier = [], [root]
    while frontier:
        found.append(frontier.pop())
        frontier.extend(children.get(found[-1], ()))
    return found


def _parent(folder: Path) -> int:
    try:
        # After the program's name, which ends at the last bracket: state, parent (proc(5)).
        return int((folder / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _read_peak(process: int) -> tuple[str, int]:
    """What it runs and its peak bytes so far; 0 if it has ended.

    Of the arguments only the script's name is read: Flower puts secrets into the others.
    """
    folder = Path("/proc") / str(process)
    try:
        arguments = (folder / "cmdline").read_bytes().split(b"\0")
        status = (folder / "status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    names = [Path(argument.decode(errors="replace")).name for argument in arguments[:2]]
    program = names[1] if names[0].startswith("python") and len(names) > 1 else names[0]
    return program, _peak_of(status)


def _peak_of(status: str) -> int:
    """Bytes, from /proc/PID/status; a process that has ended has no such line."""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * BYTES_PER_KIB
    return 0

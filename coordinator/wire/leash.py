"""Holds one child process on a leash: when the supervisor is gone, so are the child and everything it started.

Run as a script by `coordinator.wire.children`, never imported by it:

1. The supervisor starts this script as leader of a new process group and keeps the other end of its standard input.
2. The script starts the command in the same group and waits for it; its exit status becomes the script's own.
3. End of input means that the supervisor has died, by SIGKILL perhaps. The whole group is killed at once.

A group reaches grandchildren, which `PR_SET_PDEATHSIG` does not, and a closed pipe works on every Unix.
"""

import os
import signal
import subprocess
import sys
import threading


def hold(argv: list[str]) -> int:
    """Exit status of the command; a death by signal N is reported as 128 + N, as a shell would."""
    # A handler, not SIG_IGN: the child starts with the default again and the group's SIGTERM ends it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    threading.Thread(target=_kill_group_at_end_of_input, daemon=True).start()
    status = child.wait()
    return status if status >= 0 else 128 - status


def _kill_group_at_end_of_input() -> None:
    while os.read(0, 64):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    # os._exit: the reading thread may sit in `read`, and nothing here is left to flush.
    os._exit(hold(sys.argv[1:]))

"""A site's app that takes part as the installed one does, and notes every leg of a secure sum as the site enters it.

A test leaves an order in the site's home, a file `test-orders/LEG` that holds a word, and the first round it is for:

die     on entering that leg, once: SIGKILL for the site's supervisor and for this process
hold    wait in that leg until the file is gone or holds another order

Entering a leg means that everything of the legs before it has been sent. "done" is entered after the last leg.
"""

import json
import os
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from coordinator.wire.channel import Channel, Frame
from coordinator.wire.plan import RoundPlan
from coordinator.wire.records import RoundTask, decode_task, encode_outcome
from participant.client_app import HOME_KEY
from participant.health import read_status
from participant.participation import DONE, Participation
from privacy.secagg.protocol import SitePart

NOTES = "test-legs.jsonl"
ORDERS = "test-orders"
HOLD_POLL_SECONDS = 0.05

app = ClientApp()
_sites: dict[Path, "WatchedParticipation"] = {}


@app.train()
def train(message: Message, context: Context) -> Message:
    home = Path(str(context.node_config[HOME_KEY]))
    if home not in _sites:
        _sites[home] = WatchedParticipation(home)
    return Message(
        encode_outcome(_sites[home].take_part(decode_task(message.content))), reply_to=message
    )


class Watch:
    """Notes the legs of one attempt and obeys what was ordered for them."""

    def __init__(self, home: Path, plan: RoundPlan) -> None:
        self._home = home
        self._where: dict[str, Any] = {
            "run": plan.run_id,
            "round": plan.round,
            "attempt": plan.attempt,
        }

    def enter(self, leg: str) -> None:
        order = self._home / ORDERS / leg
        text = order.read_text() if order.exists() else ""
        word, _, first_round = text.partition(" ")
        if self._where["round"] < int(first_round or 0):
            word = ""
        with (self._home / NOTES).open("a") as notes:
            notes.write(json.dumps({**self._where, "leg": leg, "order": word}) + "\n")
        if word == "die":
            order.unlink()
            status = read_status(self._home / "run.json")
            assert status is not None
            os.kill(status.pid, signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
        while word == "hold" and order.exists() and order.read_text() == text:
            time.sleep(HOLD_POLL_SECONDS)


class WatchedPart:
    """The site's side of one sum, watched."""

    def __init__(self, part: SitePart, watch: Watch) -> None:
        self._part = part
        self._watch = watch
        self.has_released = False

    def hello(self) -> Iterator[bytes]:
        self._watch.enter("hello")
        return self._part.hello()

    def share(self, roster: Iterable[bytes], values: NDArray[np.floating]) -> Iterator[bytes]:
        return self._part.share(self._entered("share", roster), values)

    def seal(self, dealt: Iterable[bytes]) -> Iterator[bytes]:
        return self._part.seal(self._entered("seal", dealt))

    def confirm(self, survivors: Iterable[bytes]) -> Iterator[bytes]:
        return self._part.confirm(self._entered("confirm", survivors))

    def release(self, confirmations: Iterable[bytes]) -> Iterator[bytes]:
        released = self._part.release(self._entered("release", confirmations))
        self.has_released = True
        return released

    def _entered(self, leg: str, frames: Iterable[bytes]) -> Iterator[bytes]:
        """The frames; the leg is entered when the first has come."""
        for index, frame in enumerate(frames):
            if index == 0:
                self._watch.enter(leg)
            yield frame


class WatchedParticipation(Participation):
    """The site's part in attempts, watched."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._home = home

    def _secure_sum_part(self, plan: RoundPlan, task: RoundTask) -> SitePart:
        self._part = WatchedPart(super()._secure_sum_part(plan, task), Watch(self._home, plan))
        return self._part

    def _await(self, channel: Channel, plan: RoundPlan, kinds: tuple[str, ...]) -> Frame:
        if DONE in kinds and self._part.has_released:
            Watch(self._home, plan).enter("done")
        return super()._await(channel, plan, kinds)

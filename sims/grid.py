"""The Flower grid of a rehearsal: the real ServerApp and ClientApp in one process.

Messages are serialised to Flower's own protobuf bytes and back in both directions, as between real processes, and
every site works in its own thread, since a secure sum needs all of them at once. This is the only file of the
rehearsal that touches Flower's private API (`TaskIdentity`, message identifiers).
"""

import logging
import uuid
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from coordinator.wire.channel import COORDINATOR, Frame
from coordinator.wire.session import Observer

log = logging.getLogger(__name__)

MESSAGE_KIND = "flower"
RUN_ID = 1
SERVER_NODE_ID = 1


class InProcessGrid(Grid):
    """Hands messages to a ClientApp in this process, one thread per site."""

    def __init__(
        self,
        client_app: ClientApp,
        node_configs: Mapping[int, UserConfig],
        *,
        observer: Observer | None = None,
    ) -> None:
        """Prepares one node for each entry.

        Args:
            client_app: the participants' app.
            node_configs: node id -> what that site's operator would have configured.
            observer: shown every message as it is on the wire, as a frame of kind "flower".
        """
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = RUN_ID, SERVER_NODE_ID, 1
        self._client_app = client_app
        self._observer = observer
        self._run = Run.create_empty(RUN_ID)
        self._contexts = {
            node_id: Context(
                run_id=RUN_ID,
                node_id=node_id,
                node_config=dict(config),
                state=RecordDict(),
                run_config={},
            )
            for node_id, config in node_configs.items()
        }
        self._pool = ThreadPoolExecutor(
            max_workers=max(1, len(node_configs)), thread_name_prefix="site"
        )
        self._replies: dict[str, Future[bytes]] = {}
        self.bytes_pushed = 0
        self.bytes_pulled = 0

    def close(self) -> None:
        """Waits for the sites to finish what they are doing."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def set_run(self, run: Run) -> None:
        """Sets the Flower run."""
        self._run = run

    @property
    def run(self) -> Run:
        """The Flower run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Every node; all are online."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Starts each message's work in its site's thread."""
        if iter(messages) is messages:
            raise TypeError("Flower's grid goes over its messages twice; pass a list.")
        identifiers = []
        for message in messages:
            identifier = uuid.uuid4().hex
            message.metadata.__dict__["_message_id"] = identifier
            payload = message_to_proto(message).SerializeToString()
            self.bytes_pushed += len(payload)
            self._show(str(message.metadata.dst_node_id), COORDINATOR, payload)
            self._replies[identifier] = self._pool.submit(
                self._work, message.metadata.dst_node_id, payload
            )
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies that are there by now, each once."""
        ready = [i for i in message_ids if i in self._replies and self._replies[i].done()]
        payloads = [self._replies.pop(i).result() for i in ready]
        self.bytes_pulled += sum(map(len, payloads))
        return [message_from_proto(ProtoMessage.FromString(payload)) for payload in payloads]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Pushes and waits for all replies, or for `timeout` seconds."""
        identifiers = list(self.push_messages(messages))
        wait([self._replies[i] for i in identifiers], timeout=timeout)
        return self.pull_messages(identifiers)

    def _work(self, node_id: int, payload: bytes) -> bytes:
        message = message_from_proto(ProtoMessage.FromString(payload))
        try:
            reply = self._client_app(message=message, context=self._contexts[node_id])
        except Exception as error:  # a site's failure is that site's reply, as in its executor
            log.exception("site of node %s failed", node_id)
            reason = f"{type(error).__name__}: see the site's log"
            reply = Message(
                Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
            )
        answer = bytes(message_to_proto(reply).SerializeToString())
        self._show(COORDINATOR, str(node_id), answer)
        return answer

    def _show(self, receiver: str, sender: str, payload: bytes) -> None:
        if self._observer is not None:
            self._observer(receiver, Frame(sender=sender, kind=MESSAGE_KIND, payload=payload))

"""The executor against Flower's own Runtime API: the contract that a new release of Flower may break."""

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import uvicorn
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode, Status, SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import InMemoryNodeState, NodeState, NodeStateFactory
from flwr.supernode.start_client_internal import _insert_message

from participant.errors import ConfigError
from participant.executor import Executor, load_app
from participant.health import PulseFile, read_pulse

RUN_ID, NODE_ID = 7, 9
BUNDLE = b"a bundle that nobody unpacks"
BUNDLE_HASH = hashlib.sha256(BUNDLE).hexdigest()
SECRET = b"shared secret"


@dataclass
class SuperNode:
    """Flower's Runtime API as a SuperNode serves it, with its state at hand."""

    state: NodeState
    address: str

    def hand_out(self, text: str = "records", *, fab_hash: str = BUNDLE_HASH) -> int:
        """Puts a message and its task where a SuperNode puts what it pulled."""
        run = Run.create_empty(RUN_ID)
        run.fab_hash = fab_hash
        self.state.store_run(run)
        assert isinstance(self.state, InMemoryNodeState)
        self.state.fab_store[fab_hash] = Fab(fab_hash, BUNDLE, {})
        context = Context(
            run_id=RUN_ID,
            node_id=NODE_ID,
            node_config={"site-home": "/site"},
            state=RecordDict(),
            run_config={},
        )
        self.state.set_run_series_context(run.series_id, context)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, NODE_ID
        content = RecordDict({"in": ConfigRecord({"text": text})})
        message = Message(content, dst_node_id=NODE_ID, message_type="train")
        task_id = self.state.create_task(TaskType.CLIENT_APP, RUN_ID, fab_hash=fab_hash)
        assert task_id is not None
        _insert_message(message, self.state, self.state.object_store)
        return task_id

    def reply(self) -> Message:
        (message,) = self.state.get_messages_legacy(is_reply=True)
        return message

    def sub_status(self, task_id: int) -> str:
        (task,) = self.state.get_tasks(task_ids=[task_id])
        assert task.status.status == Status.FINISHED
        return str(task.status.sub_status)


class QuietServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
def supernode() -> Iterator[SuperNode]:
    factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
    state = factory.state()
    state.set_node_id(NODE_ID)
    app = create_app(state_factory=factory, superexec_auth_secret=SECRET)
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none")
    server = QuietServer(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield SuperNode(state, f"127.0.0.1:{port}")
    server.should_exit = True
    thread.join()


@dataclass
class Calls:
    """A ClientApp that remembers what it was called with."""

    contents: list[RecordDict] = field(default_factory=list)
    contexts: list[Context] = field(default_factory=list)
    failure: Exception | None = None

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            self.contents.append(message.content)
            self.contexts.append(context)
            if self.failure is not None:
                raise self.failure
            content = RecordDict({"out": ConfigRecord({"text": "done"})})
            return Message(content, reply_to=message)

        return app


@contextlib.contextmanager
def executor(
    supernode: SuperNode,
    app: ClientApp,
    folder: Path,
    allowed_bundles: Callable[[], frozenset[str]] = lambda: frozenset({BUNDLE_HASH}),
    secret: bytes = SECRET,
) -> Iterator[Executor]:
    made = Executor(
        app=app,
        runtime_address=supernode.address,
        secret=secret,
        allowed_bundles=allowed_bundles,
        pulse=PulseFile(folder / "pulse.json"),
    )
    with contextlib.closing(made):
        yield made


def serve_one(
    supernode: SuperNode,
    app: ClientApp,
    folder: Path,
    allowed_bundles: Callable[[], frozenset[str]] = lambda: frozenset({BUNDLE_HASH}),
    secret: bytes = SECRET,
) -> bool:
    with executor(supernode, app, folder, allowed_bundles, secret) as made:
        return made.serve_one()


def test_a_task_reaches_the_installed_app_and_its_reply_the_supernode(
    supernode: SuperNode, tmp_path: Path
) -> None:
    calls = Calls()
    task_id = supernode.hand_out("hello")

    assert serve_one(supernode, calls.app(), tmp_path)

    reply = supernode.reply()
    assert not reply.has_error()
    assert calls.contents[0].config_records["in"]["text"] == "hello"
    assert calls.contexts[0].node_config["site-home"] == "/site"
    assert supernode.sub_status(task_id) == SubStatus.COMPLETED


def test_without_a_task_nothing_happens(supernode: SuperNode, tmp_path: Path) -> None:
    assert not serve_one(supernode, Calls().app(), tmp_path)
    assert read_pulse(tmp_path / "pulse.json").state == "idle"


def test_the_same_process_serves_one_task_after_the_other(
    supernode: SuperNode, tmp_path: Path
) -> None:
    calls = Calls()

    with executor(supernode, calls.app(), tmp_path) as warm:
        for text in ("one", "two", "three"):
            supernode.hand_out(text)
            warm.serve_one()
            supernode.reply()

    assert [str(content.config_records["in"]["text"]) for content in calls.contents] == [
        "one",
        "two",
        "three",
    ]


def test_an_unlisted_bundle_is_refused_and_the_app_is_not_called(
    supernode: SuperNode, tmp_path: Path
) -> None:
    calls = Calls()
    task_id = supernode.hand_out()

    serve_one(supernode, calls.app(), tmp_path, allowed_bundles=frozenset)

    reply = supernode.reply()
    assert calls.contents == []
    assert reply.error.code == ErrorCode.INVALID_FAB
    assert 'not listed in clause "bundles"' in str(reply.error.reason)
    assert supernode.sub_status(task_id) == SubStatus.FAILED


def test_a_bundle_under_a_hash_that_is_not_its_own_is_refused(
    supernode: SuperNode, tmp_path: Path
) -> None:
    calls = Calls()
    listed = "0" * 64
    supernode.hand_out(fab_hash=listed)

    serve_one(supernode, calls.app(), tmp_path, allowed_bundles=lambda: frozenset({listed}))

    assert supernode.reply().error.code == ErrorCode.INVALID_FAB
    assert calls.contents == []


def test_an_unreadable_policy_refuses_every_bundle(supernode: SuperNode, tmp_path: Path) -> None:
    calls = Calls()
    supernode.hand_out()

    def fail() -> frozenset[str]:
        raise ConfigError(path=tmp_path / "policy.toml", problem="is not TOML")

    serve_one(supernode, calls.app(), tmp_path, allowed_bundles=fail)

    reply = supernode.reply()
    assert reply.error.code == ErrorCode.INVALID_FAB
    assert str(tmp_path) not in str(reply.error.reason)
    assert calls.contents == []


def test_what_an_exception_says_stays_in_the_local_log(
    supernode: SuperNode, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls(failure=ValueError("patient 4711 has cholesterol 603"))
    task_id = supernode.hand_out()

    with caplog.at_level(logging.ERROR):
        serve_one(supernode, calls.app(), tmp_path)

    reply = supernode.reply()
    assert reply.error.code == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert reply.error.reason == "ValueError at the site; its log says more."
    assert "4711" in caplog.text
    (task,) = supernode.state.get_tasks(task_ids=[task_id])
    assert "4711" not in task.status.details


def test_a_task_after_a_failed_one_is_served(supernode: SuperNode, tmp_path: Path) -> None:
    calls = Calls(failure=ValueError("no"))
    with executor(supernode, calls.app(), tmp_path) as warm:
        supernode.hand_out("one")
        warm.serve_one()
        supernode.reply()
        calls.failure = None
        supernode.hand_out("two")

        warm.serve_one()

    assert not supernode.reply().has_error()


def test_a_wrong_secret_gets_no_task(supernode: SuperNode, tmp_path: Path) -> None:
    calls = Calls()
    supernode.hand_out()

    with pytest.raises(httpx.HTTPStatusError, match="401"):
        serve_one(supernode, calls.app(), tmp_path, secret=b"guess")

    assert calls.contents == []


def test_a_supernode_that_is_away_is_an_error_to_be_waited_out(tmp_path: Path) -> None:
    nobody = SuperNode(NodeStateFactory(ObjectStoreFactory()).state(), "127.0.0.1:1")

    with pytest.raises(httpx.ConnectError):
        serve_one(nobody, Calls().app(), tmp_path)


def test_the_pulse_says_busy_while_the_app_runs(supernode: SuperNode, tmp_path: Path) -> None:
    seen: list[str] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        seen.append(json.loads((tmp_path / "pulse.json").read_text())["state"])
        return Message(RecordDict(), reply_to=message)

    supernode.hand_out()

    serve_one(supernode, app, tmp_path)

    assert seen == ["busy"]
    assert read_pulse(tmp_path / "pulse.json").state == "idle"


def test_only_a_client_app_can_be_loaded() -> None:
    with pytest.raises(TypeError, match="to be a ClientApp, found NoneType"):
        load_app("participant.errors:app")

    assert isinstance(load_app("participant.client_app:app"), ClientApp)

import threading

import pytest
from flwr.app import ConfigRecord, Message, MessageType, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from coordinator.wire.channel import COORDINATOR
from sims.grid import MESSAGE_KIND, InProcessGrid

WAIT_SECONDS = 10


def echo_app():
    """Answers with what it was sent, the site's name, and its own thread."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        word = message.content.config_records["in"]["word"]
        if word == "fail":
            raise RuntimeError("patient 17 has cholesterol 603")
        answer = {"word": word, "site": context.node_config["site"]}
        return Message(RecordDict({"out": ConfigRecord(answer)}), reply_to=message)

    return app


def waiting_app(barrier):
    """Answers once as many sites are at work as the barrier demands."""
    app = ClientApp()

    @app.train()
    def train(message, context):
        barrier.wait(WAIT_SECONDS)
        return Message(RecordDict(), reply_to=message)

    return app


def order(node_id, word="hello"):
    content = RecordDict({"in": ConfigRecord({"word": word})})
    return Message(content, node_id, MessageType.TRAIN, group_id="1")


NODES: dict[int, UserConfig] = {2: {"site": "anna"}, 3: {"site": "berta"}}


@pytest.fixture
def grid():
    grid = InProcessGrid(echo_app(), NODES)
    yield grid
    grid.close()


def answers(replies):
    return sorted(reply.content.config_records["out"]["site"] for reply in replies)


def test_every_node_is_online(grid):
    assert list(grid.get_node_ids()) == [2, 3]


def test_every_message_is_answered_by_its_own_site(grid):
    replies = grid.send_and_receive([order(2), order(3)], timeout=WAIT_SECONDS)
    assert answers(replies) == ["anna", "berta"]


def test_sites_work_at_the_same_time():
    grid = InProcessGrid(waiting_app(threading.Barrier(2)), NODES)
    replies = list(grid.send_and_receive([order(2), order(3)], timeout=WAIT_SECONDS))
    grid.close()
    assert [reply.has_error() for reply in replies] == [False, False]


def test_a_reply_is_handed_over_once(grid):
    identifiers = list(grid.push_messages([order(2)]))
    grid.close()
    assert len(list(grid.pull_messages(identifiers))) == 1
    assert list(grid.pull_messages(identifiers)) == []
    assert list(grid.pull_messages(["unknown"])) == []


def test_a_failure_at_a_site_is_an_error_reply_that_says_nothing_of_its_records(grid):
    (reply,) = grid.send_and_receive([order(2, "fail")], timeout=WAIT_SECONDS)
    assert reply.has_error()
    assert "RuntimeError" in reply.error.reason
    assert "cholesterol" not in reply.error.reason


def test_messages_pass_as_bytes_and_are_counted(grid):
    message = order(2)
    (reply,) = grid.send_and_receive([message], timeout=WAIT_SECONDS)
    assert reply.content is not message.content
    assert grid.bytes_pushed > 0
    assert grid.bytes_pulled > 0


def test_an_observer_sees_both_directions_as_bytes():
    seen = []
    grid = InProcessGrid(
        echo_app(), NODES, observer=lambda receiver, frame: seen.append((receiver, frame))
    )
    list(grid.send_and_receive([order(3, "hearken")], timeout=WAIT_SECONDS))
    grid.close()
    (there, asked), (back, answered) = seen
    assert (there, asked.sender, asked.kind) == ("3", COORDINATOR, MESSAGE_KIND)
    assert (back, answered.sender, answered.kind) == (COORDINATOR, "3", MESSAGE_KIND)
    assert b"hearken" in asked.payload
    assert b"berta" in answered.payload


def test_the_node_and_group_of_a_message_are_kept(grid):
    made = grid.create_message(RecordDict(), MessageType.TRAIN, 2, "round-1", ttl=5.0)
    assert (made.metadata.dst_node_id, made.metadata.group_id) == (2, "round-1")

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.supercore.task_identity import TaskIdentity

from coordinator.wire.plan import SignedPlan
from coordinator.wire.records import (
    MAX_SITES,
    OUTCOME,
    TASK,
    RoundTask,
    decode_outcome,
    decode_task,
    encode_outcome,
    encode_task,
)

TICKET = b"secret-ticket-of-thirty-two-byte"
KEYS = {"anna": b"a" * 32, "berta": b"b" * 32}
GOOD = RoundTask(plan=SignedPlan(payload=b"{}", signature=b"s" * 64), ticket=TICKET, keys=KEYS)


@pytest.fixture(autouse=True, scope="module")
def _inside_a_flower_task():
    # Flower's messages name the task that made them; a ServerApp's process knows its own from the start.
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1


def over_the_wire(content):
    message = Message(content, 5, MessageType.TRAIN)
    message.metadata.__dict__["_message_id"] = "id"
    payload = message_to_proto(message).SerializeToString()
    return message_from_proto(ProtoMessage.FromString(payload)).content


def with_field(name, value):
    fields = dict(encode_task(GOOD).config_records[TASK])
    fields[name] = value
    return RecordDict({TASK: ConfigRecord(fields)})


def test_a_task_arrives_as_it_was_sent():
    assert decode_task(over_the_wire(encode_task(GOOD))) == GOOD


def test_a_ticket_does_not_show_in_text():
    assert "secret-ticket" not in repr(GOOD)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("plan", "{}"),
        ("plan", 7),
        ("plan", [b"{}"]),
        ("signature", 1.5),
        ("ticket", [1, 2]),
        ("sites", "anna"),
        ("sites", ["anna"]),
        ("sites", []),
        ("sites", [1, 2]),
        ("sites", ["anna", "anna"]),
        ("keys", [b"a" * 32, b"b" * 31]),
        ("keys", ["a" * 32, "b" * 32]),
        ("keys", b"a" * 64),
    ],
)
def test_a_task_with_a_field_of_another_form_is_refused(field, value):
    with pytest.raises(ValueError, match=r"task|Task"):
        decode_task(over_the_wire(with_field(field, value)))


@pytest.mark.parametrize("field", ["plan", "signature", "ticket", "sites", "keys"])
def test_a_task_without_a_field_is_refused(field):
    fields = dict(encode_task(GOOD).config_records[TASK])
    del fields[field]
    with pytest.raises(ValueError, match="task"):
        decode_task(RecordDict({TASK: ConfigRecord(fields)}))


def test_a_task_for_too_many_sites_is_refused():
    keys = {f"site-{number}": bytes(32) for number in range(MAX_SITES + 1)}
    crowded = RoundTask(plan=GOOD.plan, ticket=TICKET, keys=keys)
    with pytest.raises(ValueError, match=f"1 to {MAX_SITES} sites"):
        decode_task(encode_task(crowded))


def test_a_message_without_a_task_is_refused():
    for content in (
        RecordDict(),
        RecordDict({TASK: MetricRecord({"plan": 1})}),
        RecordDict({TASK: ArrayRecord()}),
    ):
        with pytest.raises(ValueError, match="holds no"):
            decode_task(content)


def test_an_outcome_arrives_as_it_was_sent():
    assert decode_outcome(over_the_wire(encode_outcome("counted"))) == "counted"


@pytest.mark.parametrize(
    "value", ["two words", "<script>", "", "a\nb", "7", 7, 1.5, ["counted"], b"counted"]
)
def test_anything_but_one_word_is_an_unreadable_outcome(value):
    assert decode_outcome(RecordDict({OUTCOME: ConfigRecord({"outcome": value})})) == "unreadable"


def test_a_missing_or_endless_outcome_does_no_harm():
    assert decode_outcome(RecordDict()) == "unreadable"
    assert len(decode_outcome(encode_outcome("x" * 10_000))) == 32

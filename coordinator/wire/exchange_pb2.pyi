from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Ticket(_message.Message):
    __slots__ = ("session_id", "endpoint", "ticket")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    endpoint: str
    ticket: bytes
    def __init__(self, session_id: _Optional[str] = ..., endpoint: _Optional[str] = ..., ticket: _Optional[bytes] = ...) -> None: ...

class ToRelay(_message.Message):
    __slots__ = ("attach", "send", "part", "consumed", "ping", "leave")
    ATTACH_FIELD_NUMBER: _ClassVar[int]
    SEND_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    CONSUMED_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    attach: Attach
    send: Send
    part: Part
    consumed: Consumed
    ping: Ping
    leave: Leave
    def __init__(self, attach: _Optional[_Union[Attach, _Mapping]] = ..., send: _Optional[_Union[Send, _Mapping]] = ..., part: _Optional[_Union[Part, _Mapping]] = ..., consumed: _Optional[_Union[Consumed, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class Attach(_message.Message):
    __slots__ = ("ticket", "incarnation", "received")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    incarnation: bytes
    received: int
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., incarnation: _Optional[bytes] = ..., received: _Optional[int] = ...) -> None: ...

class Send(_message.Message):
    __slots__ = ("number", "to", "kind", "payload", "missing")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    number: int
    to: str
    kind: str
    payload: bytes
    missing: int
    def __init__(self, number: _Optional[int] = ..., to: _Optional[str] = ..., kind: _Optional[str] = ..., payload: _Optional[bytes] = ..., missing: _Optional[int] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("payload",)
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    def __init__(self, payload: _Optional[bytes] = ...) -> None: ...

class Consumed(_message.Message):
    __slots__ = ("number",)
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    number: int
    def __init__(self, number: _Optional[int] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class FromRelay(_message.Message):
    __slots__ = ("attached", "deliver", "part", "progress", "ping", "closed")
    ATTACHED_FIELD_NUMBER: _ClassVar[int]
    DELIVER_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PING_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    attached: Attached
    deliver: Deliver
    part: Part
    progress: Progress
    ping: Ping
    closed: Closed
    def __init__(self, attached: _Optional[_Union[Attached, _Mapping]] = ..., deliver: _Optional[_Union[Deliver, _Mapping]] = ..., part: _Optional[_Union[Part, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., ping: _Optional[_Union[Ping, _Mapping]] = ..., closed: _Optional[_Union[Closed, _Mapping]] = ...) -> None: ...

class Credit(_message.Message):
    __slots__ = ("to", "total")
    TO_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    to: str
    total: int
    def __init__(self, to: _Optional[str] = ..., total: _Optional[int] = ...) -> None: ...

class Attached(_message.Message):
    __slots__ = ("received", "endpoints", "credits", "pair_window_bytes", "endpoint_window_bytes", "silence_seconds")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    PAIR_WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_WINDOW_BYTES_FIELD_NUMBER: _ClassVar[int]
    SILENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    received: int
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    credits: _containers.RepeatedCompositeFieldContainer[Credit]
    pair_window_bytes: int
    endpoint_window_bytes: int
    silence_seconds: float
    def __init__(self, received: _Optional[int] = ..., endpoints: _Optional[_Iterable[str]] = ..., credits: _Optional[_Iterable[_Union[Credit, _Mapping]]] = ..., pair_window_bytes: _Optional[int] = ..., endpoint_window_bytes: _Optional[int] = ..., silence_seconds: _Optional[float] = ...) -> None: ...

class Deliver(_message.Message):
    __slots__ = ("number", "sender", "kind", "payload", "missing")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SENDER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    number: int
    sender: str
    kind: str
    payload: bytes
    missing: int
    def __init__(self, number: _Optional[int] = ..., sender: _Optional[str] = ..., kind: _Optional[str] = ..., payload: _Optional[bytes] = ..., missing: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("received", "credits")
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    received: int
    credits: _containers.RepeatedCompositeFieldContainer[Credit]
    def __init__(self, received: _Optional[int] = ..., credits: _Optional[_Iterable[_Union[Credit, _Mapping]]] = ...) -> None: ...

class Closed(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("ticket", "sha256", "offset")
    TICKET_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    sha256: str
    offset: int
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ..., sha256: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "payload", "sha256")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    offset: int
    payload: bytes
    sha256: bytes
    def __init__(self, offset: _Optional[int] = ..., payload: _Optional[bytes] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class OpenSessionRequest(_message.Message):
    __slots__ = ("session_id", "tickets", "models", "silence_seconds", "deadline_seconds")
    class TicketsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bytes
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bytes] = ...) -> None: ...
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TICKETS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SILENCE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    tickets: _containers.ScalarMap[str, bytes]
    models: _containers.RepeatedScalarFieldContainer[str]
    silence_seconds: float
    deadline_seconds: float
    def __init__(self, session_id: _Optional[str] = ..., tickets: _Optional[_Mapping[str, bytes]] = ..., models: _Optional[_Iterable[str]] = ..., silence_seconds: _Optional[float] = ..., deadline_seconds: _Optional[float] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id", "reason")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    reason: str
    def __init__(self, session_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

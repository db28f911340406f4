"""Opens a channel or the administration of sessions by address: "host:port" is gRPC, "memory:NAME" in process."""

from coordinator.wire.channel import Channel, LinkTiming, SessionAdmin, SessionTicket, TlsFiles
from coordinator.wire.grpc_channel import GrpcSessionAdmin, GrpcTransport
from coordinator.wire.link import Link, Transport
from coordinator.wire.memory_channel import MemoryTransport, find_relay

MEMORY_PREFIX = "memory:"
DEFAULT_TIMING = LinkTiming()


def open_channel(
    address: str,
    *,
    session: SessionTicket,
    credentials: TlsFiles | None,
    timing: LinkTiming = DEFAULT_TIMING,
) -> Channel:
    """Join a session; returns when the relay has accepted the endpoint.

    Raises:
        ChannelClosed: refused, or not reachable within `timing.connect_seconds`.
        ChannelError: no relay of that name in this process.
        ValueError: a network address without credentials.
    """
    transport: Transport
    if address.startswith(MEMORY_PREFIX):
        transport = MemoryTransport(find_relay(address.removeprefix(MEMORY_PREFIX)), session)
    elif credentials is None:
        raise ValueError(f"Expected credentials for the exchange at {address}.")
    else:
        transport = GrpcTransport(address, ticket=session, credentials=credentials, timing=timing)
    link = Link(session, transport)
    link.open(timeout_seconds=timing.connect_seconds)
    return link


def open_admin(address: str, *, credentials: TlsFiles | None) -> SessionAdmin:
    """The right to open and close sessions at this address.

    Raises:
        ChannelError: no relay of that name in this process.
        ValueError: a network address without credentials.
    """
    if address.startswith(MEMORY_PREFIX):
        return find_relay(address.removeprefix(MEMORY_PREFIX))
    if credentials is None:
        raise ValueError(f"Expected credentials for the exchange at {address}.")
    return GrpcSessionAdmin(address, credentials=credentials)

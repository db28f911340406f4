"""What a site tells the coordinator about its own side of a round: what was charged, never what was found.

The receipt goes over the exchange just before the sealed contribution. It holds no number that was computed from
records: epsilon follows from the plan and from the site's earlier charges.
"""

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

MAX_RECEIPT_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class RoundReceipt:
    """A site's charge for one attempt, as it reports it."""

    epsilon_spent: float = Field(ge=0)
    """Everything charged to the data set so far, as one figure, at `delta`."""
    epsilon_limit: float = Field(ge=0)
    """The site's contract: no charge may take `epsilon_spent` above it."""
    delta: float = Field(ge=0, lt=1)
    unit: str = Field(max_length=32)
    adjacency: str = Field(max_length=32)
    events: str = Field(max_length=MAX_RECEIPT_BYTES // 2)
    """Canonical JSON of the events charged for this attempt, as the accountant reads them."""
    training_seconds: float = Field(ge=0)


def encode_receipt(receipt: RoundReceipt) -> bytes:
    """The receipt as JSON."""
    return TypeAdapter(RoundReceipt).dump_json(receipt)


def decode_receipt(payload: bytes) -> RoundReceipt:
    """A receipt from the network.

    Raises:
        ValueError: too large, or not a receipt.
    """
    if len(payload) > MAX_RECEIPT_BYTES:
        raise ValueError(f"A receipt of {len(payload)} bytes exceeds {MAX_RECEIPT_BYTES}.")
    try:
        return TypeAdapter(RoundReceipt).validate_json(payload, strict=True)
    except ValidationError as error:
        raise ValueError(
            f"The receipt does not parse: {error.errors(include_url=False)[:1]}"
        ) from error

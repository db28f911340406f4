"""The model as one flat vector of float32, and as a file.

The order is fixed: parameters sorted by name (as Python sorts strings), each flattened in row-major order. It follows
from the configuration and the table alone, so a party that only adds vectors or keeps files needs neither modules nor
torch; this file imports neither.

A file is a safetensors file in one canonical form: the header that `encode_header` writes, then exactly the vector.
Its metadata hold the format version, the configuration and the table. Equal weights give equal bytes, and a file in any
other form is refused, however well formed.
"""

import hashlib
import io
import json
import math
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from model.config import ModelConfig
from model.schema import TableSchema

if TYPE_CHECKING:
    from torch import nn

FORMAT = "concord-model/2"
MAX_HEADER_BYTES = 1 << 22
MAX_PARAMETERS = 2_000_000_000
FINITE_CHECK_NUMBERS = 1 << 18

Vector = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class ParameterSlot:
    """Where one parameter stands in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    """Index of its first number."""

    @property
    def stop(self) -> int:
        """Index after its last number."""
        return self.start + math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """What a model file says, checked."""

    config: ModelConfig
    table: TableSchema
    vector: Vector = field(repr=False, compare=False)
    """Read-only; mapped from the file where it came from one."""

    @property
    def table_digest(self) -> str:
        """Digest of the table that the model reads."""
        return self.table.digest


def parameter_layout(config: ModelConfig, table: TableSchema) -> tuple[ParameterSlot, ...]:
    """Every parameter of the model in the order of the flat vector.

    Raises:
        ValueError: the model would have more than `MAX_PARAMETERS`.
    """
    shapes = _parameter_shapes(config, table)
    total = sum(math.prod(shape) for shape in shapes.values())
    if total > MAX_PARAMETERS:
        raise ValueError(f"Expected at most {MAX_PARAMETERS} parameters, got {total}.")
    slots: list[ParameterSlot] = []
    for name in sorted(shapes):
        start = slots[-1].stop if slots else 0
        slots.append(ParameterSlot(name=name, shape=shapes[name], start=start))
    return tuple(slots)


def parameter_count(config: ModelConfig, table: TableSchema) -> int:
    """Length of the flat vector."""
    return parameter_layout(config, table)[-1].stop


def model_to_vector(model: "nn.Module") -> Vector:
    """A copy of the parameters as one flat vector."""
    flat = [
        parameter.detach().cpu().float().numpy().ravel()
        for _, parameter in sorted(model.named_parameters())
    ]
    return np.concatenate(flat)


def load_vector(model: "nn.Module", vector: Vector) -> None:
    """Overwrites the parameters of the model.

    Raises:
        ValueError: the vector is not float32, has another length or is not finite; the model is unharmed.
    """
    parameters = [parameter for _, parameter in sorted(model.named_parameters())]
    _require_vector(vector, sum(parameter.numel() for parameter in parameters))
    start = 0
    for parameter in parameters:
        numbers = vector[start : start + parameter.numel()].reshape(tuple(parameter.shape))
        parameter.detach().copy_(parameter.new_tensor(numbers))
        start += parameter.numel()


def model_bytes(vector: Vector, config: ModelConfig, table: TableSchema) -> bytes:
    """The model file as bytes.

    Raises:
        ValueError: the vector is not a finite float32 vector of the model's length.
    """
    return b"".join(_file_parts(vector, config, table))


def save_model(folder: Path, vector: Vector, config: ModelConfig, table: TableSchema) -> Path:
    """Writes the model file durably as `<sha256>.safetensors` and returns its path.

    The file appears complete or not at all, is readable by its owner alone, and no copy of the vector is made.

    Raises:
        ValueError: the vector is not a finite float32 vector of the model's length.
        OSError: the file cannot be written; nothing is left behind.
    """
    parts = _file_parts(vector, config, table)
    digest = hashlib.sha256()
    handle, name = tempfile.mkstemp(dir=folder, prefix=".model-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                digest.update(part)
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"{digest.hexdigest()}.safetensors"
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(folder)
    return path


def model_digest(source: bytes | Path) -> str:
    """SHA-256, in hex, of a model file: its content address."""
    if isinstance(source, bytes):
        return hashlib.sha256(source).hexdigest()
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_model(source: bytes | Path) -> StoredModel:
    """The model in a file, if it is in canonical form and finite. The weights are mapped, not copied.

    Raises:
        ValueError: anything else; the message says what was found and what was expected.
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes):
        config, table, offset = _read_header(io.BytesIO(source), len(source))
        vector: Vector = np.frombuffer(source, dtype="<f4", offset=offset)
    else:
        with source.open("rb") as file:
            config, table, offset = _read_header(file, os.fstat(file.fileno()).st_size)
            vector = np.memmap(file, dtype="<f4", mode="r", offset=offset)
    _require_vector(vector, parameter_count(config, table))
    return StoredModel(config=config, table=table, vector=vector)


def encode_header(config: ModelConfig, table: TableSchema) -> bytes:
    """The only header that a file of this configuration and table may have, with its length before it."""
    header: dict[str, object] = {
        "__metadata__": {
            "format": FORMAT,
            "config": TypeAdapter(ModelConfig).dump_json(config).decode(),
            "table": TypeAdapter(TableSchema).dump_json(table).decode(),
        }
    }
    for slot in parameter_layout(config, table):
        header[slot.name] = _tensor_entry(slot)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers stand at a multiple of 8 bytes
    if len(text) > MAX_HEADER_BYTES:
        raise ValueError(
            f"Model file: expected a header of at most {MAX_HEADER_BYTES} bytes, got {len(text)}."
        )
    return len(text).to_bytes(8, "little") + text


def _parameter_shapes(config: ModelConfig, table: TableSchema) -> dict[str, tuple[int, ...]]:
    """Names and shapes as `model.build.TabularModel` has them; a test holds the two together."""
    features, slots = table.encoding_shape
    width, experts, inner = config.width, config.experts, config.expert_width
    block = {
        "attention.key_value.weight": (2 * config.kv_heads * (width // config.heads), width),
        "attention.output.weight": (width, width),
        "attention.query.weight": (width, width),
        "attention_norm.weight": (width,),
        "moe.routed_down.weight": (experts, inner, width),
        "moe.routed_up.weight": (experts, width, 2 * inner),
        "moe.router.balance_bias": (experts,),
        "moe.router.scores.weight": (experts, width),
        "moe.shared_down.weight": (width, inner),
        "moe.shared_up.weight": (2 * inner, width),
        "moe_norm.weight": (width,),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "features.weight": (features, slots, width),
        "head.cls.weight": (1, width),
        "head.norm.weight": (width,),
        "head.skip.bias": (1,),
        "head.skip.weight": (1, table.flat_encoding_width),
    }
    for place in range(config.layers):
        shapes |= {f"trunk.blocks.{place}.{name}": shape for name, shape in block.items()}
    return shapes


def _tensor_entry(slot: ParameterSlot) -> dict[str, object]:
    return {
        "dtype": "F32",
        "shape": list(slot.shape),
        "data_offsets": [4 * slot.start, 4 * slot.stop],
    }


def _file_parts(
    vector: Vector, config: ModelConfig, table: TableSchema
) -> list[bytes | memoryview]:
    _require_vector(vector, parameter_count(config, table))
    return [encode_header(config, table), vector.astype("<f4", copy=False).data.cast("B")]


def _require_vector(vector: Vector, length: int) -> None:
    if vector.dtype != np.float32 or vector.shape != (length,) or not vector.flags.c_contiguous:
        raise ValueError(
            f"Expected a flat vector of {length} float32, got {vector.dtype} {vector.shape}."
        )
    # In pieces: a whole mask would take a quarter of the model's memory.
    for start in range(0, length, FINITE_CHECK_NUMBERS):
        is_finite = np.isfinite(vector[start : start + FINITE_CHECK_NUMBERS])
        if not is_finite.all():
            raise ValueError(
                f"Expected finite weights, number {start + is_finite.argmin()} is not."
            )


def _read_header(file: BinaryIO, size: int) -> tuple[ModelConfig, TableSchema, int]:
    """Configuration, table and the place where the numbers start, of a file of `size` bytes."""
    header_bytes = int.from_bytes(file.read(8), "little")
    if size < 8 or not 2 <= header_bytes <= min(MAX_HEADER_BYTES, size - 8):
        raise ValueError(
            f"Model file of {size} bytes: expected a header of 2 to {MAX_HEADER_BYTES} bytes inside the "
            f"file, got a length of {header_bytes}."
        )
    text = file.read(header_bytes)
    header = _parse_header(text)
    config, table = _parse_metadata(header.pop("__metadata__", None))
    _require_tensors(header, parameter_layout(config, table))
    if text != encode_header(config, table)[8:]:
        raise ValueError("Model file: the header is not in canonical form.")
    offset = 8 + header_bytes
    expected = offset + 4 * parameter_count(config, table)
    if size != expected:
        raise ValueError(f"Model file: expected {expected} bytes, got {size}.")
    return config, table, offset


def _parse_header(text: bytes) -> dict[str, Any]:
    try:
        header = from_json(text, allow_inf_nan=False)
    except ValueError as error:
        raise ValueError(f"Model file: the header is not JSON ({error}).") from error
    if not isinstance(header, dict):
        raise ValueError("Model file: the header is not a JSON object.")
    return header


def _parse_metadata(metadata: object) -> tuple[ModelConfig, TableSchema]:
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        found = metadata.get("format") if isinstance(metadata, dict) else None
        raise ValueError(f"Model file: expected format {FORMAT!r}, got {str(found)[:40]!r}.")
    if metadata.keys() != {"format", "config", "table"}:
        raise ValueError("Model file: expected metadata format, config and table, nothing else.")
    try:
        config = TypeAdapter(ModelConfig).validate_json(metadata["config"])
        table = TypeAdapter(TableSchema).validate_json(metadata["table"])
    except ValidationError as error:
        raise ValueError(f"Model file: {error}") from error
    return config, table


def _require_tensors(tensors: dict[str, Any], layout: tuple[ParameterSlot, ...]) -> None:
    expected = {slot.name: _tensor_entry(slot) for slot in layout}
    for name in sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"Model file: tensor {name!r} is missing.")
    for name in sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"Model file: tensor {name[:100]!r} is unknown.")
    for name, entry in expected.items():
        if tensors[name] != entry:
            raise ValueError(
                f"Model file: expected tensor {name!r} as {entry}, got {str(tensors[name])[:200]}."
            )


def _sync_folder(folder: Path) -> None:
    """Makes the new name itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

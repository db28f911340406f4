import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from model.build import build_model
from model.config import TIERS
from model.parameters import (
    encode_header,
    load_vector,
    model_bytes,
    model_digest,
    model_to_vector,
    parameter_count,
    parameter_layout,
    read_model,
    save_model,
)
from model.schema import CategoryColumn


@pytest.fixture
def vector(model):
    return model_to_vector(model)


@pytest.fixture
def file(vector, config, table):
    return model_bytes(vector, config, table)


def edited(file, change):
    """The file with its header changed, all else left as it was."""
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    change(header)
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[8 + length :]


@pytest.mark.parametrize("tier", TIERS)
def test_layout_is_that_of_the_torch_model(tier, table):
    model = build_model(TIERS[tier], table, seed=0)

    layout = [(slot.name, slot.shape) for slot in parameter_layout(TIERS[tier], table)]

    assert layout == sorted((name, tuple(p.shape)) for name, p in model.named_parameters())


def test_layout_of_grouped_query_heads_is_that_of_the_torch_model(model, config, table):
    layout = {slot.name: slot.shape for slot in parameter_layout(config, table)}

    assert layout == {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_count_is_the_length_of_the_vector(vector, config, table):
    assert vector.shape == (parameter_count(config, table),)


def test_vector_is_in_the_order_of_the_layout(model, vector, config, table):
    slot = next(s for s in parameter_layout(config, table) if s.name == "head.cls.weight")

    assert vector[slot.start : slot.stop].tolist() == model.head.cls.weight.flatten().tolist()


def test_vector_is_a_copy(model, vector):
    before = vector.copy()
    with torch.no_grad():
        model.head.cls.weight.fill_(9.0)

    assert np.array_equal(vector, before)


def test_loaded_vector_makes_the_same_model(model, vector, config, table, values):
    other = build_model(config, table, seed=99)

    load_vector(other, vector)

    assert torch.equal(other.eval()(values), model.eval()(values))
    assert model_to_vector(other).tobytes() == vector.tobytes()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: v[:-1], "flat vector of"),
        (lambda v: np.append(v, v[:1]), "flat vector of"),
        (lambda v: v.astype(np.float64), "float64"),
        (lambda v: v.reshape(1, -1), "flat vector of"),
        (lambda v: np.where(np.arange(v.size) == 17, np.nan, v).astype(np.float32), "number 17"),
        (lambda v: np.where(np.arange(v.size) == 5, np.inf, v).astype(np.float32), "number 5"),
    ],
    ids=["short", "long", "double", "matrix", "nan", "infinity"],
)
def test_unusable_vector_is_refused_and_the_model_unharmed(spoil, message, model, vector):
    with pytest.raises(ValueError, match=message):
        load_vector(model, spoil(vector))

    assert model_to_vector(model).tobytes() == vector.tobytes()


def test_file_of_an_unusable_vector_is_not_made(vector, config, table):
    with pytest.raises(ValueError, match="flat vector of"):
        model_bytes(vector[1:], config, table)


def test_file_gives_back_what_was_stored(file, vector, config, table):
    stored = read_model(file)

    assert (stored.config, stored.table, stored.table_digest) == (config, table, table.digest)
    assert stored.vector.tobytes() == vector.tobytes()
    assert not stored.vector.flags.writeable


def test_equal_weights_give_equal_bytes(file, model, config, table):
    assert model_bytes(model_to_vector(model), config, table) == file


def test_weights_do_not_show_in_the_text_of_a_stored_model(file):
    assert "vector" not in repr(read_model(file))


def test_file_is_a_safetensors_file(file, model):
    tensors = safetensors.numpy.load(file)

    assert tensors.keys() == dict(model.named_parameters()).keys()
    np.testing.assert_array_equal(
        tensors["trunk.blocks.1.moe.routed_up.weight"],
        model.trunk.blocks[1].moe.routed_up.weight.detach().numpy(),
    )


def test_saved_file_is_named_by_its_content(tmp_path, file, vector, config, table):
    path = save_model(tmp_path, vector, config, table)

    assert path.name == f"{model_digest(file)}.safetensors"
    assert path.read_bytes() == file
    assert model_digest(path) == model_digest(file)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_saved_file_is_mapped_not_copied(tmp_path, vector, config, table):
    stored = read_model(save_model(tmp_path, vector, config, table))

    assert isinstance(stored.vector, np.memmap)
    assert stored.vector.tobytes() == vector.tobytes()


def test_failed_save_leaves_nothing_behind(tmp_path, vector, config, table):
    with pytest.raises(OSError, match="No such file"):
        save_model(tmp_path / "absent", vector, config, table)

    assert list(tmp_path.iterdir()) == []


def test_files_are_read_without_torch(tmp_path, vector, config, table):
    path = save_model(tmp_path, vector, config, table)
    program = (
        "import sys; from pathlib import Path; from model.parameters import read_model\n"
        "assert read_model(Path(sys.argv[1])).vector.size and 'torch' not in sys.modules"
    )

    subprocess.run(
        [sys.executable, "-c", program, str(path)],
        check=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


def remove_tensor(header):
    del header["features.weight"]


def add_tensor(header):
    header["zz.extra"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def change_dtype(header):
    header["features.weight"]["dtype"] = "F64"


def change_shape(header):
    header["head.cls.weight"]["shape"] = [16, 1]


def move_tensor(header):
    header["head.cls.weight"]["data_offsets"] = [0, 64]


def age_format(header):
    header["__metadata__"]["format"] = "concord-model/1"


def drop_metadata(header):
    del header["__metadata__"]


def add_metadata(header):
    header["__metadata__"]["note"] = "hello"


def break_config(header):
    header["__metadata__"]["config"] = header["__metadata__"]["config"].replace(
        '"top_k":2', '"top_k":77'
    )


def enlarge_config(header):
    header["__metadata__"]["config"] = header["__metadata__"]["config"].replace(
        '"width":16', '"width":8192'
    )


def break_table(header):
    header["__metadata__"]["table"] = "{}"


def respell_config(header):
    header["__metadata__"]["config"] += " "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove_tensor, "tensor 'features.weight' is missing"),
        (add_tensor, "tensor 'zz.extra' is unknown"),
        (change_dtype, "expected tensor 'features.weight' as .*F64"),
        (change_shape, r"expected tensor 'head.cls.weight' as .*\[16, 1\]"),
        (move_tensor, "expected tensor 'head.cls.weight'"),
        (age_format, "expected format 'concord-model/2', got 'concord-model/1'"),
        (drop_metadata, "expected format"),
        (add_metadata, "expected metadata format, config and table"),
        (break_config, "top_k=77"),
        (enlarge_config, "expected tensor"),
        (break_table, "columns"),
        (respell_config, "not in canonical form"),
    ],
)
def test_file_with_another_header_is_refused(change, message, file):
    with pytest.raises(ValueError, match=message):
        read_model(edited(file, change))


def long_header(text):
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("hostile", "message"),
    [
        (b"", "file of 0 bytes"),
        (b"\x02\0\0", "file of 3 bytes"),
        (b"\xff" * 8 + b"{}", "got a length of 18446744073709551615"),
        ((5 << 20).to_bytes(8, "little") + b"{" * (5 << 20), "header of 2 to 4194304 bytes"),
        (long_header(b"\x80\x04K\x01."), "not JSON"),
        (long_header(b"[" * 100_000), "not JSON"),
        (long_header(b'{"a":NaN}'), "not JSON"),
        (long_header(b"[]"), "not a JSON object"),
        (long_header(b'{"__metadata__":3}'), "expected format"),
        (long_header(b'{"__metadata__":{"format":["concord-model/2"]}}'), "expected format"),
        (
            long_header(b'{"__metadata__":{"format":"concord-model/2","config":1,"table":2}}'),
            "ModelConfig",
        ),
    ],
    ids=range(11),
)
def test_bytes_that_are_no_model_are_refused(hostile, message):
    with pytest.raises(ValueError, match=message):
        read_model(hostile)


def test_cut_file_is_refused(file):
    with pytest.raises(ValueError, match=f"expected {len(file)} bytes, got {len(file) - 4}"):
        read_model(file[:-4])


def test_file_with_bytes_behind_is_refused(file):
    with pytest.raises(ValueError, match=f"expected {len(file)} bytes, got {len(file) + 1}"):
        read_model(file + b"\0")


def test_cut_file_on_disk_is_refused(tmp_path, file):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(file[:-1])

    with pytest.raises(ValueError, match=r"expected \d+ bytes"):
        read_model(path)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_file_with_a_number_that_is_not_finite_is_refused(number, file):
    spoiled = file[:-4] + np.float32(number).tobytes()

    with pytest.raises(ValueError, match="Expected finite weights"):
        read_model(spoiled)


def test_header_too_large_is_not_written(config, table):
    codes = tuple(f"{place:064d}" for place in range(250))
    wide = dataclasses.replace(
        table,
        columns=tuple(CategoryColumn(name=f"c{place}", categories=codes) for place in range(300)),
    )

    with pytest.raises(ValueError, match="header of at most 4194304 bytes"):
        encode_header(config, wide)

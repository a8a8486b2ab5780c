"""Torch files (torch_file.py, archive.py): hostile ones are refused by bounded work, and each bit of a storage is checked."""

import struct
import zipfile

import numpy as np
import pytest
import torch_like
from hostile import bomb, refused

from mpt_jax.errors import UserError
from mpt_jax.model.formats import prompts, torch_file
from mpt_jax.model.formats.files import Folder

PAIRS = b")" + b"q\x00h\x00\x86" * 60  # a tuple of twice the same tuple, 60 deep: walked, it has 2^60 leaves
DICTS = b"}q\x00" + b"".join(b"}(" + torch_like.text("a") + b"h\x00" + torch_like.text("b") + b"h\x00uq\x00" for _ in range(60))
FULL = (2, 3)
PROGRAMS = {
    "a key that takes forever to hash": (b"\x80\x02}" + PAIRS + b"K\x01s.", "other keys than texts"),
    "pairs for an ordered dict": (b"\x80\x02ccollections\nOrderedDict\n]" + PAIRS + b"K\x01\x86a\x85R.", "calls collections OrderedDict"),
    "a storage that takes forever to print": (b"\x80\x02" + PAIRS + b"Q.", "refers to 'tuple'"),
    "arguments that take forever to print": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n" + PAIRS + b"R.", "refused"),
    "dicts that take forever to walk": (b"\x80\x02" + DICTS + b".", "holds no tensors"),
    "millions of opcodes": (b"\x80\x02" + b"K\x01" * 3_000_000 + b".", "more than 150000 opcodes"),
    "marks without end": (b"\x80\x02" + b"(" * 70_000 + b"t" * 70_000 + b".", "holds a tuple"),
    "a number of a million digits": (b"\x80\x02}\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"K\x01s.", "other keys than texts"),
    "a huge number as a key again and again": (
        b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x7f" * 10**6 + b"q\x00}" + b"h\x00K\x01s" * 40_000 + b".", "other keys than texts",
    ),
    "a huge number as a storage": (
        b"\x80\x02(" + torch_like.text("storage") + b"ctorch\nFloatStorage\n\x8b" + struct.pack("<i", 9) + b"\x7f" * 9
        + torch_like.text("cpu") + b"K\x06tQ.", "not a tensor storage",
    ),
    "a negative offset": (torch_like.program({"a": torch_like.tensor("0", FULL, offset=-1)}), "starts at -1 of its storage"),
    "an offset beyond the storage": (
        torch_like.program({"a": torch_like.tensor("0", FULL, offset=1)}),
        "a needs 6 numbers, its storage has 6",
    ),
    "negative strides": (torch_like.program({"a": torch_like.tensor("0", FULL, strides=(-3, 1))}), "has the shape .-3, 1."),
    "a storage that is not there": (torch_like.program({"a": torch_like.tensor("../1", FULL)}), "storage ../1 is missing"),
    "a view of a storage": (torch_like.program({"a": torch_like.tensor("0", FULL, view=torch_like.text("v"))}), "not a tensor storage"),
    "a name of two lines": (torch_like.program({"a\nb": torch_like.tensor("0", FULL)}), "names an array"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_small_programs_of_torch_files_take_bounded_work(name, tmp_path):
    table, message = PROGRAMS[name]
    torch_like.write(tmp_path / "x.bin", {"a": np.ones(FULL, np.float32)}, table)
    refused(lambda: torch_file.read(Folder(tmp_path), "x.bin"), message)


def test_old_files_whose_storages_have_huge_numbers_are_damaged(tmp_path):
    for key in (10**5000, 2**63, True, None):
        torch_like.write_old(tmp_path / "x.bin", {"a": np.ones(FULL, np.float32)}, keys=[key])
        refused(lambda: torch_file.read(Folder(tmp_path), "x.bin"), "x.bin is damaged: it does not list its storages")


@pytest.mark.parametrize("old", [False, True])
def test_the_programs_here_are_those_of_torch(old, tmp_path):
    """The hand-made files say what torch's own reader reads, so that what is refused above is refused for its fault."""
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float64([1.5]), "c": np.zeros((0, 2), np.float16)}
    (torch_like.write_old if old else torch_like.write)(tmp_path / "x.bin", arrays)
    for name, lazy in torch_file.read(Folder(tmp_path), "x.bin").items():
        np.testing.assert_array_equal(lazy.load(), arrays[name])
    torch = pytest.importorskip("torch")
    for name, tensor in torch.load(tmp_path / "x.bin", weights_only=True).items():
        np.testing.assert_array_equal(tensor.numpy(), arrays[name])


def test_each_bit_of_a_torch_storage_is_checked(tmp_path):
    torch_like.write(tmp_path / "x.bin", {"a": np.ones((2, 300), np.float32), "b": np.ones(4, np.float32)})
    whole = (tmp_path / "x.bin").read_bytes()
    start = whole.find(np.ones(8, np.float32).tobytes())
    for bit in np.random.default_rng(0).integers(0, 8 * 2400, 20):
        data = bytearray(whole)
        data[start + bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.bin").write_bytes(data)
        read = torch_file.read(Folder(tmp_path), "x.bin")
        assert read["b"].load().sum() == 4
        with pytest.raises(UserError, match="x.bin is damaged: storage 0 is not what was written"):
            read["a"].load(index=(slice(0, 1), slice(0, 2)))  # a part needs the whole, too


@pytest.mark.parametrize("member", ["archive/data.pkl", "archive/byteorder"])
def test_members_of_torch_files_do_not_unpack_to_gigabytes(member, tmp_path):
    others = {"archive/data.pkl": torch_like.program({})} if member != "archive/data.pkl" else {}
    bomb(tmp_path / "x.bin", member, others, 32)
    refused(lambda: torch_file.read(Folder(tmp_path), "x.bin"), "packed by method 8; members of such a file are stored")


@pytest.mark.parametrize(
    "method, flag, message", [(12, 0, "method 12"), (93, 0, "method 93|damaged"), (0, 1, "is encrypted; save it without")]
)
def test_zip_methods_and_passwords(method, flag, message, tmp_path):
    torch_like.write(tmp_path / "x.bin", {"a": np.ones(FULL, np.float32)})
    np.savez(tmp_path / "x.npz", a=np.ones(FULL, np.float32))
    for name, read in (("x.bin", lambda: torch_file.read(Folder(tmp_path), "x.bin")), ("x.npz", lambda: prompts.read(tmp_path / "x.npz"))):
        data = bytearray((tmp_path / name).read_bytes())
        place = data.find(b"PK\x01\x02")
        data[place + 8] |= flag
        data[place + 10] = method
        (tmp_path / name).write_bytes(data)
        refused(read, message)


def test_a_directory_of_megabytes(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
        for number in range(140):
            archive.writestr(zipfile.ZipInfo(f"archive/data/{number}" + "x" * 65_000), b"")
    refused(lambda: torch_file.read(Folder(tmp_path), "x.bin"), "its directory takes [0-9,]+ bytes")

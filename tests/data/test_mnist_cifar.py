"""MNIST's and CIFAR's files, written here by their formats' descriptions."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyfastgan.data import load

RNG = np.random.default_rng(0)
DIGITS = RNG.integers(0, 256, (6, 28, 28), dtype=np.uint8)
PICTURES = RNG.integers(0, 256, (10, 3, 32, 32), dtype=np.uint8)
LABELS = [3, 0, 9, 1, 1, 2, 8, 7, 5, 4]


def idx(array: np.ndarray) -> bytes:
    header = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return header + array.tobytes()


def write_mnist(folder: Path, *, packed: bool, dot: str = "-") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in (("train", slice(0, 4)), ("t10k", slice(4, 6))):
        for name, values in (("images", DIGITS[rows]), ("labels", np.uint8(LABELS[:6])[rows])):
            path = folder / f"{part}-{name}{dot}idx{values.ndim}-ubyte"
            if packed:
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(values)))
            else:
                path.write_bytes(idx(values))


@pytest.mark.parametrize(
    ("inside", "packed", "dot"),
    [("MNIST/raw", False, "-"), ("raw", True, "-"), ("", True, "-"), ("", False, ".")],
)
def test_mnist(tmp_path: Path, inside: str, packed: bool, dot: str) -> None:
    write_mnist(tmp_path / inside, packed=packed, dot=dot)
    for split, rows in (("train", slice(0, 4)), ("test", slice(4, 6))):
        data = load(f"mnist:{tmp_path}", split=split)
        assert torch.equal(data.stored[0][:, 0], torch.from_numpy(DIGITS[rows]))
        assert data.stored[1].tolist() == LABELS[:6][rows]
        assert data.classes == 10
    assert load(f"mnist:{tmp_path}", size=32).shape == (1, 32, 32)


def test_bad_mnist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no train-images-idx3-ubyte or train-images-idx3-"):
        load(f"mnist:{tmp_path}")
    with pytest.raises(ValueError, match="split must be one of train, test, got 'all'"):
        load(f"mnist:{tmp_path}", split="all")
    write_mnist(tmp_path, packed=False)
    images = tmp_path / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="header says 4 x 28 x 28, but 3135 bytes follow"):
        load(f"mnist:{tmp_path}")
    images.write_bytes(b"\0\0\x08\x01" + whole[4:])
    with pytest.raises(ValueError, match="no idx file of bytes in 3 dimensions"):
        load(f"mnist:{tmp_path}")
    images.write_bytes(whole)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.uint8([1, 2, 3])))
    with pytest.raises(ValueError, match="holds 4 images but 3 labels"):
        load(f"mnist:{tmp_path}")
    images.unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole)[:100])
    with pytest.raises(ValueError, match=r"cannot read .*train-images"):
        load(f"mnist:{tmp_path}")


def write_cifar10(folder: Path, dump: Any, count: int = 5) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        batch = {
            "data": PICTURES[index : index + 1].reshape(1, -1),
            "labels": LABELS[index : index + 1],
        }
        (folder / f"data_batch_{index + 1}").write_bytes(dump(batch))
    batch = {"data": PICTURES[5:].reshape(5, -1), "labels": LABELS[5:]}
    (folder / "test_batch").write_bytes(dump(batch))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_cifar10_pickles(tmp_path: Path, protocol: int) -> None:
    write_cifar10(tmp_path / "cifar-10-batches-py", lambda batch: pickle.dumps(batch, protocol))
    check_cifar10(tmp_path)
    check_cifar10(tmp_path / "cifar-10-batches-py")


def check_cifar10(root: Path) -> None:
    for split, rows in (("train", slice(0, 5)), ("test", slice(5, 10))):
        data = load(f"cifar10:{root}", split=split)
        assert torch.equal(data.stored[0], torch.from_numpy(PICTURES[rows]))
        assert data.stored[1].tolist() == LABELS[rows]
        assert data.classes == 10
        assert data.class_names[3] == "cat"


def published(batch: dict[str, Any]) -> bytes:
    """As Python 2 and an old numpy wrote it: byte strings (U), the former module, no encoding."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    rows, labels = batch["data"], batch["labels"]
    return b"".join(
        [
            b"\x80\x02}(",
            text(b"data"),
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85",
            text(b"b") + b"\x87R(K\x01",
            b"J" + len(rows).to_bytes(4, "little") + b"M\x00\x0c\x86",
            b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R",
            b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89" + text(rows.tobytes()) + b"tb",
            text(b"labels") + b"](" + b"".join(b"K" + bytes([n]) for n in labels) + b"eu.",
        ]
    )


def test_cifar10_as_published(tmp_path: Path) -> None:
    content = published({"data": PICTURES[:1].reshape(1, -1), "labels": [4]})
    pickletools.dis(content, out=io.StringIO())  # well formed
    plain = pickle.loads(content, encoding="latin1")
    assert np.array_equal(plain["data"], PICTURES[:1].reshape(1, -1))
    write_cifar10(tmp_path, published)
    check_cifar10(tmp_path)


def test_cifar_binaries(tmp_path: Path) -> None:
    rows = [bytes([label]) + picture.tobytes() for label, picture in zip(LABELS, PICTURES)]
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for index in range(5):
        (folder / f"data_batch_{index + 1}.bin").write_bytes(rows[index])
    (folder / "test_batch.bin").write_bytes(b"".join(rows[5:]))
    check_cifar10(tmp_path)
    (tmp_path / "train.bin").write_bytes(b"".join(b"\x07" + row for row in rows))
    data = load(f"cifar100:{tmp_path}")
    assert torch.equal(data.stored[0], torch.from_numpy(PICTURES))
    assert (data.stored[1].tolist(), data.classes) == (LABELS, 100)
    (tmp_path / "train.bin").write_bytes(rows[0])
    with pytest.raises(
        ValueError, match=r"train\.bin is broken: 3073 bytes are no multiple of 3074"
    ):
        load(f"cifar100:{tmp_path}")


def test_cifar100_pickles_give_fine_labels(tmp_path: Path) -> None:
    batch = {
        "data": PICTURES.reshape(10, -1), "fine_labels": [n * 11 for n in LABELS], "coarse_labels": LABELS,
    }  # fmt: skip
    (tmp_path / "cifar-100-python").mkdir()
    (tmp_path / "cifar-100-python" / "test").write_bytes(pickle.dumps(batch, protocol=2))
    data = load(f"cifar100:{tmp_path}", split="test")
    assert data.stored[1].tolist() == [n * 11 for n in LABELS]
    assert torch.equal(data.stored[0], torch.from_numpy(PICTURES))


class Attack:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def attacks(target: Path) -> dict[str, bytes]:
    objects = np.array([[1, 2]], dtype=object)
    return {
        "a system call": pickle.dumps(Attack(os.system, f"touch {target}"), 2),
        "an import": b"cbuiltins\n__import__\n(S'os'\ntR.",
        "evaluation": pickle.dumps(Attack(eval, f"open({str(target)!r}, 'w')"), 2),
        "a nested name": b"\x80\x04\x8c\x05numpy\x8c\x0edtype.__init__\x93.",
        "a loader of numpy": pickle.dumps(Attack(np.load, str(target)), 2),
        "objects": pickle.dumps({"data": objects, "labels": [1]}, 2),
        "floats": pickle.dumps({"data": np.zeros((1, 3072)), "labels": [1]}, 2),
        "another codec": b"c_codecs\nencode\n(Vx\nVzip\ntR.",
    }


@pytest.mark.parametrize("kind", attacks(Path("x")))
def test_nothing_in_a_pickle_is_run(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "touched"
    content = attacks(target)[kind]
    write_cifar10(tmp_path, pickle.dumps)
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(ValueError, match="test_batch: it holds"):
        load(f"cifar10:{tmp_path}", split="test")
    assert not target.exists()


def test_bad_cifar(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no data_batch_1 or data_batch_1\.bin \(looked in"):
        load(f"cifar10:{tmp_path}")
    write_cifar10(tmp_path, pickle.dumps, count=4)
    with pytest.raises(ValueError, match=r"cannot read .*data_batch_5"):
        load(f"cifar10:{tmp_path}")
    rows = PICTURES.reshape(10, -1)
    cases = [
        (pickle.dumps({"data": rows, "labels": LABELS})[:-20], "cannot read .*test_batch"),
        (b"", "cannot read .*test_batch"),
        (pickle.dumps({"data": rows}), "has no entry 'labels'"),
        (
            pickle.dumps({"data": rows, "labels": LABELS[1:]}),
            r"10 images, but its labels are \(9,\)",
        ),
        (pickle.dumps({"data": rows[:, 1:], "labels": LABELS}), r"\(N, 3072\), got \(10, 3071\)"),
        (pickle.dumps({"data": rows, "labels": [10] * 10}), "below classes=10, got 10"),
        (pickle.dumps([1]), "cannot read .*test_batch"),
    ]
    for content, message in cases:
        (tmp_path / "test_batch").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            load(f"cifar10:{tmp_path}", split="test")

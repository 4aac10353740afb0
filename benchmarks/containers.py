"""Compare our packed set with an Arrow IPC file that holds the same images.

    pip install pyarrow
    python benchmarks/containers.py --data DIR        # any folder of images

Both files are mapped into memory. Each round reads the encoded bytes of every image in one
random order, from both in turn; the fastest round counts. `checked` also compares a CRC-32 of the
bytes, which the packed set always does.
"""

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from sslkit.parts import make
from sslkit.recipe import read_data
from sslkit_plugins.datasets.packed import Packed


def arrow_table(path: Path, files: list[bytes], names: list[str]) -> pa.Table:
    """Write an Arrow IPC file of names, images and checksums; return it mapped."""
    columns = {
        "name": pa.array(names),
        "image": pa.array(files, pa.large_binary()),
        "checksum": pa.array([zlib.crc32(file) for file in files], pa.int64()),
    }
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as out, pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def seconds(read: Callable[[int], object], order: list[int]) -> float:
    """Return the seconds that one round takes."""
    start = time.perf_counter()
    for index in order:
        read(index)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="a folder of images")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        source = make(read_data(options.data, ()), split="train")
        Packed.write({"train": source}, str(home / "packed"), workers=0)
        packed = Packed("train", root=str(home / "packed"))
        files = [packed.stored(index).getvalue() for index in range(len(packed))]
        table = arrow_table(home / "images.arrow", files, list(packed.names))
        images, sums = table["image"], table["checksum"]
        decode = {"decode": packed.image}
        readers = {
            "packed, checked": packed.stored,
            "Arrow": lambda index: images[index].as_buffer().to_pybytes(),
            "Arrow, checked": lambda index: (
                zlib.crc32(images[index].as_buffer()) == sums[index].as_py()
            ),
        }
        order = np.random.default_rng(0).permutation(len(packed)).tolist()
        best = dict.fromkeys([*readers, *decode], float("inf"))
        for _ in range(options.rounds):
            for name, read in (readers | decode).items():
                best[name] = min(best[name], seconds(read, order))
        print(f"{len(packed):,} images, {np.mean([*map(len, files)]):,.0f} bytes on average\n")
        print("| read | µs an image | relative to packed |\n|---|---|---|")
        for name, taken in best.items():
            ratio = taken / best["packed, checked"]
            print(f"| {name} | {taken / len(packed) * 1e6:.1f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

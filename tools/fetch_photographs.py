"""Fetch the photographs of the book's study at their full size, each checked by its SHA-256.

    python tools/fetch_photographs.py FOLDER --from MIRROR

They come out of three packages of Debian, some 70 MB, from any of its mirrors, its snapshots, which keep what mirrors
drop, or a folder with the packages; `tools/photographs.csv` has a row for each picture, with its author and licence.
`FOLDER/pictures` then has a folder a label, for your own study:

    pure-nb run photographs-timm --data FOLDER/pictures

The published study has the same pictures scaled down, so its numbers are near these and not the same. What is in FOLDER
and is right is not fetched again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).with_name("photographs.csv")

TIMEOUT = 20
"""Seconds without an answer."""


class Package(NamedTuple):
    """A package of Debian: where it is below a mirror, and its SHA-256."""

    path: str
    sha256: str


PACKAGES = {
    "gcompris-qt-data": Package(
        "pool/main/g/gcompris-qt/gcompris-qt-data_3.1-2_all.deb",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
    ),
    "lomiri-wallpapers-16.04": Package(
        "pool/main/l/lomiri-wallpapers/lomiri-wallpapers-16.04_20.04.0-2_all.deb",
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
    ),
    "lomiri-wallpapers-20.04": Package(
        "pool/main/l/lomiri-wallpapers/lomiri-wallpapers-20.04_20.04.0-2_all.deb",
        "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709",
    ),
}


def digest(data: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def download(package: Package, places: Sequence[str]) -> bytes:
    """A package from the first place that has it as it should be; exits with a sentence if none has."""
    why = []
    for place in places:
        names = (package.path, package.path.rpartition("/")[2])  # a folder may hold the files alone
        for address in dict.fromkeys(f"{place.rstrip('/')}/{name}" for name in names[: 1 + place.startswith("file:")]):
            try:
                with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
                    data: bytes = answer.read()
            except (OSError, ValueError, HTTPException) as problem:
                why.append(f"{address}: {getattr(problem, 'reason', problem)}")
                continue
            if digest(data) == package.sha256:
                return data
            why.append(f"{address}: it is another file, by its SHA-256")
    raise SystemExit(
        f"{package.path.rpartition('/')[2]} could not be fetched ({'; '.join(why)}). Without a network, bring the "
        "packages in a folder: --from FOLDER; or give a study pictures of your own: --data FOLDER"
    )


def unpacked(package: bytes, wanted: set[str]) -> Iterator[tuple[str, bytes]]:
    """Files of a package by their names: those of its archive, and as ``NAME.rcc:PATH`` those of Qt's resources."""
    resources = {name.partition(":")[0] for name in wanted if ":" in name}
    with tarfile.open(fileobj=io.BytesIO(_data_of(package))) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            file = archive.extractfile(member) if name in resources | wanted else None
            if file is not None and name in resources:
                for path, data in resource_files(file.read()):
                    if f"{name}:{path}" in wanted:
                        yield f"{name}:{path}", data
            elif file is not None and name in wanted:
                yield name, file.read()


def _data_of(package: bytes) -> bytes:
    """The archive ``data.tar`` of a package, which is an archive of ``ar``."""
    place = 8
    while place < len(package):
        name, size = package[place : place + 16].decode("ascii").strip(), int(package[place + 48 : place + 58])
        if name.startswith("data.tar"):
            return package[place + 60 : place + 60 + size]
        place += 60 + size + size % 2
    raise ValueError("a package without data.tar")


def resource_files(data: bytes) -> Iterator[tuple[str, bytes]]:
    """The files in a file of Qt's resources (``.rcc``), with their paths in it."""

    def number(place: int, size: int = 4) -> int:
        return int.from_bytes(data[place : place + size], "big")

    if data[:4] != b"qres":
        raise ValueError("no file of Qt's resources")
    version, tree, contents, names = (number(4 * place) for place in range(1, 5))
    size = 14 + 8 * (version >= 2)

    def entries(node: int, above: str) -> Iterator[tuple[str, bytes]]:
        place = tree + size * node
        where, flags = names + number(place), number(place + 4, 2)
        length = number(where, 2)
        name = data[where + 6 : where + 6 + 2 * length].decode("utf-16-be")
        path = f"{above}/{name}" if name else ""
        if flags & 2:
            for child in range(number(place + 10), number(place + 10) + number(place + 6)):
                yield from entries(child, path)
            return
        start = contents + number(place + 10)
        found = data[start + 4 : start + 4 + number(start)]
        if flags & 4:
            return  # packed by zstd, as no picture is
        yield path, zlib.decompress(found[4:]) if flags & 1 else found

    yield from entries(0, "")


def fetch(folder: Path, places: Sequence[str], rows: Sequence[dict[str, str]]) -> int:
    """Write the pictures of some rows that are not there, or not right; how many there were."""

    def path_of(row: dict[str, str]) -> Path:
        return folder / "pictures" / row["file"]

    missing = [row for row in rows if not path_of(row).is_file() or digest(path_of(row).read_bytes()) != row["sha256"]]
    for name in dict.fromkeys(row["package"] for row in missing):
        own = {row["member"]: row for row in missing if row["package"] == name}
        for member, data in unpacked(download(PACKAGES[name], places), {*own}):
            row = own.pop(member)
            if digest(data) != row["sha256"]:
                raise SystemExit(f"{member} of {name} is not the picture that it was, by its SHA-256")
            path_of(row).parent.mkdir(parents=True, exist_ok=True)
            path_of(row).write_bytes(data)
        if own:
            raise SystemExit(f"{name} lacks {next(iter(own))}")
    with (folder / "ATTRIBUTION.csv").open("w", encoding="utf-8", newline="") as file:
        columns = [column for column in rows[0] if column not in ("package", "member", "sha256")]
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return len(missing)


def read_table(path: Path = TABLE) -> list[dict[str, str]]:
    """The rows of the table of pictures."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to put pictures/ and ATTRIBUTION.csv")
    parser.add_argument("--from", dest="place", required=True, help="a mirror of Debian, or a folder with the packages")
    given = parser.parse_args()
    place = given.place if "://" in given.place else Path(given.place).resolve().as_uri()
    given.folder.mkdir(parents=True, exist_ok=True)
    rows = read_table()
    count = fetch(given.folder, [place], rows)
    where = given.folder / "pictures"
    print(f"{len(rows)} photographs in {where}, {count} of them fetched; ATTRIBUTION.csv names their authors")


if __name__ == "__main__":
    main()

"""Photographs fetched for a study of one's own: out of packages, each checked by its digest, or said why not."""

from __future__ import annotations

import io
import struct
import tarfile
import zlib
from pathlib import Path

import fetch_photographs
import pytest
from fetch_photographs import Package, digest

from pure_nb.loading import PHOTOGRAPHS
from pure_nb.published import Published, load_published

FISH, SCENE = b"a fish, as WebP", b"a scene, as JPEG" * 40
PATH = "/gcompris/fish.webp"


def resources(data: bytes, *, packed: bool = False) -> bytes:
    """A file of Qt's resources with a picture in a folder, beside another file."""
    names, places = b"", []
    for name in ("", "gcompris", "fish.webp", "main.qml"):
        places.append(len(names))
        names += struct.pack(">HI", len(name), 0) + name.encode("utf-16-be")
    held = struct.pack(">I", len(data)) + zlib.compress(data) if packed else data
    other = len(held) + 4
    contents = struct.pack(">I", len(held)) + held + struct.pack(">I", 2) + b"no"
    tree = struct.pack(">IHIIQ", places[0], 2, 1, 1, 0)
    tree += struct.pack(">IHIIQ", places[1], 2, 2, 2, 0)
    tree += struct.pack(">IHHHIQ", places[2], int(packed), 0, 0, 0, 0)
    tree += struct.pack(">IHHHIQ", places[3], 0, 0, 0, other, 0)
    head = 20
    return (
        b"qres"
        + struct.pack(">IIII", 2, head + len(names), head + len(names) + len(tree), head)
        + names
        + tree
        + contents
    )


def package(files: dict[str, bytes]) -> bytes:
    """A package of Debian."""
    inside = io.BytesIO()
    with tarfile.open(fileobj=inside, mode="w:xz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"./{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    found = b"!<arch>\n"
    for name, data in {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": inside.getvalue()}.items():
        found += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)
    return found


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Two pictures in a package that lies in a folder, as by an address."""
    made = package({"usr/share/all.rcc": resources(FISH), "usr/share/scene.jpg": SCENE, "usr/share/other": b"else"})
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "some_1_all.deb").write_bytes(made)
    monkeypatch.setattr(fetch_photographs, "PACKAGES", {"some": Package("s/some/some_1_all.deb", digest(made))})
    own = {"author": "somebody", "package": "some"}
    return [
        {"file": "fish/fish.webp", **own, "member": f"usr/share/all.rcc:{PATH}", "sha256": digest(FISH)},
        {"file": "scene/scene.jpg", **own, "member": "usr/share/scene.jpg", "sha256": digest(SCENE)},
    ]


def test_pictures_are_fetched_once_and_again_where_they_are_not_right(
    rows: list[dict[str, str]], tmp_path: Path
) -> None:
    place, folder = (tmp_path / "held").as_uri(), tmp_path / "photographs"
    folder.mkdir()
    assert fetch_photographs.fetch(folder, ["file:///nowhere", place], rows) == 2
    pictures = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*/*/*")}
    assert pictures == {"pictures/fish/fish.webp": FISH, "pictures/scene/scene.jpg": SCENE}
    assert (folder / "ATTRIBUTION.csv").read_text().splitlines() == [
        "file,author",
        "fish/fish.webp,somebody",
        "scene/scene.jpg,somebody",
    ]
    assert fetch_photographs.fetch(folder, [], rows) == 0
    (folder / "pictures" / "fish" / "fish.webp").write_bytes(b"cut")
    assert fetch_photographs.fetch(folder, [place], rows) == 1
    assert (folder / "pictures" / "fish" / "fish.webp").read_bytes() == FISH


def test_what_is_another_file_is_refused(rows: list[dict[str, str]], tmp_path: Path) -> None:
    rows[1]["sha256"] = digest(b"another")
    with pytest.raises(SystemExit, match=r"scene\.jpg of some is not the picture that it was, by its SHA-256"):
        fetch_photographs.fetch(tmp_path, [(tmp_path / "held").as_uri()], rows)
    rows[1]["member"] = "usr/share/none.jpg"
    with pytest.raises(SystemExit, match=r"some lacks usr/share/none\.jpg"):
        fetch_photographs.fetch(tmp_path, [(tmp_path / "held").as_uri()], rows)
    (tmp_path / "held" / "some_1_all.deb").write_bytes(b"!<arch>\n")
    with pytest.raises(SystemExit, match="it is another file, by its SHA-256"):
        fetch_photographs.fetch(tmp_path, [(tmp_path / "held").as_uri()], rows)


def test_without_a_network_it_is_said_what_to_do(rows: list[dict[str, str]], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Without a network, bring the packages in a folder: --from FOLDER; or give"):
        fetch_photographs.fetch(tmp_path, ["file:///nowhere", "http://127.0.0.1:9"], rows)


def test_packed_resources_are_read() -> None:
    assert dict(fetch_photographs.resource_files(resources(FISH, packed=True))) == {
        PATH: FISH,
        "/gcompris/main.qml": b"no",
    }
    with pytest.raises(ValueError, match="no file of Qt's resources"):
        [*fetch_photographs.resource_files(b"RIFF")]


def test_the_table_has_each_published_picture_and_its_author() -> None:
    table = fetch_photographs.read_table()
    assert {row["package"] for row in table} == {*fetch_photographs.PACKAGES}
    assert all(len(row["sha256"]) == 64 and row["author"] for row in table)
    authors = {str(Path(row["file"]).with_suffix("")): row["author"] for row in table}
    published = load_published(PHOTOGRAPHS, progress=False)
    assert isinstance(published, Published)
    for row in published.found.attributions:
        assert authors[str(Path(row["file"]).with_suffix(""))] == row["author"]

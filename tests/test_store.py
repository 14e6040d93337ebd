"""Results on disk: what comes back is what went in, or nothing with a warning."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pure_nb.store import Store, StoreWarning, fingerprint, write_atomically

KEY = {"step": "x", "n": 3, "weights": "abc"}
DTYPES = st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int32, np.int8, np.uint8, np.bool_])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=9) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    data=st.data(),
    names=st.lists(st.from_regex(r"[a-z0-9.]{1,8}", fullmatch=True), min_size=0, max_size=3, unique=True),
    note=JSON,
)
def test_arrays_come_back(data: Any, names: list[str], note: object) -> None:
    shapes = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    arrays = {name: data.draw(hnp.arrays(data.draw(DTYPES), data.draw(shapes))) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        store.save_arrays("name", KEY, arrays, note)
        found = store.load_arrays("name", KEY)
    assert found is not None
    assert found[1] == note
    assert set(found[0]) == set(arrays)
    for name, array in arrays.items():
        assert found[0][name].dtype == array.dtype
        assert found[0][name].shape == array.shape
        assert found[0][name].tobytes() == array.tobytes()


def test_arrays_that_are_not_contiguous(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[::2, ::-3].T
    Store(tmp_path).save_arrays("name", KEY, {"a": array, "broadcast": np.broadcast_to(np.int64(3), (2, 2))})
    found = Store(tmp_path).load_arrays("name", KEY)
    assert found is not None
    assert (found[0]["a"] == array).all()
    assert (found[0]["broadcast"] == 3).all()


def test_tables_come_back(tmp_path: Path) -> None:
    table = pd.DataFrame({"channel": [3, 1], "score": [0.5, np.nan], "meanings": ["a cat, 50%", ""], "k": [1, 2]})
    store = Store(tmp_path)
    store.save_table("neurons", KEY, table, {"rows": 2})
    found = store.load_table("neurons", KEY)
    assert found is not None
    pd.testing.assert_frame_equal(found[0], table)
    assert found[1] == {"rows": 2}


def test_nothing_there(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    store = Store(tmp_path / "nowhere")
    assert store.load_arrays("name", KEY) is None
    assert store.load_table("name", KEY) is None
    assert store.manifests() == []
    store.clear()
    assert not recwarn.list


def test_another_key_or_name_is_another_result(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    store = Store(tmp_path)
    store.save_arrays("name", KEY, {"a": np.zeros(2)})
    assert store.load_arrays("name", {**KEY, "n": 4}) is None
    assert store.load_arrays("other", KEY) is None
    assert store.load_table("name", KEY) is None
    assert not recwarn.list


def saved(tmp_path: Path, kind: str) -> tuple[Path, Any]:
    store = Store(tmp_path)
    if kind == "arrays":
        return store.save_arrays("name", KEY, {"a": np.arange(50.0)}), lambda: store.load_arrays("name", KEY)
    table = pd.DataFrame({"a": np.arange(50.0)})
    return store.save_table("name", KEY, table), lambda: store.load_table("name", KEY)


@pytest.mark.parametrize("kind", ["arrays", "table"])
@pytest.mark.parametrize("where", [0, 30, 200, -1])
def test_a_flipped_bit(tmp_path: Path, kind: str, where: int) -> None:
    path, load = saved(tmp_path, kind)
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)
    with pytest.warns(StoreWarning, match=f"{path.name} is not used and will be computed again: .*checksum"):
        assert load() is None


@pytest.mark.parametrize("kind", ["arrays", "table"])
@pytest.mark.parametrize("left", [0, 10, 100])
def test_truncated(tmp_path: Path, kind: str, left: int) -> None:
    path, load = saved(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.warns(StoreWarning, match="checksum"):
        assert load() is None


def test_files_swapped_with_their_manifests(tmp_path: Path) -> None:
    store, other = Store(tmp_path), {**KEY, "n": 4}
    mine = store.save_arrays("name", KEY, {"a": np.zeros(3)})
    theirs = store.save_arrays("name", other, {"a": np.ones(3)})
    for suffix in ("", ".json"):
        Path(f"{theirs}{suffix}").replace(f"{mine}{suffix}")
    with pytest.warns(StoreWarning, match="its manifest belongs to another result"):
        assert store.load_arrays("name", KEY) is None


def test_file_swapped_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    mine = store.save_arrays("name", KEY, {"a": np.zeros(3)})
    store.save_arrays("name", {**KEY, "n": 4}, {"a": np.ones(3)}).replace(mine)
    with pytest.warns(StoreWarning, match="checksum"):
        assert store.load_arrays("name", KEY) is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b"{}", b'"text"', b"\xff\xfe", b'{"sha256": "0", "key": {}}']
)
def test_a_damaged_manifest(tmp_path: Path, content: bytes) -> None:
    path, load = saved(tmp_path, "arrays")
    Path(f"{path}.json").write_bytes(content)
    with pytest.warns(StoreWarning, match="its manifest is damaged"):
        assert load() is None
    Store(tmp_path).manifests()  # must not fall over it either


def test_a_file_without_a_manifest_was_never_finished(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path, load = saved(tmp_path, "arrays")
    Path(f"{path}.json").unlink()
    assert load() is None
    assert not recwarn.list


def test_a_file_that_is_signed_but_no_safetensors(tmp_path: Path) -> None:
    path, load = saved(tmp_path, "arrays")
    path.write_bytes(b"something else")
    Store(tmp_path)._sign(path, KEY, None)
    with pytest.warns(StoreWarning, match="is not used"):
        assert load() is None


def test_a_writer_that_dies_leaves_nothing(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        path.write_bytes(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "new.bin", write)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.bin").write_bytes(b"whole")
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "old.bin", write)
    assert (tmp_path / "old.bin").read_bytes() == b"whole"
    assert len(list(tmp_path.iterdir())) == 1


def test_dying_between_file_and_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.save_arrays("name", KEY, {"a": np.zeros(3)})

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_sign", die)
        with pytest.raises(KeyboardInterrupt):
            store.save_arrays("name", KEY, {"a": np.ones(3)})
    with pytest.warns(StoreWarning, match="checksum"):  # the new file with the old manifest
        assert store.load_arrays("name", KEY) is None


def test_written_files_can_be_read_as_any_other(tmp_path: Path) -> None:
    """Not for this user alone, as temporary files are: a web server has to read the book's pictures."""
    old = os.umask(0o022)
    try:
        write_atomically(tmp_path / "a" / "new.bin", lambda path: path.write_bytes(b"x"))
    finally:
        os.umask(old)
    if os.name == "posix":
        assert stat.S_IMODE((tmp_path / "a" / "new.bin").stat().st_mode) == 0o644


@given(st.dictionaries(st.text(max_size=5), JSON, min_size=2, max_size=5))
def test_fingerprints_do_not_depend_on_the_order(key: dict[str, Any]) -> None:
    assert fingerprint(key) == fingerprint(dict(reversed(key.items())))
    assert fingerprint({**key, "another one": 1}) != fingerprint(key)


def test_fingerprints_tell_types_apart() -> None:
    assert len({fingerprint({"n": value}) for value in (1, "1", None, True, [1], 1.5)}) == 6
    assert len(fingerprint(KEY)) == 12


def test_the_same_bytes_twice(tmp_path: Path) -> None:
    files = []
    for folder in ("first", "second"):
        store = Store(tmp_path / folder)
        store.save_arrays("name", KEY, {"b": np.arange(3.0), "a": np.zeros((2, 2))}, {"note": [1]})
        store.save_table("name", KEY, pd.DataFrame({"a": [1, 2]}))
        files.append({path.name: path.read_bytes() for path in store.folder.iterdir()})
    assert files[0] == files[1]
    assert len(files[0]) == 4


def test_manifests_and_parts(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_arrays("name", KEY, {"a": np.zeros(1)}, "said")
    part = store.part("name", KEY)
    part.save_arrays("piece", {"i": 1}, {"a": np.zeros(1)})
    (manifest,) = store.manifests()
    assert manifest["key"] == KEY
    assert manifest["note"] == "said"
    assert manifest["file"] == store.path("name", KEY).name
    assert json.loads(Path(f"{store.path('name', KEY)}.json").read_text()) == manifest
    assert part.folder.parent == tmp_path
    part.clear()
    assert not part.folder.exists()
    assert store.load_arrays("name", KEY) is not None

"""Results on disk: what comes back is what went in, or nothing with a warning."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import hypothesis.extra.numpy as hnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pure_nb.compute.store import Store, fingerprint, write_atomically
from pure_nb.errors import StoreError, StoreWarning

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
    if kind == "mapped":
        path = store.save_mapped("name", KEY, lambda new: new((50,), np.float64).fill(1.5))
        return path, lambda: store.load_mapped("name", KEY)
    table = pd.DataFrame({"a": np.arange(50.0)})
    return store.save_table("name", KEY, table), lambda: store.load_table("name", KEY)


@pytest.mark.parametrize("kind", ["arrays", "table", "mapped"])
@pytest.mark.parametrize("where", [0, 30, 200, -1])
def test_a_flipped_bit(tmp_path: Path, kind: str, where: int) -> None:
    path, load = saved(tmp_path, kind)
    content = bytearray(path.read_bytes())
    content[where] ^= 4
    path.write_bytes(content)
    with pytest.warns(StoreWarning, match=f"{path.name} is not used and will be computed again: .*checksum"):
        assert load() is None


@pytest.mark.parametrize("kind", ["arrays", "table", "mapped"])
@pytest.mark.parametrize("left", [0, 10, 100])
def test_truncated(tmp_path: Path, kind: str, left: int) -> None:
    path, load = saved(tmp_path, kind)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.warns(StoreWarning, match="checksum"):
        assert load() is None


@pytest.mark.parametrize("kind", ["arrays", "table", "mapped"])
def test_what_ships_is_read_where_the_own_folder_lacks_it(tmp_path: Path, kind: str) -> None:
    shipped, own = tmp_path / "shipped", tmp_path / "own"
    path, _ = saved(shipped, kind)
    before = {file.name: file.read_bytes() for file in shipped.iterdir()}
    store = Store(own, shipped)
    found = {"arrays": store.load_arrays, "table": store.load_table, "mapped": store.load_mapped}[kind]
    assert found("name", KEY) is not None
    assert found("name", {**KEY, "n": 4}) is None
    assert store.found("name", KEY, path.suffix) == path
    assert not own.exists()
    assert store.manifests() == store.results() == store.prune(lambda _: True) == []
    store.remove("name", KEY, path.suffix)
    store.clear()
    assert {file.name: file.read_bytes() for file in shipped.iterdir()} == before
    mine, _ = saved(own, kind)
    assert store.found("name", KEY, path.suffix) == mine
    assert store.part("name", KEY).found("name", KEY, path.suffix) is None
    mine.unlink()
    path.write_bytes(b"damaged")
    with pytest.warns(StoreWarning, match="is not used and will be computed again: .*checksum"):
        assert found("name", KEY) is None


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


@pytest.mark.parametrize("kind", ["arrays", "table", "mapped"])
@pytest.mark.parametrize("name", ["", ".json"])
def test_a_pickle_in_place_of_a_file(tmp_path: Path, kind: str, name: str) -> None:
    """Nothing in a store is ever unpickled, also where everything else about a file is right."""

    class Bomb:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path, load = saved(tmp_path, kind)
    if name:
        Path(f"{path}.json").write_bytes(pickle.dumps(Bomb()))
    else:
        path.write_bytes(pickle.dumps(Bomb()))
        Store(tmp_path)._sign(path, KEY, None)
    with pytest.warns(StoreWarning, match="is not used"):
        assert load() is None
    if kind == "mapped" and not name:  # NumPy's own format can hold a pickle
        np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
        Store(tmp_path)._sign(path, KEY, None)
        with pytest.warns(StoreWarning, match="is not used"):
            assert load() is None
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("field", ["note", "file", "key", "sha256", "seal"])
def test_a_manifest_that_lies(tmp_path: Path, field: str) -> None:
    path, load = saved(tmp_path, "arrays")
    manifest = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))
    manifest[field] = {"step": "another"} if field == "key" else "0" * 64
    Path(f"{path}.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.warns(StoreWarning, match="its manifest does not match its own checksum"):
        assert load() is None


def test_arrays_in_files(tmp_path: Path) -> None:
    store, values = Store(tmp_path), np.arange(24, dtype=np.float32).reshape(4, 6)

    def fill(new: Any) -> None:
        new(values.shape, values.dtype)[:] = values

    store.save_mapped("name", KEY, fill)
    found = store.load_mapped("name", KEY)
    assert isinstance(found, np.memmap)
    np.testing.assert_array_equal(found, values)
    with pytest.raises(ValueError, match="read-only"):
        found[0, 0] = 1


def test_an_array_in_a_file_is_let_go_before_the_file_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows renames no file that is mapped."""
    made: list[weakref.ref[Any]] = []
    replace = os.replace

    def on_windows(old: Path, new: Path) -> None:
        if new.suffix == ".npy" and made[0]() is not None:
            raise PermissionError(13, "The process cannot access the file")
        replace(old, new)

    monkeypatch.setattr(os, "replace", on_windows)
    store = Store(tmp_path)
    store.save_mapped("name", KEY, lambda new: made.append(weakref.ref(new((3,), np.float32))))
    assert store.load_mapped("name", KEY) is not None


def test_pruned_where_no_open_file_can_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, where a lock that is held is an open file."""
    store, names = tidied(tmp_path)
    unlink = Path.unlink

    def on_windows(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".lock":
            raise PermissionError(13, "The process cannot access the file")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", on_windows)
    assert {result.name for result in store.prune(lambda result: result.name != "whole")} == {"half", "lost"}
    assert not names["lost"].exists()


def test_no_room_for_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before the file is written to, since writing to a mapped file on a full disk kills the process."""

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(StoreError, match=r"name-.*npy' can't be written: .*No space left on device.*Make room"):
        Store(tmp_path).save_mapped("name", KEY, lambda new: new((3,), np.float32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="limits files as POSIX does")
def test_a_full_disk(tmp_path: Path) -> None:
    """In a process of its own, which may write 64 KiB to a file and no more: what it had is kept, and found again."""
    script = f"""
import resource, signal
import numpy as np, pandas as pd
from pathlib import Path
from pure_nb.compute.store import Store
from pure_nb.errors import StoreError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
store = Store(Path({str(tmp_path)!r}))
store.save_arrays("small", {{}}, {{"a": np.arange(9)}})
noise = np.random.default_rng(0).random(1 << 16)
for save in (
    lambda: store.save_arrays("large", {{}}, {{"a": noise}}),
    lambda: store.save_table("large", {{}}, pd.DataFrame({{"a": noise}})),
    lambda: store.save_mapped("large", {{}}, lambda new: new(noise.shape, noise.dtype)),
):
    try:
        save()
    except StoreError as problem:
        assert "Make room, or name another folder" in str(problem), problem
        print("refused")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["refused"] * 3, done.stderr
    assert Store(tmp_path).load_arrays("small", {}) is not None
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="can't be written"):
        store.save_arrays("name", KEY, {})
    with pytest.raises(StoreError, match="can't be written"), store.claimed("name", KEY):
        pass


@pytest.mark.slow
def test_one_process_at_a_time(tmp_path: Path) -> None:
    store, ready = Store(tmp_path), tmp_path / "ready"
    script = f"""
import time
from pathlib import Path
from pure_nb.compute.store import Store
with Store(Path({str(tmp_path)!r})).claimed("name", {KEY!r}):
    Path({str(ready)!r}).touch()
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script]) as other:
        while not ready.exists():
            time.sleep(0.01)
        half = store.folder / f".name-{fingerprint(KEY)}-{'0' * 16}.safetensors"
        half.write_bytes(b"half of it")
        with store.claimed("another", KEY):  # at once
            assert half.exists()
        timer = threading.Timer(0.3, other.kill)
        timer.start()
        with (  # noqa: PT031, the warning comes before the block
            pytest.warns(StoreWarning, match=f"waiting for process {other.pid} on .*, which computes 'name' in"),
            store.claimed("name", KEY),
        ):
            assert other.wait() == (-signal.SIGKILL if os.name == "posix" else 1)  # a killed process holds no claim
            assert not half.exists()  # and what it had half written is gone
    with store.claimed("name", KEY):
        pass


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


@pytest.mark.skipif(os.name != "posix", reason="POSIX's modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o002, 0o664), (0o077, 0o600)])
def test_all_files_have_the_mode_that_the_user_gives_new_files(tmp_path: Path, mask: int, mode: int) -> None:
    """Or else whoever shares a store can read half of it."""
    store, old = Store(tmp_path), os.umask(mask)
    try:
        with store.claimed("arrays", KEY):
            store.save_arrays("arrays", KEY, {"a": np.zeros(3)})
        store.save_table("table", KEY, pd.DataFrame({"a": [1]}))
        store.save_mapped("mapped", KEY, lambda new: new((3,), np.float32).fill(1))
    finally:
        os.umask(old)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert len(modes) == 7
    assert set(modes.values()) == {mode}


def test_a_file_that_can_not_be_read_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Say one of another user in a shared store."""
    path, load = saved(tmp_path, "arrays")
    monkeypatch.setattr("pure_nb.compute.store._checksum", Mock(side_effect=PermissionError(13, "Permission denied")))
    with pytest.warns(StoreWarning, match=f"{path.name} is not used and will be computed again: .*Permission denied"):
        assert load() is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills processes that are forked")
def test_what_killed_processes_leave_is_swept_up(tmp_path: Path) -> None:
    store = Store(tmp_path)
    child = os.fork()
    if not child:
        with store.claimed("name", KEY), store.claimed("other", KEY):
            (tmp_path / f".name-{fingerprint(KEY)}-{'0' * 16}.npy").write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.glob(".*.owner"))) == 2
    with store.claimed("third", KEY), store.claimed("fourth", KEY):  # whatever is claimed next
        assert {path.name.partition("-")[0] for path in tmp_path.glob(".*.owner")} == {".third", ".fourth"}
        assert not list(tmp_path.glob("*.npy"))
    assert not list(tmp_path.glob(".*.owner"))


def tidied(tmp_path: Path) -> tuple[Store, dict[str, Any]]:
    """A store with a whole result, an unfinished one, one without a manifest, and files that are not ours."""
    store = Store(tmp_path)
    names = {}
    with store.claimed("whole", KEY):
        names["whole"] = store.save_arrays("whole", KEY, {"a": np.zeros(9)})
    with store.claimed("half", KEY):
        store.part("half", KEY).part("run", {}).save_arrays("shard", {}, {"a": np.zeros(3)})
        names["half"] = store.part("half", KEY).folder
    with store.claimed("lost", KEY):
        names["lost"] = store.save_table("lost", KEY, pd.DataFrame({"a": [1]}))
        Path(f"{names['lost']}.json").unlink()
    (tmp_path / f".lost-{fingerprint(KEY)}.lock").touch()  # as a killed process leaves it, on Windows, too
    foreign = ["notes.txt", "weights-0123456789ab.safetensors", "photos-0123456789ab/cat.png", "table.parquet"]
    for name in foreign:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    return store, {**names, "foreign": [tmp_path / name for name in foreign]}


def test_results_are_listed(tmp_path: Path) -> None:
    store, names = tidied(tmp_path)
    found = {result.name: result for result in store.results()}
    assert set(found) == {"whole", "half", "lost"}
    assert [found[name].path for name in found] == [names[name] for name in found]
    assert found["whole"].key == KEY
    assert found["half"].key is None
    assert found["lost"].key == {}
    whole = [names["whole"], Path(f"{names['whole']}.json")]
    assert found["whole"].size == sum(path.stat().st_size for path in whole)
    assert found["half"].size == sum(path.stat().st_size for path in names["half"].rglob("*.*"))
    assert abs(found["whole"].written - time.time()) < 60
    assert Store(tmp_path / "nowhere").results() == []


def test_pruned(tmp_path: Path) -> None:
    store, names = tidied(tmp_path)
    gone = store.prune(lambda result: result.name != "whole")
    assert {result.name for result in gone} == {"half", "lost"}
    assert store.load_arrays("whole", KEY) is not None
    assert all(path.read_text() == "mine" for path in names["foreign"])
    assert not names["half"].exists()
    assert not names["lost"].exists()
    left = [f".whole-{fingerprint(KEY)}.lock"] if os.name == "posix" else []  # on Windows locks go with their holders
    assert [path.name for path in tmp_path.glob(".*")] == left
    other = Store(tmp_path / "other")
    other.save_arrays("whole", KEY, {"a": np.zeros(9)})
    other.prune(lambda result: True)
    assert not other.folder.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="another process is a fork")
def test_nothing_is_pruned_while_another_process_computes(tmp_path: Path) -> None:
    store, _ = tidied(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    ready, child = tmp_path.parent / "ready", os.fork()
    if not child:
        with store.claimed("half", KEY):
            ready.touch()
            time.sleep(60)
    while not ready.exists():
        time.sleep(0.01)
    with pytest.raises(StoreError, match=f"is in use by process {child} on .*nothing in it is removed"):
        store.prune(lambda result: True)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    (tmp_path / f".half-{fingerprint(KEY)}.owner").unlink()
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    assert len(store.prune(lambda result: True)) == 3


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
    assert json.loads(Path(f"{store.path('name', KEY)}.json").read_text(encoding="utf-8")) == manifest
    assert part.folder.parent == tmp_path
    part.clear()
    assert not part.folder.exists()
    assert store.load_arrays("name", KEY) is not None


def test_a_bit_far_into_a_large_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_arrays("large", KEY, {"zeros": np.zeros(400_000)})
    (path,) = tmp_path.glob("large-*.safetensors")
    content = bytearray(path.read_bytes())
    content[3_000_000] ^= 4
    path.write_bytes(content)
    with pytest.warns(StoreWarning, match="checksum"):
        assert store.load_arrays("large", KEY) is None

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeopt.cache import CHECKPOINTS, Cache, default_root, file_sha256, key_of


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"weights" * 1000)
    return path


@pytest.fixture
def package(tmp_path):
    path = tmp_path / "net.mlpackage"
    (path / "Data" / "weights").mkdir(parents=True)
    (path / "Manifest.json").write_text("{}")
    (path / "Data" / "weights" / "weight.bin").write_bytes(bytes(range(256)))
    return path


KEY = key_of({"a": 1})


def entry(cache, key=KEY):
    return cache.root / key[:2] / key


@pytest.mark.parametrize("kind", ["file", "package"])
def test_what_was_kept_comes_back_the_same(cache, tmp_path, request, kind):
    path = request.getfixturevalue(kind)
    cache.put(KEY, path, {"notes": ["x"]})
    out = tmp_path / "out"
    assert cache.get(KEY, out) == {"notes": ["x"]}
    assert file_sha256(out) == file_sha256(path) and out.is_dir() == path.is_dir()
    assert cache.get(key_of({"a": 2}), tmp_path / "other") is None and not (tmp_path / "other").exists()


@pytest.mark.parametrize("kind", ["file", "package"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "record", "no record", "other name"])
def test_a_damaged_entry_is_not_used_and_is_made_again(cache, tmp_path, request, kind, damage):
    path = request.getfixturevalue(kind)
    cache.put(KEY, path, {})
    victim = max((p for p in entry(cache).rglob("*") if p.is_file() and p.name != "entry.json"), key=str)
    record = entry(cache) / "entry.json"
    if damage == "flip":
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "cut":
        victim.write_bytes(victim.read_bytes()[:-1])
    elif damage == "gone":
        victim.unlink()
    elif damage == "record":
        record.write_text(record.read_text()[:-5])
    elif damage == "no record":
        record.unlink()
    else:
        record.write_text(json.dumps(json.loads(record.read_text()) | {"name": "elsewhere"}))
    out = tmp_path / "out"
    assert cache.get(KEY, out) is None
    assert not out.exists()
    cache.put(KEY, path, {"again": True})
    assert cache.get(KEY, out) == {"again": True}


def test_a_cache_that_cannot_be_written_keeps_nothing_and_says_nothing(tmp_path, file):
    (tmp_path / "blocked").write_text("a file")
    cache = Cache(tmp_path / "blocked" / "cache")
    cache.put(KEY, file, {})
    assert cache.get(KEY, tmp_path / "out") is None


def test_what_was_unused_longest_is_dropped(tmp_path, file):
    import os

    cache = Cache(tmp_path / "cache", max_bytes=3 * file.stat().st_size + 2000)
    keys = [key_of({"n": n}) for n in range(4)]
    for age, key in enumerate(keys[:3]):
        cache.put(key, file, {})
        os.utime(entry(cache, key), (1000 + age, 1000 + age))
    assert cache.get(keys[0], tmp_path / "used") is not None  # now the youngest
    cache.put(keys[3], file, {})
    kept = [cache.get(key, tmp_path / f"out{i}") is not None for i, key in enumerate(keys)]
    assert kept == [True, False, True, True]


def test_two_writers_of_one_entry_do_not_tear_it(cache, tmp_path, file, package):
    threads = [threading.Thread(target=cache.put, args=(KEY, file, {"by": i})) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get(KEY, tmp_path / "out") is not None
    assert not list(cache.root.rglob(".new-*"))


def test_names_and_contents_of_a_folder_both_count(tmp_path, package):
    before = file_sha256(package)
    (package / "Manifest.json").rename(package / "manifest.json")
    renamed = file_sha256(package)
    (package / "manifest.json").write_text("[]")
    assert len({before, renamed, file_sha256(package)}) == 3


def test_the_key_does_not_depend_on_the_order_of_its_parts():
    assert key_of({"a": 1, "b": {"c": 2, "d": 3}}) == key_of({"b": {"d": 3, "c": 2}, "a": 1})


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=5), st.none()), max_size=4))
def test_another_value_is_another_key(parts):
    assert key_of(parts) != key_of(parts | {"one more": 1})


def test_the_users_cache_folder_is_chosen_by_environment(monkeypatch):
    monkeypatch.setenv("EDGEOPT_CACHE", "/somewhere/c")
    assert default_root() == Path("/somewhere/c")
    monkeypatch.delenv("EDGEOPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_root() == Path("/x/edgeopt")


def test_entries_are_listed_dropped_and_cleared(tmp_path):
    cache = Cache(tmp_path / "cache")
    made = tmp_path / "made"
    made.mkdir()
    (made / "a").write_bytes(b"12345")
    for stage in ("prune", "distill"):
        cache.put(key_of({"stage": stage}), made, {"stage": stage})
    (tmp_path / "cache" / CHECKPOINTS / "k").mkdir(parents=True)
    (tmp_path / "cache" / CHECKPOINTS / "k" / "checkpoint.pt").write_bytes(b"1234567")
    assert {e["stage"] for e in cache.entries()} == {"prune", "distill"}
    assert all(e["size_bytes"] > 5 and e["name"] == "made" for e in cache.entries())
    cache.drop(key_of({"stage": "prune"}))
    assert [e["stage"] for e in cache.entries()] == ["distill"]
    assert cache.clear() > 12 and cache.entries() == []
    assert not list((tmp_path / "cache" / CHECKPOINTS).iterdir())

import json
import os
import random
import threading
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepdistill_resources import chunk_store
from deepdistill_resources.chunk_manifests import manifest
from deepdistill_resources.chunk_store import ChunkStore, FailedAttempt
from deepdistill_resources.committed_keys import CommittedKeys, KeyTwice, packed
from deepdistill_resources.errors import StorageError
from deepdistill_resources.lake import Lake

SCHEMA = {"key": pl.String(), "value": pl.String()}


def open_store(lake, directory="chunks", **settings_):
    return ChunkStore(lake, directory, "key", SCHEMA, settings_)


def rows(keys, value="v"):
    return pl.DataFrame({"key": list(keys), "value": [f"{value}{key}" for key in keys]}, schema=SCHEMA)


@pytest.fixture
def local(tmp_path):
    return Lake(root=str(tmp_path / "lake"))


both = pytest.mark.parametrize("lake", ["directory", "s3"], indirect=True)


@both
def test_what_is_committed_is_read_back_and_not_asked_again(lake):
    store = open_store(lake)
    assert store.missing(["c", "a", "b", "a"]) == ["a", "b", "c"]
    assert store.commit(rows("ab")) == 2
    again = open_store(lake)
    assert again.missing(["d", "b", "a"]) == ["d"]
    assert again.read(["b", "d"])["key"].to_list() == ["b"]
    assert pl.concat(again.scan()).equals(rows("ab"))


@both
def test_a_key_that_another_writer_committed_first_stays_his(lake):
    first, second = open_store(lake), open_store(lake)
    assert first.commit(rows("abc", "first ")) == 3
    assert second.commit(rows("bcd", "second ")) == 1
    found = open_store(lake).read("abcd")
    assert found["value"].to_list() == ["first a", "first b", "first c", "second d"]


def test_the_settings_decide_the_directory(local):
    open_store(local, model="r1").commit(rows("a"))
    assert open_store(local, model="r2").missing("a") == ["a"]
    assert open_store(local, model="r1").missing("a") == []


def test_a_directory_of_other_settings_is_refused_with_the_differing_names(local):
    store = open_store(local, model="r1", temperature=0.6)
    local.write_bytes(f"{store.directory}/settings.json", b'{"model": "r2", "temperature": 0.6}')
    with pytest.raises(StorageError, match=r"other settings \(model\)"):
        open_store(local, model="r1", temperature=0.6)


@pytest.mark.parametrize(
    "frame",
    [
        pl.DataFrame({"key": ["a"], "other": ["x"]}),
        pl.DataFrame({"key": ["a", "a"], "value": ["x", "y"]}),
        pl.DataFrame({"key": [None], "value": ["x"]}, schema=SCHEMA),
    ],
    ids=["foreign schema", "twice the same key", "no key"],
)
def test_rows_that_do_not_fit_are_refused(local, frame):
    with pytest.raises(StorageError):
        open_store(local).commit(frame)


def test_foreign_and_torn_files_are_ignored(local):
    store = open_store(local)
    store.commit(rows("ab"))
    for name in ("data/0000.parquet", "data/.x.tmp", "manifest/notes.txt", "manifest/1.json", "attempts/torn.json"):
        local.write_bytes(f"{store.directory}/{name}", b"not ours {")
    again = open_store(local)
    assert again.missing("abc") == ["c"]
    assert again.read("ab").height == 2
    assert again.attempts() == []


def test_a_new_column_is_null_in_old_rows(local):
    open_store(local).commit(rows("a"))
    wider = ChunkStore(local, "chunks", "key", {**SCHEMA, "added": pl.Int64()})
    assert wider.read("a").row(0, named=True) == {"key": "a", "value": "va", "added": None}


def test_deleting_a_manifest_gives_its_keys_back(local):
    store = open_store(local)
    for keys in ("ab", "cd", "ef"):
        store.commit(rows(keys))
    local.delete(f"{store.directory}/manifest/00000002.json")
    again = open_store(local)
    assert again.missing("abcdef") == ["c", "d"]
    assert again.commit(rows("cd")) == 2
    assert open_store(local).missing("abcdef") == []


def test_the_sweep_removes_old_orphans_only(local):
    store = open_store(local)
    store.commit(rows("ab"))
    orphans = [f"{store.directory}/data/{name}" for name in ("0.parquet", ".1.parquet.aa.tmp")]
    for path in orphans:
        local.write_bytes(path, b"x")
    assert store.sweep() == []
    for path in local.list_old_files(store.directory, 0):
        os.utime(local.uri(path), (0, 0))
    assert store.sweep() == sorted(orphans)
    assert open_store(local).read("ab").height == 2


def test_failed_attempts_are_kept_for_the_record_but_not_as_rows(local):
    store = open_store(local)
    attempts = [FailedAttempt("a", 1, "server_error", "HTTP 500")]
    store.log_attempts(attempts)
    assert open_store(local).attempts() == attempts
    assert store.missing("a") == ["a"]


key_sets = st.lists(st.sets(st.sampled_from("abcdefghij"), min_size=1), min_size=1, max_size=8)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(commits=key_sets, writers=st.lists(st.integers(0, 2), min_size=8, max_size=8))
def test_whatever_is_committed_by_whom_each_key_is_there_once_with_its_first_value(tmp_path_factory, commits, writers):
    lake = Lake(root=str(tmp_path_factory.mktemp("lake")))
    stores = [open_store(lake) for _ in range(3)]
    expected = {}
    for number, (keys, writer) in enumerate(zip(commits, writers, strict=False)):
        new = keys - expected.keys()
        assert stores[writer].commit(rows(sorted(keys), f"{number} ")) == len(new)
        expected |= {key: f"{number} {key}" for key in new}
    for store in [*stores, open_store(lake)]:
        store.refresh()
        found = pl.concat(store.scan())
        assert dict(zip(found["key"], found["value"], strict=True)) == expected
        assert found.height == len(expected)
        assert store.missing("abcdefghij") == sorted(set("abcdefghij") - expected.keys())


@both
def test_racing_writers_commit_each_key_once(lake):
    keys = [f"{number:03d}" for number in range(120)]
    won = []

    def write(seed):
        store, order = open_store(lake), keys.copy()
        random.Random(seed).shuffle(order)
        won.append(sum(store.commit(rows(order[start : start + 10])) for start in range(0, 120, 10)))

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(won) == 120
    assert sorted(pl.concat(open_store(lake).scan())["key"]) == keys


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(chunk_store, "BLOCK", 4)


def filled(lake, chunks):
    store = open_store(lake)
    for number in range(chunks):
        store.commit(rows([f"{number}a", f"{number}b"]))
    return store


class Reads:
    """Paths that a store reads, by their folder."""

    def __init__(self, lake):
        self.lake, self.paths, self.is_local = lake, [], lake.is_local

    def read_bytes(self, path):
        self.paths.append(path.split("/")[-2])
        return self.lake.read_bytes(path)

    def __getattr__(self, name):
        return getattr(self.lake, name)


@both
def test_full_blocks_are_read_instead_of_their_manifests(lake, small_blocks):
    store = filled(lake, 10)
    assert len(lake.list_files(f"{store.directory}/blocks")) == 2
    reads = Reads(lake)
    again = open_store(reads)
    assert again.missing([f"{number}{part}" for number in range(11) for part in "ab"]) == ["10a", "10b"]
    assert again.chunks() == store.chunks()
    # one manifest stands for its block, two have none
    assert reads.paths.count("blocks") == 2 and reads.paths.count("manifest") == 4
    assert again.commit(rows(["9a", "10a"])) == 1 and open_store(lake).read(["10a", "3b"]).height == 2


def test_blocks_of_another_size_do_not_count_twice(local, monkeypatch):
    for size in (4, 3, 8):
        monkeypatch.setattr(chunk_store, "BLOCK", size)
        assert sum(chunk.rows for chunk in (filled(local, 9) if size == 4 else open_store(local)).chunks()) == 18
    assert open_store(local).missing(["0a", "8b", "9a"]) == ["9a"]


def test_torn_foreign_and_old_blocks_are_ignored_and_made_again(local, small_blocks):
    store = filled(local, 8)
    first, second = local.list_files(f"{store.directory}/blocks")
    whole, everything = local.read_bytes(first), store.chunks()
    for damage in (b"", whole[:-1], whole[:100], whole.replace(b"[", b"(", 1), local.read_bytes(second), b"x\ny"):
        local.write_bytes(first, damage)
        again = open_store(local)
        assert again.missing(["0a", "7b", "8a"]) == ["8a"] and again.chunks() == everything
        assert open_store(Reads(local)).chunks() == everything
        assert len(local.read_bytes(first)) == len(whole)


def test_a_deleted_manifest_gives_its_keys_back_also_from_a_block_and_its_number_is_not_used_again(local, small_blocks):
    store = filled(local, 8)
    for number in (3, 8):
        local.delete(f"{store.directory}/manifest/{number:08d}.json")
    again = open_store(local)
    assert again.missing([f"{number}a" for number in range(8)]) == ["2a", "7a"]
    assert again.commit(rows(["2a", "2b", "7a", "7b"])) == 4
    last = open_store(local)
    assert last.missing([f"{number}a" for number in range(8)]) == []
    assert [chunk.number for chunk in last.chunks()] == [1, 2, 4, 5, 6, 7, 9]


@settings(deadline=None, max_examples=60)
@given(
    commits=st.lists(st.sets(st.integers(0, 300), min_size=1, max_size=40), max_size=12),
    merged_at=st.integers(0, 60),
    digits=st.booleans(),
)
def test_the_keys_of_chunks_are_those_of_a_dict(commits, merged_at, digits):
    names = [f"{number * 7919 % 5:016x}{number:016x}" if digits else f"key {number}" for number in range(302)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepdistill_resources.committed_keys.MERGED_AT", merged_at)
        keys, expected = CommittedKeys(), {}
        for chunk, numbers in enumerate(commits, start=1):
            new = [names[number] for number in sorted(numbers) if names[number] not in expected]
            keys.add(packed(new), [chunk] * len(new))
            expected |= dict.fromkeys(new, chunk)
            assert keys.chunks_of(names).tolist() == [expected.get(name, 0) for name in names]
        assert len(keys) == len(expected)
        for first, last in ((1, 3), (2, 12)):
            wanted = [packed([name]) for name, chunk in expected.items() if first <= chunk <= last]
            found = keys.of_chunks(first, last)
            assert sorted(found[at : at + 16] for at in range(0, len(found), 16)) == sorted(wanted)
        for name, chunk in expected.items():
            with pytest.raises(KeyTwice, match=f"{chunk} and 99"):
                keys.add(packed([name, *(f"more {number}" for number in range(61))]), [99] * 62)
            break


def test_a_key_in_two_chunks_is_said(local):
    store = open_store(local)
    store.commit(rows("abc"))
    twice = manifest(replace(store.chunks()[0], number=2), ["c", "d", "e"])
    local.write_bytes(f"{store.directory}/manifest/00000002.json", twice)
    with pytest.raises(StorageError, match="chunks 1 and 2 have a key in common"):
        open_store(local).missing("c")


def test_manifests_are_plain_json_with_their_keys(local):
    store = open_store(local)
    store.commit(rows("ba"))
    body = json.loads(local.read_bytes(f"{store.directory}/manifest/00000001.json"))
    assert body["keys"] == ["a", "b"]
    assert local.exists(f"{store.directory}/data/{body['data']}")

"""Sources in an object store: a real S3 API on loopback must give what the same files on this machine give, and no secret may be written anywhere."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipes import built, recipe, text_of, write_corpus, write_records
from stores import connected, served, upload

import curation
from curation.corpus.sources import Source, SourceConfig, cut, read_unit, resolve
from curation.engine.local import Engine
from curation.engine.work_directory import Digests, Work
from mixing import UserError, remote
from mixing.manifest import Manifest
from mixing.measurements import Measurement, append
from mixing.remote import Remote, filesystem, list_files, parse_url, retried

SECRET = "c0ffee-secret-of-the-test"


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    with served() as found:
        yield found


@pytest.fixture
def store(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The store as the environment names it."""
    for name, value in {**environment, "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": SECRET}.items():
        monkeypatch.setenv(name, value)
    filesystem.cache_clear()
    yield connected(environment)
    filesystem.cache_clear()


def resolved(folder: Path, **config: Any) -> Source:
    with Engine(1) as engine:
        return resolve("s", SourceConfig.model_validate(config), folder, {}, Digests(Work(folder / "work")), engine)


def test_a_recipe_from_s3_gives_the_digest_of_the_local_one_and_writes_no_secret(store: Any, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    write_corpus(corpus)
    lines = [("domain", 10, 2.0), ("domain", 20, 1.0), ("domain", 30, 1.5), ("replay", 10, 2.0), ("replay", 30, 1.0)]
    append(
        corpus / "sweep.jsonl",
        [Measurement("r", "m", name, "loss", "target", tokens, None, None, 1, value, None) for name, tokens, value in lines],
    )
    upload(store, corpus, "corpora")

    def with_measurements(path: str) -> dict[str, Any]:
        values = recipe()
        values["mixture"]["stages"][0]["weights"] = {"strategy": "optimal_durations", "measurements": path}
        return values

    values, there = with_measurements("sweep.jsonl"), with_measurements("s3://corpora/sweep.jsonl")
    there = {**there, "sources": {name: {**one, "files": _at("s3://corpora", one["files"])} for name, one in values["sources"].items()}}

    local = built(corpus, values, tmp_path / "local")
    far = built(corpus, there, tmp_path / "far", tmp_path / "other work", workers=2)

    assert far.digest == local.digest
    assert Manifest.open(tmp_path / "far").stages[0]["components"]["domain"]["weight"] == 0.4
    assert Manifest.open(tmp_path / "far").header["sources"] == Manifest.open(tmp_path / "local").header["sources"]
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes()


def _at(root: str, files: str | list[str]) -> str | list[str]:
    return f"{root}/{files}" if isinstance(files, str) else [f"{root}/{one}" for one in files]


def test_a_large_object_is_read_by_ranges_and_row_groups_as_a_file_is(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curation.corpus.sources.SMALL", 1000)
    write_corpus(tmp_path / "corpus")
    upload(store, tmp_path / "corpus", "large")

    made = []
    for number, files in enumerate((str(tmp_path / "corpus" / "**" / "*.*"), "s3://large/**/*.*")):
        source = resolved(tmp_path / str(number), files=files, key="id")
        units = cut(source, (), 4000)
        work = Work(tmp_path / str(number) / "work")
        made.append([(unit.name, read_unit(unit, work)) for unit in units])
        assert len(units) > len(source.inputs)

    assert made[0] == made[1]


def test_listing_matches_what_glob_finds(store: Any, tmp_path: Path) -> None:
    names = ["a.jsonl", "b.txt", "sub/a.jsonl", "sub/deep/c1.jsonl", ".hidden/a.jsonl", "sub/.h.jsonl", "x[1].jsonl"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("{}")
    upload(store, tmp_path / "in", "listed")

    for pattern in (
        "*",
        "*.jsonl",
        "**/*",
        "**/*.jsonl",
        "sub/**",
        "sub/*/c[0-9].jsonl",
        "s?b/a.jsonl",
        "a.jsonl",
        "**/.h*",
        "x[[]1].jsonl",
        "[!a]*.jsonl",
    ):
        expected = {str(path.relative_to(tmp_path / "in")) for path in _globbed(tmp_path / "in", pattern)}
        assert set(list_files(Remote("s3", "listed"), [pattern]).listed) == expected, pattern


def _globbed(root: Path, pattern: str) -> list[Path]:
    from glob import glob

    return [root / path for path in glob(pattern, root_dir=root, recursive=True) if (root / path).is_file()]


def test_a_place_below_a_folder_alone_means_all_files_in_it(store: Any, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    upload(store, tmp_path / "corpus", "folder")

    assert [one.path for one in resolved(tmp_path, files="s3://folder/prose/").inputs] == [
        "part-2.jsonl",
        "part-10.jsonl",
        "sub/more.jsonl.gz",
    ]


def test_what_is_not_there_is_named_without_waiting(store: Any, tmp_path: Path) -> None:
    upload(store, tmp_path, "empty")

    with pytest.raises(UserError, match=r"sources.s.files: no file matches 's3://empty/\*.jsonl'; looked below s3://empty"):
        resolved(tmp_path, files="s3://empty/*.jsonl")
    with pytest.raises(UserError, match=r"s3://empty/a\.jsonl: no such object"):
        Remote("s3", "empty/a.jsonl").open()


def test_a_store_that_does_not_answer_is_named_after_its_attempts(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    with socket.socket() as taken:  # a port that nobody listens on
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        filesystem.cache_clear()

        with pytest.raises(UserError, match=r"s3://corpora/a.jsonl: cannot be read after 2 attempts: ") as caught:
            Remote("s3", "corpora/a.jsonl").open()

    assert SECRET not in str(caught.value)


def test_an_object_that_shrinks_while_it_is_read_is_an_error_never_damage(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSES", (0.0,))
    store.create_dir("shrinks")
    for content in (b"x" * 10_000, b"x" * 100):
        with store.open_output_stream("shrinks/a") as out:
            out.write(content)
        if len(content) == 10_000:
            handle = Remote("s3", "shrinks/a").open()

    with pytest.raises(UserError, match=r"s3://shrinks/a: cannot be read"):
        handle.read()


@given(st.lists(st.booleans(), max_size=6))
def test_retried_gives_the_first_answer_or_names_what_failed(failures: list[bool]) -> None:
    answers = iter(failures)
    asked = []

    def ask() -> str:
        asked.append(1)
        if next(answers, False):
            raise OSError("connection reset")
        return "answer"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote, "PAUSES", (0.0, 0.0, 0.0))
        if failures[:4] == [True] * 4:
            with pytest.raises(UserError, match="s3://b/x: cannot be read after 4 attempts: connection reset"):
                retried(Remote("s3", "b/x"), ask)
            assert len(asked) == 4
        else:
            assert retried(Remote("s3", "b/x"), ask) == "answer"
            assert len(asked) == next(index for index, failed in enumerate([*failures, False]) if not failed) + 1


@pytest.mark.parametrize("url", ["s3://key:hush@bucket/x", "gs://hush@bucket/x", "s3://bucket/x?secret_key=hush", "ftp://a:hush@b/c"])
def test_a_url_with_credentials_is_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_url("sources.s.files", url)

    assert "hush" not in str(caught.value)


def test_init_of_a_bucket_writes_a_recipe_that_builds_and_says_what_that_of_the_folder_says(store: Any, tmp_path: Path) -> None:
    corpus = tmp_path / "corpora"
    for number, name in enumerate(("prose/part-1.jsonl", "prose/part-2.jsonl", "code/all.parquet")):
        write_records(corpus / name, [{"id": f"{number}-{n}", "text": text_of(100 * number + n)} for n in range(50)])
    upload(store, corpus, "begun")

    started = [curation.init(path, tmp_path / f"{number}.yaml") for number, path in enumerate((str(corpus), "s3://begun"))]

    assert [[one.source.name for one in made.sources] for made in started] == [["code", "prose"]] * 2
    texts = [made.path.read_text() for made in started]
    assert 'files: "s3://begun/prose/*.jsonl"' in texts[1]
    assert texts[0].replace(str(corpus), "s3://begun").replace('"', "").replace("corpora", "begun") == texts[1].replace('"', "")
    assert curation.build(started[1].path, output=tmp_path / "out", work=tmp_path / "work").manifest.sources["prose"]["read"] == 100

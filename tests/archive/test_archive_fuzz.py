"""Altered archives, 150 of them; bench/archive_fuzz.py tries 3,000."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from archive_fuzz_cases import attempt, make, prepare
from audited import Watch

SHARDS, EACH = 6, 25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("fuzz"))


@pytest.fixture(scope="module")
def watch(folder: str) -> Iterator[Watch]:
    with Watch(prepare, folder) as made:
        yield made


@pytest.mark.parametrize("shard", range(SHARDS))
def test_an_altered_archive_is_refused_or_computes_what_it_says(watch: Watch, folder: str, shard: int) -> None:
    said = []
    for seed in range(shard * EACH, (shard + 1) * EACH):
        kind, content = make(seed, folder)
        found, _ = attempt(watch, Path(folder) / "a.safetensors", content)
        said.append(f"{seed} {kind}: {found}")
    assert [text for text in said if "BUG" in text] == []
    assert any("computes what it says" in text for text in said)
    assert any("refused" in text or "damaged" in text for text in said)

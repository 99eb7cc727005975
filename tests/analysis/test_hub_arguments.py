"""Ids of the Hub in ``analysis``: revisions, a cache of one's own, and ``hf://``."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from pairs import bf16_tensor, save, tune

from rlsparse_store.analysis import (
    compare_deltas,
    match_checkpoints,
    measure_series,
    open_pair,
    over_base,
    write_mask,
)
from rlsparse_store.delta import encode_delta
from rlsparse_store.errors import NotFoundError

if TYPE_CHECKING:
    from pathlib import Path

COMMITS = {"main": "1" * 40, "v2": "2" * 40}


def snapshot(cache: Path, repo: str, revision: str) -> Path:
    """The folder of a revision in a cache of the Hub's layout."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(COMMITS[revision])
    (folder / "snapshots").mkdir(exist_ok=True)
    return folder / "snapshots" / COMMITS[revision]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A cache with a base, a tuned checkpoint, and two deltas; ``main`` of each is unrelated."""
    folder = tmp_path / "cache"
    for revision, seed in (("main", 5), ("v2", 0)):
        base = {"w": bf16_tensor(seed, 64, 64)}
        base_folder = save(snapshot(folder, "org/base", revision), base)
        for number in (1, 2):
            tuned = save(tmp_path / f"{revision}-{number}", {"w": tune(base["w"], number, 0.25)})
            encode_delta(base_folder, tuned, tmp_path / f"delta-{revision}-{number}")
            delta = snapshot(folder, f"org/delta-{number}", revision)
            shutil.copytree(tmp_path / f"delta-{revision}-{number}", delta)
            shutil.copytree(tuned, snapshot(folder, f"org/tuned-{number}", revision))
    return folder


@pytest.mark.parametrize("scheme", ["", "hf://"])
def test_every_function_takes_revisions_and_a_cache(
    cache: Path, tmp_path: Path, scheme: str
) -> None:
    deltas = [f"{scheme}org/delta-{number}" for number in (1, 2)]
    local = [tmp_path / f"delta-v2-{number}" for number in (1, 2)]
    base = cache / "models--org--base" / "snapshots" / COMMITS["v2"]
    options: Any = {"cache_dir": cache, "local_files_only": True}
    revisions: Any = {"revision": "v2", "base_revision": "v2"}

    compared = compare_deltas(deltas, base=f"{scheme}org/base", **revisions, **options)
    assert compared.pairs[0].overall == compare_deltas(local, base=base).pairs[0].overall
    assert compared.deltas == ["delta-1@v2", "delta-2@v2"]

    series = measure_series(deltas, base=f"{scheme}org/base", **revisions, **options)
    assert series.ever_changed == measure_series(local, base=base).ever_changed

    mask = write_mask(deltas, tmp_path / "m", base=f"{scheme}org/base", **revisions, **options)
    assert mask.tensors == write_mask(local, tmp_path / "n", base=base).tensors

    match = match_checkpoints(
        deltas[0],
        deltas[1],
        base=f"{scheme}org/base@v2",
        full_revision="v2",
        sub_revision="v2",
        **options,
    )
    assert match == match_checkpoints(local[0], local[1], base=base)

    with (
        over_base(deltas[0], **revisions, base="org/base", **options) as delta,
        open_pair(
            f"{scheme}org/base",
            f"{scheme}org/tuned-1",
            base_revision="v2",
            tuned_revision="v2",
            **options,
        ) as checkpoints,
    ):
        for over, beside in zip(delta.blocks("w"), checkpoints.blocks("w"), strict=True):
            assert (over.base == beside.base).all()
            assert (over.tuned == beside.tuned).all()


def test_local_paths_have_no_revision(cache: Path, tmp_path: Path) -> None:
    base = cache / "models--org--base" / "snapshots" / COMMITS["v2"]
    deltas = [tmp_path / "delta-v2-1", tmp_path / "delta-v2-2"]
    for analyze in (compare_deltas, measure_series):
        with pytest.raises(NotFoundError, match="has no revision"):
            analyze(deltas, base=base, revision="v2")
        with pytest.raises(NotFoundError, match="has no revision"):
            analyze(deltas, base=base, base_revision="v2")
    with pytest.raises(NotFoundError, match="has no revision"):
        match_checkpoints(deltas[0], deltas[1], base=base, sub_revision="v2")


def test_what_the_cache_lacks_is_not_downloaded(cache: Path) -> None:
    with pytest.raises(NotFoundError, match="not in the cache"):
        compare_deltas(["org/none", "org/delta-1"], cache_dir=cache, local_files_only=True)

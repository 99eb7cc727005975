"""Which elements of a tensor a part holds, and what a model saves each tensor as."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import moe, small_llama

from rlsparse_store.errors import RlsparseError
from rlsparse_store.torch import saved_parts as module
from rlsparse_store.torch.row_slabs import first_of_run
from rlsparse_store.torch.saved_parts import Part, saved_parts
from rlsparse_store.torch.weight_views import checkpoint_views

PARTS = st.lists(
    st.integers(1, 4).flatmap(
        lambda size: st.tuples(st.just(size), st.integers(0, size - 1), st.integers(1, size)).map(
            lambda part: (part[0], part[1], min(part[2], part[0] - part[1]))
        )
    ),
    max_size=4,
)


@given(PARTS)
def test_a_part_is_a_run_if_its_elements_are_consecutive(dims: list[tuple[int, int, int]]) -> None:
    shape, offsets, sizes = ([dim[i] for dim in dims] for i in range(3))
    positions = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    ranges = zip(offsets, sizes, strict=True)
    part = positions[tuple(slice(first, first + size) for first, size in ranges)].ravel()
    is_run = np.array_equal(part, np.arange(part[0], part[0] + part.size))
    assert first_of_run(offsets, sizes, shape) == (part[0] if is_run else None)


@pytest.mark.parametrize("make", [moe, small_llama])
def test_a_model_is_saved_as_its_views(make: Any) -> None:  # noqa: ANN401 - a function
    model = make()
    weights, views = model.state_dict(), checkpoint_views(model)
    found = {
        part.name: weights[key].view(-1)[part.first : part.stop].view(part.shape)
        for key, parts in saved_parts(model).items()
        for part in parts
    }
    assert found.keys() == views.keys()
    for name, view in views.items():
        assert torch.equal(found[name].view(torch.int16), view.view(torch.int16)), name


def test_what_is_saved_as_no_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = moe()
    plain = torch.nn.Linear(2, 3, bias=False)
    assert saved_parts(plain) == {"weight": [Part("weight", 0, (3, 2))]}
    revert = module._revert

    def transposed(model: Any, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ANN401
        parts = revert(model, name, weight)
        return parts if len(parts) == 1 else {part: w.T for part, w in parts.items()}

    monkeypatch.setattr(module, "_revert", transposed)
    with pytest.raises(RlsparseError, match=r"gate_up_proj.*parts of consecutive elements"):
        saved_parts(model)

    def permuted(model: Any, name: str, weight: torch.Tensor) -> dict[str, torch.Tensor]:  # noqa: ANN401
        parts = revert(model, name, weight)
        return {part: w.flip(0) if "q_proj" in part else w for part, w in parts.items()}

    monkeypatch.setattr(module, "_revert", permuted)
    with pytest.raises(RlsparseError, match=r"q_proj.*parts of consecutive elements"):
        saved_parts(model)

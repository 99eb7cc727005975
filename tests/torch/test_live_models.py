"""Loaded models that become tuned ones in place, and back, bit for bit."""

from __future__ import annotations

import random
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from models import move_weights
from pairs import Tensor, bf16_tensor, random_tensor, save, tune
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from rlsparse_store.delta import encode_delta
from rlsparse_store.errors import (
    BaseMismatchError,
    ChecksumError,
    FormatError,
    ResultMismatchError,
    RlsparseError,
)
from rlsparse_store.kernels.dispatch import VARIABLE
from rlsparse_store.kernels.native import instruction_sets
from rlsparse_store.kernels.numpy.kernels import NumpyBackend
from rlsparse_store.pipeline.chunk_decoder import ChunkDecoder
from rlsparse_store.torch import DeltaSwitch, patch_
from rlsparse_store.torch.undo_log import SwapBatch, WordSwap, swap_batches
from rlsparse_store.torch.weight_views import checkpoint_views

if TYPE_CHECKING:
    from pathlib import Path

    from pairs import Tensors

SHAPE: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, tie_word_embeddings=True)),
    "experts": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    ),
}

State = dict[str, bytes]


def state_of(tensors: Any) -> State:  # noqa: ANN401 - a module or a mapping
    """Every tensor's bytes."""
    state = tensors.state_dict() if isinstance(tensors, torch.nn.Module) else tensors
    return {
        name: t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for name, t in state.items()
    }


@pytest.fixture(scope="module", params=MODELS)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three checkpoints tuned from it, and their deltas."""
    work = tmp_path_factory.mktemp(str(request.param))
    torch.manual_seed(1)
    model: Any = MODELS[request.param]().to(torch.bfloat16)  # type: ignore[arg-type, no-untyped-call]
    model.save_pretrained(work / "base")
    for number, density in enumerate((0.02, 0.2, 0.7)):
        tuned = type(model).from_pretrained(work / "base")
        move_weights(tuned, number, density)
        tuned.save_pretrained(work / f"tuned-{number}")
        encode_delta(work / "base", work / f"tuned-{number}", work / f"delta-{number}")
    return work


def loaded(folder: Path) -> PreTrainedModel:
    names = {"llama": LlamaForCausalLM, "tied": Qwen3ForCausalLM, "experts": Qwen3MoeForCausalLM}
    cls: Any = next(cls for name, cls in names.items() if folder.parent.name.startswith(name))
    model: PreTrainedModel = cls.from_pretrained(folder)
    return model


def test_views_are_what_is_saved(family: Path) -> None:
    model = loaded(family / "base")
    views, saved = checkpoint_views(model), load_file(family / "base/model.safetensors")
    assert state_of({name: views[name] for name in saved}) == state_of(saved)
    before = state_of(model)
    for view in views.values():
        view.zero_()
    assert all(not any(data) for data in state_of(model).values())
    assert state_of(model) != before


MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "gpt-oss": ("GptOss", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "jamba": ("Jamba", {"num_experts": 4}),
    "deepseek": (
        "DeepseekV3",
        {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 0,
            "kv_lora_rank": 8,
            "q_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
        },
    ),
}


@pytest.mark.parametrize("name", MORE)
def test_views_of_weights_that_loading_rearranges(name: str, tmp_path: Path) -> None:
    kind, extra = MORE[name]
    cls = getattr(transformers, f"{kind}ForCausalLM")
    shape = {key: value for key, value in SHAPE.items() if key != "head_dim"} | extra
    cls(getattr(transformers, f"{kind}Config")(**shape)).to(torch.bfloat16).save_pretrained(
        tmp_path
    )
    model = cls.from_pretrained(tmp_path)
    # Some weights are kept in float32 by loading, and saved so from then on.
    model.save_pretrained(tmp_path / "again")
    saved = load_file(tmp_path / "again/model.safetensors")
    views = checkpoint_views(model)
    assert state_of({key: views[key] for key in saved}) == state_of(saved)
    memory = {t.untyped_storage().data_ptr() for t in model.state_dict().values()}
    assert all(view.untyped_storage().data_ptr() in memory for view in views.values())


def test_patch_gives_the_tuned_model(family: Path) -> None:
    model = loaded(family / "base")
    assert patch_(model, family / "delta-1") is model
    tuned = loaded(family / "tuned-1")
    assert state_of(model) == state_of(tuned)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        logits = [m(ids).logits.view(torch.int16) for m in (model, tuned)]
    assert torch.equal(*logits)


def test_patch_of_a_state_dict(family: Path) -> None:
    state = load_file(family / "base/model.safetensors")
    patch_(state, family / "delta-0", threads=1)
    assert state_of(state) == state_of(load_file(family / "tuned-0/model.safetensors"))


def test_patch_of_tensors_that_are_not_contiguous(family: Path) -> None:
    state = load_file(family / "base/model.safetensors")
    state = {
        name: t.T.contiguous().T if t.ndim == 2 else torch.stack([t, t], -1)[..., 0]
        for name, t in state.items()
    }
    assert not any(t.is_contiguous() for t in state.values() if t.numel() > 1)
    patch_(state, family / "delta-1")
    assert state_of(state) == state_of(load_file(family / "tuned-1/model.safetensors"))
    with DeltaSwitch(state | {}) as switch, pytest.raises(BaseMismatchError):
        switch.to(family / "delta-0")


def watched(
    monkeypatch: pytest.MonkeyPatch, place: str, model: dict[str, torch.Tensor]
) -> list[tuple[int, State]]:
    """How many tensors are waited for, and what the model is then."""
    seen: list[tuple[int, State]] = []
    monkeypatch.setattr(place, lambda tensors: seen.append((len(list(tensors)), state_of(model))))
    return seen


def test_the_device_is_waited_for_once_all_is_patched(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_file(family / "base/model.safetensors")
    tuned = state_of(load_file(family / "tuned-1/model.safetensors"))
    # Some are changed where they are, the others copied.
    state |= {name: t.T.contiguous().T for name, t in state.items() if t.ndim == 2}
    seen = watched(monkeypatch, "rlsparse_store.torch.patch.synchronize", state)
    patch_(state, family / "delta-1")
    assert seen == [(len(state), tuned)]


def test_patch_twice_is_refused(family: Path) -> None:
    model = loaded(family / "base")
    patch_(model, family / "delta-0")
    before = state_of(model)
    with pytest.raises(BaseMismatchError, match="wrong base"):
        patch_(model, family / "delta-0")
    assert state_of(model) == before


@pytest.mark.parametrize("memory", [None, 0], ids=["kept", "nothing-kept"])
def test_switching_in_any_order(family: Path, memory: int | None) -> None:
    model = loaded(family / "base")
    expected: dict[int | None, State] = {None: state_of(model)}
    expected |= {n: state_of(loaded(family / f"tuned-{n}")) for n in range(3)}
    rng = random.Random(0)  # noqa: S311 - not a secret
    with DeltaSwitch(model, memory=memory) as switch:
        for _ in range(20):
            number = rng.choice([None, 0, 1, 2])
            place = None if number is None else family / f"delta-{number}"
            switch.to(place)
            assert switch.current == place
            assert state_of(model) == expected[number]
    assert state_of(model) == expected[None]


def test_switching_a_state_dict_that_is_not_contiguous(family: Path) -> None:
    state = load_file(family / "base/model.safetensors")
    state = {name: t.T.contiguous().T if t.ndim == 2 else t for name, t in state.items()}
    before = state_of(state)
    switch = DeltaSwitch(state)
    for number in (0, 1, 0, 2, 1):
        switch.to(family / f"delta-{number}")
        tuned = load_file(family / f"tuned-{number}/model.safetensors")
        assert state_of(state) == state_of(tuned)
    switch.to(None)
    assert state_of(state) == before


def test_a_switch_refuses_a_model_that_is_not_the_base(family: Path) -> None:
    model = loaded(family / "tuned-0")
    before = state_of(model)
    switch = DeltaSwitch(model)
    with pytest.raises(BaseMismatchError, match="wrong base"):
        switch.to(family / "delta-1")
    assert state_of(model) == before
    assert switch.current is None


def test_a_delta_that_is_written_anew_is_another_one(family: Path, tmp_path: Path) -> None:
    model = loaded(family / "base")
    switch = DeltaSwitch(model)
    place = tmp_path / "delta"
    for number in (0, 1):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(family / f"delta-{number}", place)
        switch.to(place)
        assert state_of(model) == state_of(loaded(family / f"tuned-{number}"))


def test_an_interrupted_move_is_undone(family: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(family / "base")
    switch = DeltaSwitch(model)
    switch.to(family / "delta-0")
    switch.to(family / "delta-1")
    exchange, calls = WordSwap.exchange, 0

    def interrupted(change: WordSwap, data: Any) -> bool:  # noqa: ANN401 - passed on
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return exchange(change, data)

    for place in (None, family / "delta-0"):
        calls = 0
        monkeypatch.setattr(WordSwap, "exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            switch.to(place)
        assert state_of(model) == state_of(loaded(family / "tuned-1"))
        monkeypatch.setattr(WordSwap, "exchange", exchange)
    switch.to(None)
    assert state_of(model) == state_of(loaded(family / "base"))


def test_an_interrupted_move_of_copied_tensors_is_undone(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_file(family / "base/model.safetensors")
    # One block of a tensor that is not contiguous holds a change of each of two deltas.
    state = {name: t.T.contiguous().T if t.ndim == 2 else t for name, t in state.items()}
    base = state_of(state)
    switch = DeltaSwitch(state, threads=1)
    switch.to(family / "delta-0")
    switch.to(family / "delta-1")
    before = state_of(state)
    exchange, calls = WordSwap.exchange, 0

    def interrupted(change: WordSwap, data: Any) -> bool:  # noqa: ANN401 - passed on
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return exchange(change, data)

    monkeypatch.setattr(WordSwap, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        switch.to(family / "delta-0")
    monkeypatch.undo()
    assert state_of(state) == before
    switch.to(None)
    assert state_of(state) == base


@pytest.mark.parametrize("path", [NumpyBackend.name, *instruction_sets()])
@pytest.mark.parametrize("kept", ["mask", "values"])
def test_kept_words_that_change_in_memory_are_noticed(
    family: Path, monkeypatch: pytest.MonkeyPatch, path: str, kept: str
) -> None:
    monkeypatch.setenv(VARIABLE, path)
    model = loaded(family / "base")
    switch = DeltaSwitch(model)
    switch.to(family / "delta-0")
    switch.to(family / "delta-1")
    log = next(iter(switch._logs.values()))
    swap = list(log.blocks.values())[-1][-1]
    getattr(swap, kept).view(np.uint8)[0] ^= 1
    with pytest.raises(ResultMismatchError, match=r"changed in memory.*load the model again"):
        switch.to(family / "delta-0")
    assert state_of(model) == state_of(loaded(family / "tuned-1"))
    switch.to(None)
    assert state_of(model) == state_of(loaded(family / "base"))


def test_the_device_is_waited_for_before_and_after_a_move(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = load_file(family / "base/model.safetensors")
    base = state_of(state)
    switch = DeltaSwitch(state)
    switch.to(family / "delta-0")
    tuned = state_of(state)
    seen = watched(monkeypatch, "rlsparse_store.torch.switch.synchronize", state)
    switch.to(None)
    assert [now for _, now in seen] == [tuned, base]
    assert all(number for number, _ in seen)

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    seen.clear()
    monkeypatch.setattr(WordSwap, "exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        switch.to(family / "delta-0")
    # Before the move, and before and after it is undone.
    assert [now for _, now in seen] == [base] * 3


def test_a_move_is_undone_after_the_threads_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Large enough for threads of their own.
    base = {name: torch.randn(1 << 17).to(torch.bfloat16) for name in "ab"}
    save_file(base, tmp_path / "base.safetensors")
    for number in (1, 2):
        tuned = {name: (t.float() * (1 + number / 50)).to(t.dtype) for name, t in base.items()}
        save_file(tuned, tmp_path / f"{number}.safetensors")
        encode_delta(
            tmp_path / "base.safetensors",
            tmp_path / f"{number}.safetensors",
            tmp_path / str(number),
        )
    switch = DeltaSwitch(base, threads=2)
    switch.to(tmp_path / "1")
    switch.to(tmp_path / "2")
    before = state_of(base)
    exchange, interrupted = SwapBatch.exchange, threading.Event()
    assert switch._current_log is not None
    first = next(swap_batches([switch._current_log])).target.record.name

    def late(group: SwapBatch) -> SwapBatch:
        if group.target.record.name != first:
            assert interrupted.wait(30)
            time.sleep(0.2)
        return exchange(group)

    def interrupt(_: SwapBatch) -> bool:
        interrupted.set()
        raise KeyboardInterrupt

    monkeypatch.setattr(SwapBatch, "exchange", late)
    monkeypatch.setattr(SwapBatch, "failed", property(interrupt))
    with pytest.raises(KeyboardInterrupt):
        switch.to(tmp_path / "1")
    monkeypatch.undo()
    time.sleep(0.4)
    assert state_of(base) == before
    switch.to(tmp_path / "1")
    assert state_of(base) == state_of(load_file(tmp_path / "1.safetensors"))


def test_weights_that_were_replaced_are_noticed(family: Path) -> None:
    model: Any = loaded(family / "base")
    switch = DeltaSwitch(model)
    model.float().to(torch.bfloat16)
    with pytest.raises(RlsparseError, match="moved, cast or replaced"):
        switch.to(family / "delta-0")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_a_wrapped_model_is_refused(family: Path, prefix: str) -> None:
    model = loaded(family / "base")
    wrapped: Any = torch.nn.Module()
    setattr(wrapped, prefix[:-1], model)
    for given in (wrapped, wrapped.state_dict()):
        with pytest.raises(RlsparseError, match=f"begin with '{prefix}': pass the model"):
            patch_(given, family / "delta-0")


def test_copies_of_weights_are_refused(family: Path) -> None:
    model: Any = loaded(family / "base")
    model._register_state_dict_hook(
        lambda _module, state, _prefix, _local: {name: t.clone() for name, t in state.items()}
    )
    with pytest.raises(RlsparseError, match="copy of the model's weights"):
        patch_(model, family / "delta-0")


def test_a_switch_notices_that_someone_else_wrote(family: Path) -> None:
    model = loaded(family / "base")
    switch = DeltaSwitch(model)
    switch.to(family / "delta-2")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    before = state_of(model)
    for place in (None, family / "delta-1"):
        with pytest.raises(RlsparseError, match="written by other code"):
            switch.to(place)
        assert state_of(model) == before


def damaged(delta: Path, out: Path) -> Path:
    """A copy of a delta with a bit flipped in a chunk in the middle of its data."""
    (out / "rlsparse").mkdir(parents=True)
    data = bytearray((delta / "rlsparse/delta.safetensors").read_bytes())
    header = int.from_bytes(data[:8], "little")
    data[8 + header + 40] ^= 1
    (out / "rlsparse/delta.safetensors").write_bytes(data)
    return out


def test_a_damaged_delta_changes_nothing(family: Path, tmp_path: Path) -> None:
    model = loaded(family / "base")
    before = state_of(model)
    bad = damaged(family / "delta-1", tmp_path / "bad")
    with pytest.raises(ChecksumError):
        patch_(model, bad)
    assert state_of(model) == before
    switch = DeltaSwitch(model)
    switch.to(family / "delta-0")
    with pytest.raises(ChecksumError):
        switch.to(bad)
    assert switch.current == family / "delta-0"
    assert state_of(model) == state_of(loaded(family / "tuned-0"))


def test_what_was_patched_goes_back_if_decoding_fails(
    family: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded(family / "base")
    switch = DeltaSwitch(model, threads=1)
    switch.to(family / "delta-0")
    decode, calls = ChunkDecoder.decode, 0

    def fail_later(*args: Any) -> Any:  # noqa: ANN401 - passed on
        nonlocal calls
        calls += 1
        if calls == 5:
            raise FormatError("made up")
        return decode(*args)

    monkeypatch.setattr(ChunkDecoder, "decode", fail_later)
    with pytest.raises(FormatError, match=r"made up$"):
        switch.to(family / "delta-1")
    assert state_of(model) == state_of(loaded(family / "tuned-0"))
    assert switch.current == family / "delta-0"
    monkeypatch.undo()
    switch.to(family / "delta-1")
    assert state_of(model) == state_of(loaded(family / "tuned-1"))


# --- State dicts of every kind -------------------------------------------------------------------

PAIRS: dict[str, tuple[Tensors, Tensors]] = {
    "same": ({"a": bf16_tensor(1, 8, 64)}, {"a": bf16_tensor(1, 8, 64)}),
    "whole": (
        {"a": random_tensor(1, "BF16", 9, 65)},
        {"a": random_tensor(2, "BF16", 9, 65)},
    ),
    "bytes": (
        {"a": random_tensor(1, "F8_E4M3", 33, 40)},
        {
            "a": random_tensor(1, "F8_E4M3", 33, 40).with_words(
                random_tensor(1, "F8_E4M3", 33, 40).words(np.uint8) ^ (np.arange(1320) % 7 == 0)
            )
        },
    ),
    "wide": (
        {"a": random_tensor(1, "F32", 40, 40), "b": random_tensor(3, "I64", 64)},
        {
            "a": random_tensor(1, "F32", 40, 40).with_words(
                random_tensor(1, "F32", 40, 40).words(np.uint32) + (np.arange(1600) % 9 == 0)
            ),
            "b": random_tensor(3, "I64", 64),
        },
    ),
    "renamed": (
        {"w": bf16_tensor(1, 8, 64), "x": bf16_tensor(2, 64)},
        {"model.w": tune(bf16_tensor(1, 8, 64), 3), "x": tune(bf16_tensor(2, 64), 2, 0.3)},
    ),
    "no-elements": (
        {"a": Tensor("BF16", (0, 4), b""), "b": bf16_tensor(1, 64)},
        {"a": Tensor("BF16", (0, 4), b""), "b": tune(bf16_tensor(1, 64), 2, 0.5)},
    ),
}


@pytest.mark.parametrize("what", PAIRS)
def test_state_dicts(tmp_path: Path, what: str) -> None:
    base, tuned = PAIRS[what]
    save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    expected = list(state_of(load_file(tmp_path / "tuned/model.safetensors")).values())
    state = load_file(tmp_path / "base/model.safetensors")
    patch_(state, tmp_path / "delta")
    assert list(state_of(state).values()) == expected
    state = load_file(tmp_path / "base/model.safetensors")
    before = state_of(state)
    with DeltaSwitch(state) as switch:
        for _ in range(2):
            switch.to(tmp_path / "delta")
            assert list(state_of(state).values()) == expected
            switch.to(None)
            assert state_of(state) == before


def widened(tensor: Tensor) -> Tensor:
    wide = tensor.words(np.uint16).astype(np.uint32) << 16
    return Tensor("F32", tensor.shape, wide.tobytes())


REFUSED: dict[str, tuple[Tensors, Tensors, str]] = {
    "widened": (
        {"a": bf16_tensor(1, 8, 64)},
        {"a": widened(tune(bf16_tensor(1, 8, 64), 2))},
        "widens",
    ),
    "resized": (
        {"a": bf16_tensor(1, 8, 64)},
        {"a": Tensor("BF16", (9, 64), tune(bf16_tensor(1, 8, 64), 2).data + bytes(128))},
        "resizes",
    ),
    "added": (
        {"a": bf16_tensor(1, 8, 64)},
        {"a": tune(bf16_tensor(1, 8, 64), 2), "b": bf16_tensor(7, 5)},
        "not in the model",
    ),
    "reshaped": (
        {"a": bf16_tensor(1, 8, 64)},
        {"a": Tensor("BF16", (64, 8), tune(bf16_tensor(1, 8, 64), 2).data)},
        r"is \[8, 64\] in the model",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_done_in_place(tmp_path: Path, what: str) -> None:
    base, tuned, reason = REFUSED[what]
    save(tmp_path / "base", base), save(tmp_path / "tuned", tuned)
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    state = load_file(tmp_path / "base/model.safetensors")
    before = state_of(state)
    with pytest.raises(RlsparseError, match=reason):
        patch_(state, tmp_path / "delta")
    assert state_of(state) == before


@pytest.fixture
def small(tmp_path: Path) -> Path:
    base = {"a": bf16_tensor(1, 8, 64), "b": bf16_tensor(2, 8, 64)}
    save(tmp_path / "base", base)
    save(tmp_path / "tuned", {"a": tune(base["a"], 3), "b": tune(base["b"], 4)})
    encode_delta(tmp_path / "base", tmp_path / "tuned", tmp_path / "delta")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.float(), 'dtype="auto"'),
        (lambda t: t.to("meta"), "meta"),
        (lambda t: t[:4], r"is \[4, 64\]"),
        (lambda t: t + 1, "different values"),
    ],
    ids=["cast", "meta", "cut", "values"],
)
def test_a_state_dict_that_does_not_fit(small: Path, change: Any, reason: str) -> None:  # noqa: ANN401 - of any tensor
    state = load_file(small / "base/model.safetensors")
    state["b"] = change(state["b"])
    with pytest.raises(RlsparseError, match=reason):
        patch_(state, small / "delta")


def test_names_that_share_their_memory_but_not_their_values(small: Path) -> None:
    state = load_file(small / "base/model.safetensors")
    state["b"] = state["a"]
    with pytest.raises(RlsparseError, match="shares its memory"):
        patch_(state, small / "delta")


def test_something_that_is_no_model(small: Path) -> None:
    with pytest.raises(TypeError, match="neither a model nor a state dict"):
        patch_(3, small / "delta")

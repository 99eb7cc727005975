"""Models of transformers loaded from base and delta: bit for bit what the tuned folder gives."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest
import torch
import transformers
from pairs import contents
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import dynamic_module_utils, modeling_utils

from rlsparse_store import encode_delta, open_delta
from rlsparse_store.errors import BaseMismatchError, CheckpointError, NotFoundError, RlsparseError
from rlsparse_store.integrations.transformers import (
    enable_transformers,
    from_delta,
    from_pretrained,
    unsupported,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

SIZES: Final[dict[str, Any]] = {
    "vocab_size": 256,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
}
DECODER: Final[dict[str, Any]] = SIZES | {"num_key_value_heads": 2, "head_dim": 16}
EXPERTS: Final[dict[str, Any]] = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
IDS: Final = torch.arange(20)[None]
WORDS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Kind(NamedTuple):
    """A kind of model, and the size of the shards of base and tuned."""

    cls: str
    config: str
    arguments: dict[str, Any]
    base_shards: str = "1GB"
    tuned_shards: str = "1GB"


KINDS: Final = {
    "llama": Kind("LlamaForCausalLM", "LlamaConfig", DECODER, base_shards="60KB"),
    "tied": Kind(
        "Qwen3ForCausalLM",
        "Qwen3Config",
        DECODER | {"tie_word_embeddings": True},
        tuned_shards="60KB",
    ),
    "moe": Kind("Qwen3MoeForCausalLM", "Qwen3MoeConfig", DECODER | EXPERTS, "80KB", "60KB"),
    "gemma": Kind("Gemma2ForCausalLM", "Gemma2Config", DECODER),
    "bert": Kind("BertModel", "BertConfig", SIZES),
}


@dataclass(frozen=True)
class Pair:
    """A base, a tuned model and the delta between them."""

    folder: Path
    cls: Any
    shards: str

    @property
    def base(self) -> Path:
        return self.folder / "base"

    @property
    def tuned(self) -> Path:
        return self.folder / "tuned"

    @property
    def delta(self) -> Path:
        return self.folder / "delta"

    def expected(self, **options: Any) -> Any:  # noqa: ANN401 - a model
        return self.cls.from_pretrained(self.tuned, **options)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(WORDS[tensor.element_size()])


def nudge(weights: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Move some words by one, but leave norms alone."""
    for name, weight in weights:
        if "norm" not in name.lower():
            words = weight.detach().view(WORDS[weight.element_size()])
            words.bitwise_xor_((torch.rand(words.shape) < 0.05).to(words.dtype))


def make_tokenizer(folder: Path) -> None:
    words = WordLevel({f"w{n}": n for n in range(255)} | {"[UNK]": 255}, unk_token="[UNK]")  # noqa: S106 - no secret
    fast: Any = transformers.PreTrainedTokenizerFast
    fast(tokenizer_object=Tokenizer(words), unk_token="[UNK]").save_pretrained(folder)  # noqa: S106 - as above


def make(folder: Path, kind: Kind) -> Pair:
    torch.manual_seed(0)
    cls = getattr(transformers, kind.cls)
    config = getattr(transformers, kind.config)(**kind.arguments)
    model = cls(config).to(torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size=kind.base_shards)
    nudge(model.named_parameters())
    model.config.initializer_range = 0.125
    if model.can_generate():
        model.generation_config.max_new_tokens = 7
    model.save_pretrained(folder / "made")
    # A loaded model may save its tensors in another order than one that was never saved.
    loaded = cls.from_pretrained(folder / "made")
    loaded.save_pretrained(folder / "tuned", max_shard_size=kind.tuned_shards)
    make_tokenizer(folder / "tuned")
    encode_delta(folder / "base", folder / "tuned", folder / "delta", threads=2)
    return Pair(folder, cls, kind.tuned_shards)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in made:
            made[name] = make(tmp_path_factory.mktemp(name), KINDS[name])
        return made[name]

    return get


@pytest.fixture
def llama(pairs: Callable[[str], Pair]) -> Pair:
    return pairs("llama")


def assert_same_model(got: Any, expected: Any) -> None:  # noqa: ANN401 - models
    have, want = got.state_dict(), expected.state_dict()
    assert type(got) is type(expected)
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        assert have[name].dtype is tensor.dtype, name
        assert torch.equal(bits(have[name]), bits(tensor)), name
    assert_same_answers(got, expected)


def assert_same_answers(got: Any, expected: Any) -> None:  # noqa: ANN401 - models
    with torch.no_grad():
        have, want = got(IDS)[0], expected(IDS)[0]
    assert have.dtype is want.dtype
    assert torch.equal(bits(have), bits(want))


def copied(folder: Path, to: Path, **changes: Any) -> Path:  # noqa: ANN401 - JSON
    """A copy of a folder with fields of its configuration changed."""
    shutil.copytree(folder, to)
    if changes:
        config = json.loads((to / "config.json").read_text())
        (to / "config.json").write_text(json.dumps(config | changes))
    return to


def edit_weights(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
        save_file(change(tensors), path, {"format": "pt"})


def run_script(
    script: str, *arguments: object, cwd: Path, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", script, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )


# --- What is loaded -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_a_model_equals_the_tuned_one(
    name: str, pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    pair = pairs(name)
    got, info = from_delta(pair.base, pair.delta, output_loading_info=True)
    assert not any(info.values())
    assert_same_model(got, pair.expected())
    assert not got.training
    got.save_pretrained(tmp_path / "again", max_shard_size=pair.shards)
    again, tuned = contents(tmp_path / "again"), contents(pair.tuned)
    assert again == {name: data for name, data in tuned.items() if "tokenizer" not in name}


def test_the_shards_are_those_meant(pairs: Callable[[str], Pair]) -> None:
    for name, base, tuned in (("llama", True, False), ("tied", False, True), ("moe", True, True)):
        pair = pairs(name)
        sharded = [(f / "model.safetensors.index.json").is_file() for f in (pair.base, pair.tuned)]
        assert sharded == [base, tuned]


@pytest.mark.parametrize("name", KINDS)
def test_configurations_are_the_tuned_ones(name: str, pairs: Callable[[str], Pair]) -> None:
    pair = pairs(name)
    got, expected = from_delta(pair.base, pair.delta), pair.expected()
    assert got.config.initializer_range == 0.125
    assert got.config.to_dict() | {"_name_or_path": ""} == expected.config.to_dict() | {
        "_name_or_path": ""
    }
    if got.can_generate():
        assert got.generation_config.max_new_tokens == 7
        assert got.generation_config.to_dict() == expected.generation_config.to_dict()


def test_a_model_bears_the_name_of_its_delta(llama: Pair) -> None:
    got = from_delta(str(llama.base), str(llama.delta))
    assert got.name_or_path == str(llama.delta)
    assert got.config._name_or_path == str(llama.delta)


def test_the_tokenizer_is_loaded_from_the_delta(llama: Pair) -> None:
    auto: Any = transformers.AutoTokenizer
    got, expected = auto.from_pretrained(llama.delta), auto.from_pretrained(llama.tuned)
    assert got.get_vocab() == expected.get_vocab()


# --- Options ------------------------------------------------------------------------------------


def test_another_dtype(llama: Pair) -> None:
    for dtype in (torch.float32, "float16"):
        got = from_delta(llama.base, llama.delta, dtype=dtype)
        assert got.dtype is (torch.float32 if dtype is torch.float32 else torch.float16)
        assert_same_model(got, llama.expected(dtype=dtype))


def test_attention_implementation(llama: Pair) -> None:
    got = from_delta(llama.base, llama.delta, attn_implementation="eager")
    assert got.config._attn_implementation == "eager"
    assert_same_model(got, llama.expected(attn_implementation="eager"))


def test_arguments_of_the_configuration(llama: Pair) -> None:
    got = from_delta(llama.base, llama.delta, attention_dropout=0.25, use_cache=False)
    assert (got.config.attention_dropout, got.config.use_cache) == (0.25, False)
    assert got.config.initializer_range == 0.125
    assert_same_model(got, llama.expected())


def test_an_unknown_argument_is_refused_by_transformers(llama: Pair) -> None:
    with pytest.raises(TypeError, match="nonsense"):
        from_delta(llama.base, llama.delta, nonsense=1)


def test_a_configuration_given(llama: Pair) -> None:
    config: Any = transformers.AutoConfig.from_pretrained(llama.tuned)
    config.attention_dropout = 0.5
    before = config.to_dict()
    got = from_delta(llama.base, llama.delta, config=config)
    assert got.config.attention_dropout == 0.5
    assert config.to_dict() == before
    assert_same_model(got, llama.expected())
    of_a_folder = from_delta(llama.base, llama.delta, config=str(llama.base))
    assert of_a_folder.config.initializer_range == 0.02


def test_a_generation_configuration_given(llama: Pair) -> None:
    cls: Any = transformers.GenerationConfig
    given = cls(max_new_tokens=3)
    got = from_delta(llama.base, llama.delta, generation_config=given)
    assert got.generation_config.max_new_tokens == 3


def test_a_device_map(llama: Pair) -> None:
    got = from_delta(llama.base, llama.delta, device_map={"": "cpu"})
    assert_same_model(got, llama.expected(device_map={"": "cpu"}))
    assert got.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["llama", "moe"])
def test_offloading_to_the_disk(name: str, pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    pair = pairs(name)
    places = dict.fromkeys(
        ("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"), "cpu"
    )
    places["model.layers.1"] = "disk"
    folder = tmp_path / "offloaded"
    got = from_delta(pair.base, pair.delta, device_map=places, offload_folder=str(folder))
    assert got.hf_device_map["model.layers.1"] == "disk"
    assert got.model.layers[1].self_attn.q_proj.weight.device.type == "meta"
    tuned: dict[str, torch.Tensor] = {}
    for path in pair.tuned.glob("*.safetensors"):
        tuned |= load_file(path)
    name_of_one = "model.layers.1.self_attn.q_proj.weight"
    stored = load_file(folder / f"{name_of_one}.safetensors")
    assert torch.equal(bits(stored[name_of_one]), bits(tuned[name_of_one]))
    assert_same_answers(got, pair.expected())


@pytest.mark.parametrize(
    "wanted", ["AutoModelForCausalLM", transformers.AutoModelForCausalLM, "LlamaForCausalLM"]
)
def test_a_class_asked_for(wanted: Any, llama: Pair) -> None:  # noqa: ANN401 - a name or a class
    assert_same_model(from_delta(llama.base, llama.delta, auto_class=wanted), llama.expected())


@pytest.mark.parametrize("wanted", ["AutoModel", transformers.AutoModel, transformers.LlamaModel])
def test_the_model_without_its_head(wanted: Any, llama: Pair) -> None:  # noqa: ANN401 - as above
    got, info = from_delta(llama.base, llama.delta, auto_class=wanted, output_loading_info=True)
    auto: Any = transformers.AutoModel
    expected, told = auto.from_pretrained(llama.tuned, output_loading_info=True)
    assert info == told
    assert_same_model(got, expected)


def test_classes_that_do_not_fit(llama: Pair) -> None:
    with pytest.raises(RlsparseError, match="transformers has no class Nope"):
        from_delta(llama.base, llama.delta, auto_class="Nope")
    with pytest.raises(RlsparseError, match="AutoModelForSeq2SeqLM does not support LlamaConfig"):
        from_delta(llama.base, llama.delta, auto_class="AutoModelForSeq2SeqLM")
    config = transformers.LlamaConfig(**DECODER)
    with pytest.raises(RlsparseError, match="transformers has none of the"):
        from_delta(llama.base, llama.delta, config=config)
    got = from_delta(llama.base, llama.delta, config=config, auto_class="AutoModelForCausalLM")
    assert_same_answers(got, llama.expected())


@pytest.mark.parametrize("verify", ["full", "none"])
def test_other_degrees_of_checking(verify: Any, llama: Pair) -> None:  # noqa: ANN401
    assert_same_model(from_delta(llama.base, llama.delta, verify=verify), llama.expected())


# --- Several processes --------------------------------------------------------------------------

RANKS: Final = """
import json, os, sys
from collections import Counter
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
import transformers
from transformers.distributed import DistributedConfig
sys.path.insert(0, os.environ["TESTS"])
from ranks import forked
from rlsparse_store.delta.open import DeltaSlice
from rlsparse_store.integrations.transformers import from_delta

rank = str(forked(2))
os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
dist.init_process_group("gloo")
read = Counter()
original = DeltaSlice.__getitem__

def counted(self, index):
    part = original(self, index)
    read[self.name] += part.numel()
    return part

DeltaSlice.__getitem__ = counted
out = {}
for folder in sys.argv[2:]:
    for way in ("tp_size", "fsdp_size"):
        options = {way: 2}
        auto = transformers.AutoModelForCausalLM
        expected = auto.from_pretrained(
            folder + "/tuned", distributed_config=DistributedConfig(**options)
        ).state_dict()
        read.clear()
        got = from_delta(
            folder + "/base", folder + "/delta", distributed_config=DistributedConfig(**options)
        ).state_dict()
        different, split = [], []
        for name, tensor in expected.items():
            have, is_split = got[name], isinstance(tensor, DTensor)
            assert type(have) is type(tensor), name
            if is_split:
                assert have.placements == tensor.placements, name
                is_split = tensor.to_local().numel() < tensor.numel()
                have, tensor = have.to_local(), tensor.to_local()
            have, tensor = (t.detach().contiguous().view(torch.int16) for t in (have, tensor))
            if not torch.equal(have, tensor):
                different.append(name)
            if is_split:
                split.append(name)
        out[os.path.basename(folder) + "/" + way] = {
            "names": sorted(got) == sorted(expected),
            "different": different,
            "split": split,
            "read": dict(read),
        }
dist.barrier()
dist.destroy_process_group()
with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
    json.dump(out, file)
"""


def run_ranks(work: Path, *folders: Path) -> list[dict[str, dict[str, Any]]]:
    """Load each pair in two processes, split by tensors and by FSDP."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "TESTS": str(Path(__file__).parents[1] / "support"),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    command = [sys.executable, "-P", "-c", RANKS, *map(str, [work, *folders])]
    done = subprocess.run(
        command,
        env={**os.environ, **shared},
        cwd=work,
        capture_output=True,
        check=False,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((work / f"{rank}.json").read_text()) for rank in range(2)]


def test_ranks_hold_and_read_only_their_part(pairs: Callable[[str], Pair], tmp_path: Path) -> None:
    folders = {}
    for name in ("llama", "moe"):
        folders[name] = tmp_path / name
        folders[name].symlink_to(pairs(name).folder)
    by_rank = run_ranks(tmp_path, *folders.values())
    for said in by_rank:
        assert said.keys() == {f"{name}/{way}_size" for name in folders for way in ("tp", "fsdp")}
        for what, found in said.items():
            assert found["names"], what
            assert found["different"] == [], what
    with open_delta(pairs("moe").delta, base=pairs("moe").base, framework="bits") as tuned:
        sizes = {name: t.nbytes // 2 for name, t in tuned.items()}
    for what in by_rank[0]:
        split = [set(said[what]["split"]) for said in by_rank]
        assert split[0] == split[1]
        # The experts' own tensors are fused on loading: their reads are asked for below.
        plain = {name for name in split[0] if name in sizes}
        assert "model.layers.1.self_attn.q_proj.weight" in plain, what
        for name in plain:
            both = [said[what]["read"][name] for said in by_rank]
            assert both == [sizes[name] // 2] * 2, (what, name)
    for way in ("tp", "fsdp"):
        experts = [name for name in sizes if ".experts." in name]
        read = [said[f"moe/{way}_size"]["read"] for said in by_rank]
        both = [sum(counts.get(name, 0) for name in experts) for counts in read]
        assert both == [sum(sizes[name] for name in experts) // 2] * 2


# --- Code beside the weights --------------------------------------------------------------------

CONFIGURATION: Final = """
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "rlsparse_own"
"""
MODELING: Final = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
AUTO_MAP: Final = {
    "AutoConfig": "configuration_own.OwnConfig",
    "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
}


def test_code_of_the_model(llama: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path[:])
    fields = {
        "model_type": "rlsparse_own",
        "auto_map": AUTO_MAP,
        "architectures": ["OwnForCausalLM"],
    }
    tuned = copied(llama.tuned, tmp_path / "own", **fields)
    (tuned / "configuration_own.py").write_text(CONFIGURATION)
    (tuned / "modeling_own.py").write_text(MODELING)
    delta = tmp_path / "delta"
    encode_delta(llama.base, tuned, delta)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        from_delta(llama.base, delta, trust_remote_code=False)
    assert not (tmp_path / "modules").exists()
    auto: Any = transformers.AutoModelForCausalLM
    expected = auto.from_pretrained(tuned, trust_remote_code=True)
    for wanted in (None, "AutoModelForCausalLM"):
        got = from_delta(llama.base, delta, trust_remote_code=True, auto_class=wanted)
        assert type(got).__name__ == "OwnForCausalLM"
        assert got.config.model_type == "rlsparse_own"
        assert got.state_dict().keys() == expected.state_dict().keys()
        assert_same_answers(got, expected)


# --- Refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ({"gguf_file": "x.gguf"}, "gguf_file: .*safetensors"),
        ({"state_dict": {}}, "state_dict: "),
        ({"variant": "fp16"}, "variant: "),
        ({"adapter_kwargs": {"token": None}}, "adapter_kwargs: .*load_adapter"),
    ],
)
def test_arguments_without_a_meaning(arguments: Any, remedy: str, llama: Pair) -> None:  # noqa: ANN401 - any
    with pytest.raises(TypeError, match=rf"^from_delta\(\) does not accept {remedy}"):
        from_delta(llama.base, llama.delta, **arguments)


@pytest.mark.parametrize(
    ("name", "where"), [("llama", "0.mlp.up_proj"), ("moe", "1.mlp.experts.3.up_proj")]
)
def test_a_base_of_another_revision(
    name: str, where: str, pairs: Callable[[str], Pair], tmp_path: Path
) -> None:
    pair, tensor = pairs(name), f"model.layers.{where}.weight"
    base = copied(pair.base, tmp_path / "base")

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if tensor in tensors:
            bits(tensors[tensor])[3] ^= 1
        return tensors

    edit_weights(base, change)
    with pytest.raises(BaseMismatchError, match="has different values; wrong base") as caught:
        from_delta(base, pair.delta)
    assert caught.value.tensor == tensor


def test_a_base_that_differs_where_tuning_changed_nothing(llama: Pair, tmp_path: Path) -> None:
    base = copied(llama.base, tmp_path / "base")

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if "model.norm.weight" in tensors:
            bits(tensors["model.norm.weight"])[3] ^= 1
        return tensors

    edit_weights(base, change)
    with pytest.raises(BaseMismatchError, match="has different values; wrong base") as caught:
        from_delta(base, llama.delta)
    assert caught.value.tensor == "model.norm.weight"


def test_a_base_without_a_tensor(llama: Pair, tmp_path: Path) -> None:
    base = copied(llama.base, tmp_path / "base")
    for index in base.glob("*.index.json"):
        index.unlink()
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(base.glob("*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    del tensors["model.norm.weight"]
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(BaseMismatchError, match=r"'model.norm.weight': is missing from the base"):
        from_delta(base, llama.delta)


def test_a_base_of_another_architecture(llama: Pair, pairs: Callable[[str], Pair]) -> None:
    with pytest.raises(BaseMismatchError, match="is missing from the base"):
        from_delta(pairs("bert").base, llama.delta)


def test_a_quantised_base(llama: Pair, tmp_path: Path) -> None:
    method = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    base = copied(llama.base, tmp_path / "base", quantization_config=method)
    edit_weights(base, lambda tensors: {n: t.to(torch.int8) for n, t in tensors.items()})
    expected = "the base is quantised by bitsandbytes, the tuned model not quantised: .*I8"
    with pytest.raises(BaseMismatchError, match=expected):
        from_delta(base, llama.delta)


@pytest.mark.parametrize("method", ["torchao", "gguf"])
def test_a_tuned_model_that_is_no_plain_tensors(method: str, llama: Pair, tmp_path: Path) -> None:
    fields = {"quant_method": method, "quant_type": "int4_weight_only"}
    delta = copied(llama.delta, tmp_path / "delta", quantization_config=fields)
    with pytest.raises(RlsparseError, match=f"quantised by {method}, .*rlsparse apply"):
        from_delta(llama.base, delta)


def test_an_adapter_as_the_base(llama: Pair, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"a": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BaseMismatchError, match="the base is an adapter; pass the model"):
        from_delta(tmp_path, llama.delta)


def test_a_base_in_gguf(llama: Pair, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="holds no safetensors file"):
        from_delta(tmp_path, llama.delta)


def test_places_with_nothing_in_them(llama: Pair, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such file or folder"):
        from_delta(tmp_path / "none", llama.delta)
    with pytest.raises(NotFoundError, match="no such folder"):
        from_delta(llama.base, tmp_path / "none")
    with pytest.raises(NotFoundError, match="it is no delta"):
        from_delta(llama.base, llama.tuned)


def test_no_configuration(llama: Pair, tmp_path: Path) -> None:
    base, delta = copied(llama.base, tmp_path / "base"), copied(llama.delta, tmp_path / "delta")
    (delta / "config.json").unlink()
    assert from_delta(base, delta).config.initializer_range == 0.02
    (base / "config.json").unlink()
    with pytest.raises(NotFoundError, match=r"neither the delta nor the base has a config\.json"):
        from_delta(base, delta)


# --- Quantised alike ----------------------------------------------------------------------------


def test_models_of_8_bit_floats(tmp_path: Path) -> None:
    # On CPUs, transformers turns them into bfloat16 as it loads them.
    torch.manual_seed(0)
    sizes = DECODER | {"hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    config = transformers.LlamaConfig(**sizes)
    model: Any = transformers.LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "plain")

    def quantise(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        quantised = {}
        for name, tensor in tensors.items():
            quantised[name] = tensor
            if "_proj" in name:
                scale = tensor.float().abs().max() / 448
                quantised[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
                blocks = [-(-size // 128) for size in tensor.shape]
                quantised[f"{name}_scale_inv"] = scale.expand(blocks).contiguous()
        return quantised

    method = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    base = copied(tmp_path / "plain", tmp_path / "base", quantization_config=method)
    edit_weights(base, quantise)
    tuned = copied(base, tmp_path / "tuned")

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        nudge(tensors.items())
        return tensors

    edit_weights(tuned, change)
    encode_delta(base, tuned, tmp_path / "delta")
    expected = load_file(tuned / "model.safetensors")
    with open_delta(tmp_path / "delta", base=base) as opened:
        assert opened.keys() == expected.keys()
        for name, tensor in expected.items():
            assert opened[name].dtype is tensor.dtype
            assert torch.equal(bits(opened[name]), bits(tensor))
    got, info = from_delta(base, tmp_path / "delta", output_loading_info=True)
    assert not any(info.values())
    assert_same_model(got, transformers.LlamaForCausalLM.from_pretrained(tuned))


# --- The Hub's cache, and from_pretrained -------------------------------------------------------


class Cache(NamedTuple):
    """A cache of the Hub with a base, ``org/name``, and deltas of it."""

    path: Path
    delta: Path
    tuned: Path


def snapshot(cache: Path, repo: str, commit: str) -> Path:
    folder = cache / ("models--" + repo.replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    return folder / "snapshots" / commit


@pytest.fixture(scope="module")
def cache(pairs: Callable[[str], Pair], tmp_path_factory: pytest.TempPathFactory) -> Cache:
    pair, root = pairs("llama"), tmp_path_factory.mktemp("hub")
    base = copied(pair.base, snapshot(root / "hub", "org/name", "a" * 40))
    encode_delta(base, pair.tuned, root / "delta")
    of_hub = copied(root / "delta", snapshot(root / "hub", "me/delta", "b" * 40))
    copied(root / "delta", of_hub / "deep" / "er")
    return Cache(root / "hub", root / "delta", pair.tuned)


COMPARE: Final = """
import sys
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from rlsparse_store.integrations.transformers import enable_transformers, from_delta

delta, tuned = sys.argv[1:]
want = AutoModelForCausalLM.from_pretrained(tuned).state_dict()

def check(model):
    have = model.state_dict()
    assert have.keys() == want.keys()
    for name, tensor in want.items():
        assert have[name].dtype is tensor.dtype, name
        assert torch.equal(have[name].view(torch.int16), tensor.view(torch.int16)), name
    assert model.generation_config.max_new_tokens == 7
    return model
"""
BY_NAME: Final = (
    COMPARE
    + """
check(from_delta(None, delta))
check(from_delta("org/name", delta, local_files_only=True))
check(from_delta("org/name@" + "a" * 40, delta))
check(from_delta("org/name", delta, base_revision="main"))
assert check(from_delta(None, "me/delta")).name_or_path == "me/delta"
check(from_delta(None, "me/delta", revision="b" * 40, subfolder="deep/er"))
for names in ((None, "me/nothing"), ("org/other", delta)):
    try:
        from_delta(*names)
    except Exception as error:
        assert type(error).__name__ == "HubOfflineError", error
    else:
        raise AssertionError(names)
"""
)
ENABLED: Final = (
    COMPARE
    + """
def refused(place, **options):
    try:
        AutoModelForCausalLM.from_pretrained(place, **options)
    except OSError:
        return True
    return False

assert refused(delta)
enable_transformers()
check(AutoModelForCausalLM.from_pretrained(delta))
enable_transformers()
model = check(AutoModelForCausalLM.from_pretrained(delta))
check(AutoModelForCausalLM.from_pretrained(tuned))
check(AutoModelForCausalLM.from_pretrained("me/delta"))
check(AutoModelForCausalLM.from_pretrained("me/delta", revision="b" * 40, subfolder="deep/er"))
model = check(transformers.LlamaForCausalLM.from_pretrained(delta))
assert refused(delta + "-nothing")
assert refused(delta, variant="fp16")
assert AutoModelForCausalLM.from_pretrained(delta, dtype=torch.float32).dtype is torch.float32
tokenizer = AutoTokenizer.from_pretrained(delta)
pipe = transformers.pipeline("text-generation", model=delta, tokenizer=tokenizer)
check(pipe.model)
other = transformers.pipeline("text-generation", model=tuned, tokenizer=tokenizer)
assert pipe("w1 w2", do_sample=False) == other("w1 w2", do_sample=False)
arguments = transformers.TrainingArguments(
    "trained", report_to=[], use_cpu=True, disable_tqdm=True
)
check(transformers.Trainer(model=model, args=arguments).model)
"""
)


@pytest.mark.parametrize("script", [BY_NAME, ENABLED], ids=["from_delta", "enable_transformers"])
def test_names_of_the_hub(script: str, cache: Cache, tmp_path: Path) -> None:
    env = {"HF_HUB_CACHE": str(cache.path), "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = run_script(script, cache.delta, cache.tuned, cwd=tmp_path, **env)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("where", "name"),
    [
        (modeling_utils, "_get_resolved_checkpoint_files"),
        (modeling_utils.PreTrainedModel, "_load_pretrained_model"),
    ],
)
def test_other_inner_parts_of_transformers_are_noticed(
    where: Any,  # noqa: ANN401 - a module or a class
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def other(_model: object, _weights: object) -> None: ...

    find = modeling_utils._get_resolved_checkpoint_files
    monkeypatch.setattr(where, name, other)
    with pytest.raises(RlsparseError, match=r"does not support transformers .* use from_delta"):
        enable_transformers()
    monkeypatch.delattr(where, name)
    with pytest.raises(RlsparseError, match=r"does not support transformers .* use from_delta"):
        enable_transformers()
    monkeypatch.undo()
    assert modeling_utils._get_resolved_checkpoint_files is find


def test_what_from_pretrained_cannot_load_from_a_delta(
    llama: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"quant_method": "torchao", "quant_type": "int4_weight_only"}
    delta = copied(llama.delta, tmp_path / "delta", quantization_config=method)
    loaded: list[object] = []
    load = from_pretrained._wrap_load(lambda *arguments: loaded.append(arguments))
    place = SimpleNamespace(
        pretrained_model_name_or_path=str(delta), download_kwargs=None, device_map=None
    )
    monkeypatch.setattr(
        from_pretrained, "open_for_model", lambda *_: open_delta(delta, base=llama.base)
    )
    model = SimpleNamespace(config=SimpleNamespace(quantization_config=method))
    with pytest.raises(RlsparseError, match=r"quantised by torchao, .*rlsparse apply"):
        load(model, None, None, place)
    monkeypatch.setattr(unsupported, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(RlsparseError, match=r"DeepSpeed ZeRO-3 .*rlsparse apply"):
        load(SimpleNamespace(config=None), None, None, place)
    with pytest.raises(RlsparseError, match=r"DeepSpeed ZeRO-3 .*rlsparse apply"):
        from_delta(llama.base, llama.delta)
    assert not loaded
    load(model, {}, None, place)
    assert len(loaded) == 1

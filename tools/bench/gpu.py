"""Measures encoding and applying on a GPU: ``python tools/bench/gpu.py [--out DIR]``.

On a machine with CUDA, one call takes a few minutes. It checks that the GPU gives the bytes that
the CPU gives, then prints a table and writes it as JSON. On a machine that reaches no package
index, bring the packages as wheels and name their folder (``--wheels``); the package itself is
installed from this checkout, its native kernels built on the spot.

Rates are of model bytes, in units of 10^9 per second, and of base plus tuned bytes for the stage
that compares and partitions. With ``--device cpu`` and Triton's interpreter it only shows that it
runs: such rates mean nothing, and are not printed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
DENSITIES = (0.005, 0.02, 0.09, 0.28)
PACKAGES = (
    "numpy",
    "zstandard",
    "safetensors",
    "huggingface_hub",
    "click",
    "xxhash",
    "tqdm",
    "yaml",
)
ROUNDS = 3
"""Times that each thing is measured; the best counts."""


@dataclass(frozen=True)
class Row:
    """What was measured at one density, in 10^9 bytes per second.

    Attributes:
        asked: The density asked for.
        density: The density there is.
        partition: Compare and partition, of base plus tuned bytes.
        split: All that the device does to encode but hashing and proving, of model bytes.
        join: The same to decode but hashing, of model bytes.
        hashing: Leaf hashes, of the bytes hashed.
        encode: Weights on the device to a delta in memory, of model bytes.
        apply: A delta in memory to weights on the device, of model bytes.
        peer_encode: ``ne``, ``nonzero``, gather, to the host, then zstd-1: int32 and bfloat16.
        peer_apply: ``index_copy_`` of what the peer stores, from the host.
        delta_bytes: Bytes of the delta.
        peer_bytes: Bytes of what the peer stores, after zstd-1.
    """

    asked: float
    density: float
    partition: float
    split: float
    join: float
    hashing: float
    encode: float
    apply: float
    peer_encode: float
    peer_apply: float
    delta_bytes: int
    peer_bytes: int


def install(wheels: Path | None) -> None:
    """Install what is missing, from wheels if a folder is named, and this checkout."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps"]
    if wheels is not None:
        pip += ["--no-index", "--find-links", str(wheels)]
    names = {"yaml": "pyyaml"}
    if missing:
        subprocess.run([*pip, *(names.get(name, name) for name in missing)], check=True)
    if importlib.util.find_spec("rlsparse_store") is None:
        subprocess.run([*pip, "--no-build-isolation", str(ROOT)], check=True)
        importlib.invalidate_caches()


def main() -> None:
    """Install, then measure in a process that sees what was installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder for what is written")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install from")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--mib", type=float, default=4096, help="MiB of model")
    parser.add_argument("--profile", action="store_true", help="write what each kernel takes, too")
    parser.add_argument("--densities", type=float, nargs="+", default=DENSITIES)
    arguments = parser.parse_args()
    install(arguments.wheels)
    if arguments.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    bench = Bench(arguments.device, int(arguments.mib * (1 << 20)))
    report = bench.run(arguments.densities)
    print_table(report)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "gpu.json").write_text(json.dumps(report, indent=2) + "\n")
        for density in arguments.densities if arguments.profile else ():
            bench.profile(density, arguments.out)


def print_table(report: dict[str, Any]) -> None:
    """Print what was measured."""
    print(f"{report['machine']}; {report['model_bytes'] / 1e9:.3g} GB of bfloat16")
    print(f"the same bytes as on the CPU: {'yes' if report['parity'] else 'NO'}")
    if not report["is_measured"]:
        print("interpreted: no rates")
        return
    print(f"device-to-device copy, read plus written: {report['copy']:.0f} GB/s")
    columns = [
        *("partition", "split", "join", "hashing", "encode", "apply", "peer_encode", "peer_apply")
    ]
    print(f"{'density':>9}" + "".join(f"{name:>13}" for name in columns) + f"{'delta/peer':>13}")
    for row in report["rows"]:
        rates = "".join(f"{row[name]:13.1f}" for name in columns)
        smaller = row["peer_bytes"] / row["delta_bytes"]
        print(f"{100 * row['density']:8.2f}%{rates}{1 / smaller:13.3f}")


class Bench:
    """Everything that is measured on one device.

    Args:
        device: The device.
        nbytes: Bytes of model.
    """

    def __init__(self, device: str, nbytes: int) -> None:
        import torch  # noqa: PLC0415 - after it may have been installed

        self.torch = torch
        self.device = torch.device(device)
        self.is_measured = self.device.type == "cuda"
        torch.manual_seed(0)
        self.words = nbytes // 2
        self.per_tensor = min(self.words, 1 << 26)
        count = -(-self.words // self.per_tensor)
        shape = (max(1, self.per_tensor // 4096), min(4096, self.per_tensor))
        self.base = {
            f"layers.{n}.weight": (torch.randn(shape, device=self.device) * 0.02).bfloat16()
            for n in range(count)
        }
        self.nbytes = sum(t.nbytes for t in self.base.values())

    def run(self, densities: list[float]) -> dict[str, Any]:
        """Measure at each density."""
        rows = [asdict(self.measure(density)) for density in densities]
        report = {
            "machine": self.machine(),
            "model_bytes": self.nbytes,
            "parity": self.parity(),
            "is_measured": self.is_measured,
        }
        if self.is_measured:
            # What the interpreter takes is no rate of anything.
            report |= {"copy": self.copy_rate(), "rows": rows}
        return report

    def profile(self, density: float, out: Path) -> None:
        """Write what each kernel and copy takes of encoding, and of applying."""
        tuned = self.tune(density)
        with tempfile.TemporaryDirectory(dir=self.place()) as folder:
            work = Path(folder)
            for name, stage in (
                ("encode", lambda: self.encode(tuned, work)),
                ("apply", lambda: self.apply(work)),
            ):
                (out / f"profile-{name}-{density}.txt").write_text(self._profiled(stage))

    def _profiled(self, stage: Callable[[], object]) -> str:
        from torch.profiler import ProfilerActivity, profile  # noqa: PLC0415 - as torch

        activities, order = [ProfilerActivity.CPU], "self_cpu_time_total"
        if self.is_measured:
            activities, order = [*activities, ProfilerActivity.CUDA], "self_cuda_time_total"
        with profile(activities=activities) as taken:
            stage()
        table: str = taken.key_averages().table(sort_by=order, row_limit=40)
        return table

    def machine(self) -> str:
        """The device, its software, and the processors beside it."""
        torch = self.torch
        cores = os.cpu_count()
        if not self.is_measured:
            return f"interpreter, torch {torch.__version__}, {cores} cores"
        name = torch.cuda.get_device_name(self.device)
        return f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}, {cores} cores"

    def tune(self, density: float) -> dict[str, Any]:
        """Move weights in float32 by so much that this share of them changes when rounded."""
        torch = self.torch
        sample = next(iter(self.base.values())).view(-1)[: 1 << 22].float()
        noise = torch.randn_like(sample)
        low, high = 1e-9, 1.0
        for _ in range(40):
            middle = (low * high) ** 0.5
            moved = (sample + middle * noise).bfloat16() != sample.bfloat16()
            low, high = (middle, high) if moved.float().mean() < density else (low, middle)

        def move(tensor: Any) -> Any:  # noqa: ANN401 - a tensor
            wide = tensor.float()
            return wide.add_(torch.randn_like(wide), alpha=low).bfloat16()

        return {name: move(tensor) for name, tensor in self.base.items()}

    def seconds(self, function: Callable[[], object]) -> float:
        """The least time of a few rounds, with all of the device's work done."""
        best = float("inf")
        for _ in range(ROUNDS if self.is_measured else 1):
            self.wait()
            begun = time.perf_counter()
            function()
            self.wait()
            best = min(best, time.perf_counter() - begun)
        return best

    def wait(self) -> None:
        """Wait for the device."""
        if self.is_measured:
            self.torch.cuda.synchronize()

    def copy_rate(self) -> float:
        """Bytes read plus bytes written."""
        source = next(iter(self.base.values()))
        target = self.torch.empty_like(source)
        return 2 * source.nbytes / self.seconds(lambda: target.copy_(source)) / 1e9

    def measure(self, density: float) -> Row:
        """Everything at one density."""
        tuned = self.tune(density)
        changed = sum(int((tuned[n] != t).sum()) for n, t in self.base.items())
        with tempfile.TemporaryDirectory(dir=self.place()) as folder:
            work = Path(folder)
            encode, delta_bytes = self.encode(tuned, work)
            apply = self.apply(work)
        peer_encode, stored, peer_bytes = self.peer_encode(tuned)
        partition, split, join = self.drafting(tuned)
        return Row(
            asked=density,
            density=changed / sum(t.numel() for t in self.base.values()),
            partition=partition,
            split=split,
            join=join,
            hashing=self.hashing(),
            encode=encode,
            apply=apply,
            peer_encode=peer_encode,
            peer_apply=self.peer_apply(stored),
            delta_bytes=delta_bytes,
            peer_bytes=peer_bytes,
        )

    def place(self) -> Path | None:
        """Where base and delta lie: in memory, if there is room. Containers often have 64 MB."""
        memory = Path("/dev/shm")  # noqa: S108 - only to be in memory
        has_room = memory.is_dir() and shutil.disk_usage(memory).free > 2 * self.nbytes
        return memory if has_room else None

    def drafting(self, tuned: dict[str, Any]) -> tuple[float, float, float]:
        """The stages of one large tensor on the device, in rates of what each reads.

        Compare and partition: survey, contexts, and the ranks and steps of changed words, at the
        contexts that the encoder chooses, of base plus tuned bytes. Then all that becomes streams
        in main memory, of model bytes; and joining those to words again, of model bytes.
        """
        from rlsparse_store.backends import CodedWords  # noqa: PLC0415 - after installing
        from rlsparse_store.backends.gpu import GpuBackend  # noqa: PLC0415
        from rlsparse_store.backends.gpu.marks import Marks  # noqa: PLC0415
        from rlsparse_store.backends.gpu.splitting import scatter  # noqa: PLC0415
        from rlsparse_store.backends.gpu.survey import table_of  # noqa: PLC0415
        from rlsparse_store.codec import draft_chunks  # noqa: PLC0415
        from rlsparse_store.delta import BLOCK_WORDS, stretches  # noqa: PLC0415
        from rlsparse_store.dtypes import DTYPES  # noqa: PLC0415

        backend, dtype = GpuBackend(), DTYPES["BF16"]
        name, before = next(iter(self.base.items()))
        old, new = (t.view(-1).view(self.torch.int16) for t in (before, tuned[name]))

        def chunks() -> list[Any]:
            survey = backend.survey([(old, new)], dtype.coding)
            row = before.shape[-1]
            return [
                survey.chunk(0, slice(s.start, s.stop), (row, s.start % row), s.changes)
                for s in stretches(survey.blocks(0, BLOCK_WORDS), BLOCK_WORDS, len(old))
            ]

        drafts = draft_chunks(backend, chunks(), dtype.coding, dtype.mantissa_bits)
        bounds, rows = [d.bounds for d in drafts], [d.rows for d in drafts]

        def partition() -> None:
            found = chunks()
            marks = Marks.of(table_of(found, rows), dtype.coding, bounds, found[0].bits)
            scatter(marks, found[0].bits)

        def split() -> None:
            draft_chunks(backend, chunks(), dtype.coding, dtype.mantissa_bits)

        # Copies, as whoever decodes has them.
        coded = [
            CodedWords(c.base, d.bounds, d.rows, d.streams.changed, bytes(d.streams.content))
            for c, d in zip(chunks(), drafts, strict=True)
        ]

        def join() -> None:
            backend.prove(coded, [c.tuned for c in chunks_there], dtype.coding)

        chunks_there = chunks()
        nbytes = before.nbytes
        return (
            2 * nbytes / self.seconds(partition) / 1e9,
            nbytes / self.seconds(split) / 1e9,
            nbytes / self.seconds(join) / 1e9,
        )

    def hashing(self) -> float:
        """Leaf hashes of a tensor."""
        from rlsparse_store.backends.gpu import hash_on_device  # noqa: PLC0415 - as above

        data = next(iter(self.base.values())).view(-1).view(self.torch.uint8)
        return data.nbytes / self.seconds(lambda: hash_on_device(data)) / 1e9

    def encode(self, tuned: dict[str, Any], work: Path) -> tuple[float, int]:
        """From weights on the device to a finished delta in memory; the last one stays."""
        from safetensors.torch import save_file  # noqa: PLC0415

        from rlsparse_store.torch.device import DeviceCoder  # noqa: PLC0415 - as above
        from rlsparse_store.torch.encoder import DeltaEncoder  # noqa: PLC0415

        (work / "base").mkdir()
        save_file(self.base, work / "base" / "model.safetensors", {"format": "pt"})
        reports: list[Any] = []
        with DeltaEncoder(work / "base", device=self.device, keep="device") as encoder:
            if not self.is_measured:
                encoder._coder = DeviceCoder(self.device)  # noqa: SLF001 - interpreted

            def once() -> None:
                reports.append(encoder.encode(tuned, work / f"delta-{len(reports)}"))

            taken = self.seconds(once)
        (work / f"delta-{len(reports) - 1}").rename(work / "delta")
        for earlier in work.glob("delta-*"):
            shutil.rmtree(earlier)
        return self.nbytes / taken / 1e9, reports[-1].delta_bytes

    def apply(self, work: Path) -> float:
        """From a delta in memory to weights on the device."""
        from rlsparse_store.torch import patch_  # noqa: PLC0415 - as above

        best = 0.0
        for _ in range(ROUNDS if self.is_measured else 1):
            model = {name: tensor.clone() for name, tensor in self.base.items()}
            self.wait()
            begun = time.perf_counter()
            patch_(model, work / "delta")
            self.wait()
            best = max(best, self.nbytes / (time.perf_counter() - begun) / 1e9)
        return best

    def peer_encode(self, tuned: dict[str, Any]) -> tuple[float, dict[str, Any], int]:
        """What trainers do who send indices and values: int32 and bfloat16, then zstd-1."""
        import zstandard  # noqa: PLC0415 - after installing

        torch = self.torch
        stored: dict[str, Any] = {}

        def pack(name: str) -> int:
            new = tuned[name].view(-1)
            places = torch.ne(self.base[name].view(-1), new).nonzero().view(-1)
            pair = places.to(torch.int32).cpu(), new[places].cpu()
            stored[name] = pair
            parts = [t.view(torch.uint8).numpy().tobytes() for t in pair]
            return sum(len(zstandard.ZstdCompressor(level=1).compress(part)) for part in parts)

        sizes: list[int] = []

        def once() -> None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                sizes[:] = pool.map(pack, self.base)

        return self.nbytes / self.seconds(once) / 1e9, stored, sum(sizes)

    def peer_apply(self, stored: dict[str, Any]) -> float:
        """The same, back: ``index_copy_`` of what lies in main memory."""
        torch = self.torch
        model = {name: tensor.clone().view(-1) for name, tensor in self.base.items()}

        def once() -> None:
            for name, (places, values) in stored.items():
                there = places.to(self.device).to(torch.int64)
                model[name].index_copy_(0, there, values.to(self.device))

        return self.nbytes / self.seconds(once) / 1e9

    def parity(self) -> bool:
        """Whether the GPU gives the bytes of the CPU for words of several widths."""
        from safetensors.torch import save_file  # noqa: PLC0415

        from rlsparse_store.delta import encode_delta  # noqa: PLC0415 - as above
        from rlsparse_store.torch import DeviceCoder  # noqa: PLC0415

        torch = self.torch
        words = 300_001 if self.is_measured else 3001
        with tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            for name in ("base", "tuned"):
                (work / name).mkdir()
            base = {
                "bf16": (torch.randn(words) * 0.02).bfloat16(),
                "f32": torch.randn(words) * 0.02,
                "f16": torch.randn(words).half(),
                "f8": torch.randn(words).to(torch.float8_e4m3fn),
                "i8": torch.randint(-128, 128, (words,), dtype=torch.int8),
                "i32": torch.randint(-(2**31), 2**31, (words,), dtype=torch.int32),
            }
            tuned = {name: tensor.clone() for name, tensor in base.items()}
            for name, tensor in tuned.items():
                ints = {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
                hit = torch.rand(words) < (0.3 if name == "bf16" else 0.02)
                view = tensor.view(ints)
                view[hit] += torch.randint(1, 100, (int(hit.sum()),), dtype=ints)
            save_file(base, work / "base" / "model.safetensors", {"format": "pt"})
            save_file(tuned, work / "tuned" / "model.safetensors", {"format": "pt"})
            encode_delta(work / "base", work / "tuned", work / "cpu")
            coder = DeviceCoder(self.device)
            encode_delta(work / "base", work / "tuned", work / "gpu", coder=coder)
            file = Path("rlsparse", "delta.safetensors")
            return (work / "cpu" / file).read_bytes() == (work / "gpu" / file).read_bytes()


if __name__ == "__main__":
    main()

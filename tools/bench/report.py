"""Markdown tables of the results."""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]

HEAD: Final = (
    "codec",
    "bytes per changed weight",
    "bits",
    "encode GB/s",
    "÷ memcpy",
    "decode GB/s",
    "÷ memcpy",
    "peak MB, encode / decode",
    "exact",
    "notes",
)
LEGEND: Final = """\
GB/s are bytes of the model per second, on one core, best of up to {repeat} runs. memcpy copies \
the base into mapped memory, in the same process. Peak memory excludes the inputs and, for \
in-place decoders, the copy that they overwrite. Exact means bit-exact, for NaNs and signed zeros \
too. *Restated* codecs are plain NumPy implementations of a published description.
"""


def tabulate(results: Json) -> str:
    """Render all tables as one Markdown document."""
    machine = results["machine"]
    lines = [
        "# Measurements",
        "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB; "
        f"{machine['system']}, Python {machine['python']}; {machine['date']}. "
        + ", ".join(f"{name} {version}" for name, version in results["packages"].items())
        + ".",
        "",
        LEGEND.format(repeat=results["options"]["repeat"]),
    ]
    for entry in results["inputs"]:
        lines += _section(entry, results["codecs"])
    if results["skipped"]:
        lines += ["## Skipped", ""]
        lines += [f"* {name}: {reason}" for name, reason in results["skipped"].items()]
        lines.append("")
    return "\n".join(lines)


def _section(entry: Json, codecs: Json) -> list[str]:
    """The table of one input."""
    whole = max(
        (row for row in entry["results"] if "words" in row),
        key=lambda row: row["words"],
        default={"words": 0, "changed": 0, "total_words": 0},
    )
    files = entry["files"]
    speed = {
        key: files["nbytes"] / files[f"{key}_seconds"] / 1e9 for key in ("cp", "cp_fsync", "cmp")
    }
    share = whole["changed"] / max(whole["words"], 1)
    summary = (
        f"{whole['total_words']:,} weights, {share:.2%} changed. The same file: "
        f"cp {speed['cp']:.2f} GB/s, cp and fsync {speed['cp_fsync']:.2f}, cmp {speed['cmp']:.2f}."
    )
    return [
        f"## {entry['name']}",
        "",
        summary,
        "",
        _row(HEAD),
        _row("---" for _ in HEAD),
        *(_row(_cells(row, codecs[row["codec"]])) for row in entry["results"]),
        "",
    ]


def _row(cells: Any) -> str:  # noqa: ANN401 - any iterable of text
    return f"| {' | '.join(cells)} |"


def _cells(row: Json, codec: Json) -> list[str]:
    name = f"**{row['codec']}**" if codec["kind"] == "ours" else row["codec"]
    if "failed" in row:
        return [name, *[""] * (len(HEAD) - 2), f"failed: {row['failed']}"]
    per_changed = row["nbytes"] / max(row["changed"], 1)
    return [
        name,
        f"{per_changed:.3f}",
        f"{8 * per_changed:.2f}",
        *_speed(row, "encode"),
        *_speed(row, "decode"),
        f"{row['encode']['peak_bytes'] / 1e6:,.0f} / {row['decode']['peak_bytes'] / 1e6:,.0f}",
        _exact(row),
        "; ".join(_notes(row, codec)),
    ]


def _speed(row: Json, operation: str) -> tuple[str, str]:
    """Speed in GB/s, and relative to memcpy."""
    seconds = row[operation]["seconds"]
    return f"{2e-9 * row['words'] / seconds:.3g}", f"{row['memcpy_seconds'] / seconds:.3g}"


def _exact(row: Json) -> str:
    if not row["exact"]:
        return "no"
    if row["exact_awkward"] is None:
        return "fails on NaN, ±0, inf"
    return "yes" if row["exact_awkward"] else "not for NaN, ±0"


def _notes(row: Json, codec: Json) -> list[str]:
    notes = ["restated"] if codec["kind"] == "restated" else []
    notes += [codec["note"]] if codec["note"] else []
    notes += ["in place"] if codec["in_place"] else []
    if row["words"] < row["total_words"]:
        notes.append(f"first {row['words'] / (1 << 20):g} Mi weights")
    return notes

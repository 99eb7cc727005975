"""The model card of a repository of deltas."""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.delta.units import format_bytes, format_percent
from rlsparse_store.errors import RlsparseError
from rlsparse_store.format.names import printable
from rlsparse_store.installing import install_command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rlsparse_store.delta.report import DeltaReport
    from rlsparse_store.hub.repo_id import RepoId
    from rlsparse_store.publish.published_base import PublishedBase

__all__ = ["CARD", "PICTURE", "write_card"]

CARD: Final = "README.md"
"""Path of the card in the repository."""

PICTURE: Final = "density.png"
"""Path of the heat map in the repository."""

BEGIN: Final = "<!-- rlsparse: written by rlsparse push; changes between these marks get lost -->"
END: Final = "<!-- rlsparse: end -->"

TAGS: Final = ("rlsparse", "sparse-delta", "rl")
MOST_ENTRIES: Final = 200
"""Deltas in the card of a run: the last ones."""
MOST_METRICS: Final = 6
"""Metrics in the table of a run."""
MOST_MODULES: Final = 12
"""Kinds of module in the table of a delta: those with the most weights."""

_FRONT: Final = re.compile(
    r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE
)
_SECTION: Final = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
# Fields of the base's card that also hold for the tuned model, and their syntax.
_TAKEN: Final = {
    "license": re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}"),
    "license_name": re.compile(r"[A-Za-z0-9][\w .+-]{0,80}"),
    "license_link": re.compile(r"https://[\w./%~+-]{1,300}"),
    "pipeline_tag": re.compile(r"[a-z][a-z0-9-]{0,60}"),
}
_MARKUP: Final = re.compile(r"([\\`*_{}\[\]()#!|~$@:])")


def write_card(
    old: str | None,
    repo: RepoId,
    base: PublishedBase,
    reports: Mapping[str, DeltaReport],
    metrics: Mapping[str, Mapping[str, float]],
    *,
    has_picture: bool,
) -> str:
    """The card of a repository of deltas.

    Args:
        old: The existing card, of which text outside the marks is kept.
        repo: The repository.
        base: The base of the deltas.
        reports: The deltas by folder; an empty string for the repository itself.
        metrics: Metrics of entries of a run, by folder.
        has_picture: Whether the repository has a heat map.

    Raises:
        RlsparseError: The front matter of the existing card cannot be parsed.
    """
    import yaml  # noqa: PLC0415 - a tenth of a command's start-up

    fields, body = _split(old or "", repo)
    _update(fields, base, reports)
    lines = _section(repo, base, reports, metrics, has_picture=has_picture)
    section = "\n".join([BEGIN, *lines, END])
    if BEGIN in body and END in body.partition(BEGIN)[2]:
        body = _SECTION.sub(lambda _: section, body, count=1)
    elif body.strip():
        body = f"{body.rstrip()}\n\n{section}\n"
    else:
        body = f"\n# {_plain(repo.repo.partition('/')[2])}\n\n{section}\n"
    front = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{front}---\n{body}"


def _split(card: str, repo: RepoId) -> tuple[dict[str, Any], str]:
    """The front matter of a card, and its body."""
    import yaml  # noqa: PLC0415 - as above

    found = _FRONT.match(card)
    if found is None:
        return {}, card
    try:
        fields = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        msg = "the front matter of README.md is not YAML: correct it and push again"
        raise RlsparseError(msg, file=printable(str(repo))) from error
    if fields is not None and not isinstance(fields, dict):
        msg = "the front matter of README.md has no fields: correct it and push again"
        raise RlsparseError(msg, file=printable(str(repo)))
    return fields or {}, card[found.end() :]


def _update(
    fields: dict[str, Any], base: PublishedBase, reports: Mapping[str, DeltaReport]
) -> None:
    """Set the fields of this package, and add missing ones of the base's card."""
    fields["base_model"] = base.repo.repo
    fields["base_model_relation"] = "finetune"
    fields["library_name"] = "rlsparse-store"
    tags = fields.get("tags")
    tags = tags if isinstance(tags, list) else [] if tags is None else [tags]
    fields["tags"] = [*tags, *(tag for tag in TAGS if tag not in tags)]
    for name in ["pipeline_tag"] if "license" in fields else _TAKEN:
        value = base.card.get(name)
        if isinstance(value, str) and _TAKEN[name].fullmatch(value):
            fields.setdefault(name, value)
    fields["rlsparse"] = {
        "format": max(report.format for report in reports.values()),
        "base_revision": base.repo.revision,
        "deltas": [
            {
                **({"subfolder": folder} if folder else {}),
                "density": round(report.density, 6),
                "delta_bytes": report.delta_bytes,
                "tuned_bytes": report.tuned_bytes,
            }
            for folder, report in _ordered(reports)[-MOST_ENTRIES:]
        ],
    }


def _ordered(reports: Mapping[str, DeltaReport]) -> list[tuple[str, DeltaReport]]:
    return sorted(reports.items(), key=lambda item: natural_order(item[0]))


def _section(
    repo: RepoId,
    base: PublishedBase,
    reports: Mapping[str, DeltaReport],
    metrics: Mapping[str, Mapping[str, float]],
    *,
    has_picture: bool,
) -> list[str]:
    """The lines between the marks."""
    ordered = _ordered(reports)
    folder, last = ordered[-1]
    within = f', subfolder="{folder}"' if folder else ""
    option = f" --subfolder {folder}" if folder else ""
    stored = sum(report.delta_bytes for report in reports.values())
    raw = sum(report.tuned_bytes for report in reports.values())
    what = "a **sparse delta**" if len(ordered) == 1 else f"{len(ordered)} **sparse deltas**"
    against = f"[{base.repo.repo}](/{base.repo.repo}) at commit `{base.repo.revision}`"
    lines = [
        f"This repository holds {what} of {against}: only the weights that tuning changed.",
        "The tuned checkpoint is restored bit for bit. Optimizer state is not included.",
        "",
        "## Use",
        "",
        "```python",
        f"# {install_command('transformers')}",
        "from rlsparse_store import from_delta",
        f'model = from_delta("{base.repo.repo}", "{repo.repo}"{within})',
        "```",
        "",
        "To restore the full checkpoint, byte for byte and verified:",
        "",
        "```sh",
        f"rlsparse apply {repo.repo}{option} -o OUT",
        "```",
        "",
        "## What changed",
        "",
        *_deltas(ordered, metrics),
        "",
    ]
    if len(ordered) > 1:
        lines += [f"Total: {format_bytes(raw)} of tensors in {format_bytes(stored)}.", ""]
    else:
        lines += [*_modules(last), ""]
    if any(report.cast for report in reports.values()):
        lines += ["**Lossy**: the checkpoint was rounded to bfloat16 before encoding.", ""]
    if has_picture:
        caption = f" of {_plain(folder)}" if folder else ""
        lines += [f"![Changed weights by layer and module{caption}]({PICTURE})", ""]
    return lines


def _deltas(
    ordered: list[tuple[str, DeltaReport]], metrics: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """A table of the deltas, with the metrics that most of them have."""
    shown = ordered[-MOST_ENTRIES:]
    having = Counter(name for folder, _ in shown for name in metrics.get(folder, {}))
    columns = sorted(having, key=lambda name: (-having[name], name))[:MOST_METRICS]
    headings = ["delta", *map(_plain, columns)]
    headings += ["weights", "changed", "density", "checkpoint", "stored", "smaller"]
    rows = [
        [
            _plain(folder or "this repository"),
            *(_number(metrics.get(folder, {}).get(name)) for name in columns),
            *_sizes(report),
        ]
        for folder, report in shown
    ]
    note = f"The last {len(shown)} of {len(ordered):,} deltas; `run.json` has all."
    return [*([note, ""] if len(shown) < len(ordered) else []), *_table(headings, rows)]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _sizes(report: DeltaReport) -> list[str]:
    return [
        f"{report.elements:,}",
        f"{report.changed:,}",
        format_percent(report.density),
        format_bytes(report.tuned_bytes),
        format_bytes(report.delta_bytes),
        f"{report.tuned_bytes / report.delta_bytes:,.1f} times",
    ]


def _modules(report: DeltaReport) -> list[str]:
    """A table of the largest kinds of module."""
    largest = sorted(report.modules, key=lambda group: (-group.elements, group.name))
    rows = [
        [_plain(g.name), f"{g.elements:,}", f"{g.changed:,}", format_percent(g.density)]
        for g in largest[:MOST_MODULES]
    ]
    return _table(["kind of module", "weights", "changed", "density"], rows)


def _table(headings: list[str], rows: list[list[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return [f"| {' | '.join(row)} |" for row in [headings, rule, *rows]]


def _plain(text: str) -> str:
    """Foreign text, escaped for Markdown."""
    text = printable(text, 80).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", text)

"""``rlsparse push``."""

from __future__ import annotations

import sys
from typing import Any

import click

from rlsparse_store.cli.options import cache_option, json_option, quiet_option, token_option
from rlsparse_store.cli.output import print_json, print_table, progress_bar
from rlsparse_store.delta.run import place_of
from rlsparse_store.delta.run_files import natural_order
from rlsparse_store.delta.units import format_bytes
from rlsparse_store.errors import PrivateBaseError
from rlsparse_store.format.file_names import DELTA_FOLDER
from rlsparse_store.format.names import printable
from rlsparse_store.installing import install_command
from rlsparse_store.publish.push import PushReport, push_delta, push_pair

__all__ = ["push_command"]

MOST_FILES = 30
"""Files in the table of a push; of more, the folders are listed."""


@click.command("push")
@click.argument("places", nargs=-1, required=True, metavar="DELTA|RUN REPO | REPO")
@click.option("--base", "-b", metavar="BASE", help="With --tuned: the base to encode against.")
@click.option(
    "--tuned", "-t", metavar="TUNED", help="Encode this checkpoint and publish the delta."
)
@click.option(
    "--base-id",
    metavar="ORG/BASE[@REVISION]",
    help="The base on the Hub, if the delta was encoded against a local copy.",
)
@click.option("--subfolder", default="", metavar="FOLDER", help="Folder within REPO.")
@click.option(
    "--revision", metavar="BRANCH", help="Branch of REPO, which is created if it does not exist."
)
@click.option("--private", is_flag=True, help="Create REPO as private.")
@click.option("--create-pr", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--commit-message", "-m", metavar="TEXT", help="Message of the commit, one line.")
@click.option("--prune", is_flag=True, help="Remove the entries from REPO that RUN does not have.")
@click.option("--yes", "-y", is_flag=True, help="Publish the name of a base that is not public.")
@click.option(
    "--base-revision", metavar="REVISION", help="With --tuned: revision of BASE on the Hub."
)
@click.option(
    "--tuned-revision", metavar="REVISION", help="With --tuned: revision of TUNED on the Hub."
)
@click.option("--dry-run", is_flag=True, help="Report what would be sent, and send nothing.")
@token_option
@cache_option
@json_option
@quiet_option
def push_command(
    places: tuple[str, ...],
    base: str | None,
    tuned: str | None,
    private: bool,  # noqa: FBT001 - click passes every parameter by name
    yes: bool,  # noqa: FBT001
    as_json: bool,  # noqa: FBT001
    quiet: bool,  # noqa: FBT001
    **options: Any,  # noqa: ANN401 - those of push_delta, by their names
) -> None:
    """Publish DELTA, or RUN, in REPO (ORG/NAME) on the Hub, with a model card.

    One commit holds all files. Files that REPO has are not sent again. Entries of REPO that
    RUN does not have stay, unless --prune removes them from the branch. With --base and --tuned,
    the delta is encoded first. Log in with `hf auth login`.
    """
    encodes = base is not None and tuned is not None
    if (base is None) != (tuned is None) or len(places) != (1 if encodes else 2):
        msg = "give DELTA and REPO, or REPO with --base and --tuned"
        raise click.UsageError(msg)
    if options["create_pr"] and options["revision"] not in (None, "main"):
        msg = "--create-pr opens a pull request to the default branch: omit --revision"
        raise click.UsageError(msg)
    if options["prune"] and (encodes or not place_of(places[0]).is_run()):
        msg = "--prune removes entries of a run: give RUN and REPO"
        raise click.UsageError(msg)
    of_pair = {name: options.pop(name) for name in ("base_revision", "tuned_revision", "cache_dir")}
    options |= {"private": True if private else None, "name_private_base": yes}

    def push() -> PushReport:
        with progress_bar("push", quiet=quiet) as progress:
            if base is not None and tuned is not None:
                return push_pair(base, tuned, places[0], progress=progress, **of_pair, **options)
            return push_delta(places[0], places[1], **options)

    try:
        report = push()
    except PrivateBaseError as error:
        if not sys.stdin.isatty():
            raise
        click.echo(f"rlsparse: {error}", err=True)
        click.confirm("Publish its name?", abort=True, err=True)
        options["name_private_base"] = True
        report = push()
    if as_json:
        print_json(report.as_json())
    else:
        _print(report, is_dry=options["dry_run"])


def _print(report: PushReport, *, is_dry: bool) -> None:
    if not report.uploads and not report.deleted:
        click.echo(f"{printable(report.repo)} is up to date, at commit {report.commit}")
        return
    if is_dry:
        click.echo(f"would publish in {printable(report.repo)}")
    else:
        click.echo(f"published {printable(str(report.url))}")
    click.echo(f"  base: {printable(report.base_repo)} at commit {report.base_revision}")
    print_table(["file", "size"], _file_rows(report))
    unchanged = f"; {report.unchanged} files unchanged" if report.unchanged else ""
    ratio = report.tuned_bytes / max(1, report.upload_bytes)
    click.echo(
        f"  total: {format_bytes(report.upload_bytes)} for checkpoints of "
        f"{format_bytes(report.tuned_bytes)}, {ratio:,.1f} times smaller{unchanged}"
    )
    if not report.has_picture:
        click.echo(f"  the card has no picture; to add one: {install_command('plot')}")


def _file_rows(report: PushReport) -> list[list[str]]:
    """A row for each file, or for each of many folders."""
    sizes = [(upload.path, upload.nbytes) for upload in report.uploads]
    removed = report.deleted
    if len(sizes) + len(removed) > MOST_FILES:
        folders: dict[str, int] = {}
        entries = {path.partition(f"/{DELTA_FOLDER}/")[0] for path, _ in sizes}
        for path, nbytes in sizes:
            parents = (path.rsplit("/", depth)[0] for depth in range(1, path.count("/") + 1))
            folder = next((parent for parent in parents if parent in entries), path)
            folders[folder] = folders.get(folder, 0) + nbytes
        sizes = sorted(folders.items(), key=lambda item: natural_order(item[0]))
        removed = [*report.pruned, *(p for p in removed if not _is_within(p, report.pruned))]
    rows = [[printable(path, 80), format_bytes(nbytes)] for path, nbytes in sizes]
    return [*rows, *([printable(path, 80), "removed"] for path in removed)]


def _is_within(path: str, folders: list[str]) -> bool:
    return any(path.startswith(f"{folder}/") for folder in folders)

"""Push and pull of deltas with the real client against a Hub on loopback."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hub_clients import clients, home, hub, run  # noqa: F401 - fixtures
from hub_commands import fail, succeed
from loopback_hub import (
    NAMED,
    READER,
    TOKEN,
    LoopbackHub,
    rlsparse,
)
from models import move_weights, small_llama
from pairs import bf16_tensor, contents, save, tune

import make_pair
from rlsparse_store.delta import encode_delta

if TYPE_CHECKING:
    from collections.abc import Iterator


# --- There and back -----------------------------------------------------------------------------


def test_push_and_pull_and_apply(pair: Path, hub: LoopbackHub, home: Path) -> None:
    pushed = succeed(hub, home, "push", pair / "delta", "me/new", "--json")
    report = json.loads(pushed.stdout)
    there = hub.files("me/new")
    assert report["commit"] == hub.repos["me/new"].refs["main"]
    for name, data in contents(pair / "delta").items():
        assert there[name] == data
    assert {"README.md", ".gitattributes"} <= there.keys()
    assert len(hub.repos["me/new"].commits) == 2, "the first, and one of ours"

    succeed(hub, home, "pull", "me/new", "-o", pair / "pulled")
    card = (pair / "pulled" / "README.md").read_bytes()
    assert contents(pair / "pulled") == {**contents(pair / "delta"), "README.md": card}
    succeed(hub, home, "apply", "me/new", "-o", pair / "out")
    assert contents(pair / "out") == contents(pair / "tuned")
    assert not hub.leaks, "a token went to another host"


def test_pushed_files_are_not_uploaded_again(pair: Path, hub: LoopbackHub, home: Path) -> None:
    succeed(hub, home, "push", pair / "delta", "me/new")
    hub.requests.clear()
    again = succeed(hub, home, "push", pair / "delta", "me/new")
    assert "is up to date" in again.stdout
    assert hub.sent == 0
    assert {request.method for request in hub.requests} == {"GET"}
    assert len(hub.repos["me/new"].commits) == 2


def test_links_are_not_published(pair: Path, hub: LoopbackHub, home: Path) -> None:
    (pair / "secret").write_text("hf_secret")
    (pair / "delta" / "vocab.json").symlink_to(pair / "secret")
    stderr = fail(1, hub, home, "push", pair / "delta", "me/new")
    assert "vocab.json: is a link" in stderr
    assert "me/new" not in hub.repos


def test_dry_run_sends_nothing(pair: Path, hub: LoopbackHub, home: Path) -> None:
    result = succeed(hub, home, "push", pair / "delta", "me/new", "--dry-run")
    assert "would publish in me/new" in result.stdout
    assert "rlsparse/delta.safetensors" in result.stdout
    assert re.search(r"total: \S+ kB for checkpoints of \S+ kB, \S+ times smaller", result.stdout)
    assert "me/new" not in hub.repos
    assert hub.sent == 0


def test_little_is_uploaded(tmp_path: Path, hub: LoopbackHub, home: Path) -> None:
    make_pair.main(
        [str(tmp_path), "--single", "8000000", "--density", "0.05"], standalone_mode=False
    )
    hub.commit("org/base", contents(tmp_path / "base"))
    tuned = tmp_path / "tuned"
    result = succeed(hub, home, "push", "me/x", "-b", "org/base", "-t", tuned, "--json")
    report = json.loads(result.stdout)
    assert report["tuned_bytes"] == 16_000_000
    assert hub.sent <= report["tuned_bytes"] / 60


def test_push_in_one_step_and_load(pair: Path, hub: LoopbackHub, home: Path) -> None:
    succeed(hub, home, "push", "me/new", "--base", "org/base", "--tuned", pair / "tuned")
    script = (
        "from rlsparse_store import open_delta\n"
        "with open_delta('me/new', framework='bits') as tuned:\n"
        "    print({name: tuned[name].tobytes().hex()[:64] for name in tuned})\n"
    )
    environment = {"PATH": os.defpath, **hub.environment(home)}
    command = [sys.executable, "-P", "-c", script]
    printable = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    tensors = eval(printable.stdout)  # noqa: S307 - printed by the script above
    assert tensors["a"] == tune(bf16_tensor(0, 300, 200), 3).data.hex()[:64]


LOAD = """
import sys
from rlsparse_store import from_delta
model = from_delta("org/llama", "me/llamas", subfolder="step-2")
model.save_pretrained(sys.argv[1])
"""


def test_loaded_model_is_the_tuned_one(tmp_path: Path, hub: LoopbackHub, home: Path) -> None:
    model = small_llama()
    model.save_pretrained(tmp_path / "base")
    for step in (1, 2):
        move_weights(model, seed=step, density=0.05)
        model.save_pretrained(tmp_path / f"step-{step}")
    hub.commit("org/llama", contents(tmp_path / "base"))
    steps = [tmp_path / "step-1", tmp_path / "step-2"]
    succeed(hub, home, "encode", "org/llama", *steps, "-o", tmp_path / "run")
    succeed(hub, home, "push", tmp_path / "run", "me/llamas")
    subprocess.run(
        [sys.executable, "-P", "-c", LOAD, tmp_path / "loaded"],
        env={"PATH": os.defpath, **hub.environment(home)},
        check=True,
    )
    assert contents(tmp_path / "loaded") == contents(tmp_path / "step-2")


def test_unchanged_files_of_a_base_are_fetched_once(
    pair: Path, hub: LoopbackHub, home: Path
) -> None:
    succeed(hub, home, "apply", NAMED, "-o", pair / "out")
    hub.commit("org/base", {**hub.files("org/base"), "README.md": b"A new card."})
    hub.requests.clear()
    succeed(hub, home, "encode", "org/base", pair / "tuned", "-o", pair / "again")
    assert not [r for r in hub.requests if r.path.startswith("/large/org/base")]


def test_push_names_the_base_of_a_local_folder(pair: Path, hub: LoopbackHub, home: Path) -> None:
    (base,) = pair.glob("models--org--base/snapshots/*")
    local = pair / "local"
    base.rename(local)
    encode_delta(local, pair / "tuned", pair / "nameless")
    before = contents(pair / "nameless")
    stderr = fail(4, hub, home, "push", pair / "nameless", "me/new")
    assert "--base-id" in stderr
    succeed(hub, home, "push", pair / "nameless", "me/new", "--base-id", "org/base")
    assert contents(pair / "nameless") == before
    report = json.loads(succeed(hub, home, "inspect", "me/new", "--json").stdout)
    assert report["base_repo"] == "org/base"
    assert report["base_revision"] == hub.repos["org/base"].refs["main"]
    succeed(hub, home, "apply", "me/new", "-o", pair / "out")
    assert contents(pair / "out") == contents(pair / "tuned")
    assert str(pair) not in "".join(d.decode("latin-1") for d in hub.files("me/new").values())


def test_push_rejects_a_wrong_base_id(pair: Path, hub: LoopbackHub, home: Path) -> None:
    for name, still in (("values", bf16_tensor(2, 200, 100)), ("shape", bf16_tensor(1, 20, 10))):
        tensors = {"a": bf16_tensor(0, 300, 200), "still": still}
        hub.commit(f"org/{name}", contents(save(pair / name, tensors)))
        stderr = fail(3, hub, home, "push", pair / "delta", "me/new", "--base-id", f"org/{name}")
        assert "wrong base" in stderr
    assert "me/new" not in hub.repos


# --- Runs, branches, pull requests --------------------------------------------------------------


def test_run_is_one_commit(run: Path, hub: LoopbackHub, home: Path) -> None:
    succeed(hub, home, "push", run, "me/run")
    assert len(hub.repos["me/run"].commits) == 2
    listed = json.loads(succeed(hub, home, "inspect", "me/run", "--json").stdout)
    assert [d["name"] for d in listed["deltas"]] == ["step-1", "step-2", "step-10"]
    succeed(hub, home, "apply", "me/run", "--subfolder", "step-2", "-o", run / "../out")
    assert contents(run / "../out") == contents(run / "../step-2")
    one = json.loads(
        succeed(hub, home, "inspect", "me/run", "--subfolder", "step-2", "--json").stdout
    )
    assert one["changed"] == listed["deltas"][1]["changed"]
    succeed(hub, home, "pull", "me/run", "-o", run / "../again")
    pulled = contents(run / "../again")
    published = {n: d for n, d in contents(run).items() if n.startswith(("step-", "run.json"))}
    own = {n: d for n, d in pulled.items() if not n.startswith((".run/lock", "README.md"))}
    assert own == published
    stderr = fail(4, hub, home, "apply", "me/run", "-o", run / "../none")
    assert "there are deltas in step-1, step-10, step-2 (--subfolder)" in stderr


def test_compare_by_ids(run: Path, hub: LoopbackHub, home: Path) -> None:
    for step in ("step-1", "step-2"):
        succeed(hub, home, "push", run / step, f"me/{step}")
    named = succeed(hub, home, "compare", "me/step-1", "me/step-2", "--json")
    (base,) = run.parent.glob("models--org--base/snapshots/*")
    local = succeed(hub, home, "compare", run / "step-1", run / "step-2", "-b", base, "--json")
    assert json.loads(named.stdout)["pairs"] == json.loads(local.stdout)["pairs"]
    both = ("me/step-1", "me/step-2@main")
    succeed(hub, home, "mask", *both, "-o", run / "../mask.safetensors")
    assert "too few deltas" in fail(4, hub, home, "compare", "me/step-1")


@pytest.mark.parametrize("command", ["compare", "series"])
def test_a_run_by_its_id(run: Path, hub: LoopbackHub, home: Path, command: str) -> None:
    succeed(hub, home, "push", run, "me/run")
    (base,) = run.parent.glob("models--org--base/snapshots/*")
    local = json.loads(succeed(hub, home, command, run, "-b", base, "--json").stdout)
    for offline in ("0", "1"):
        named = succeed(hub, home, command, "me/run", "--json", HF_HUB_OFFLINE=offline)
        assert json.loads(named.stdout) == local
    assert "me/none" in fail(4, hub, home, command, "me/none")


def test_later_steps_join_the_run(run: Path, hub: LoopbackHub, home: Path) -> None:
    for step in ("step-10", "step-1"):
        succeed(hub, home, "push", run / step, "me/run", "--subfolder", step)
    card = hub.files("me/run")["README.md"].decode()
    assert re.findall(r"^\| (step-\d+) ", card, re.MULTILINE) == ["step-1", "step-10"]
    assert 'subfolder="step-10"' in card


def test_a_folder_may_be_named_like_that_of_a_delta(
    run: Path, hub: LoopbackHub, home: Path
) -> None:
    for name in ("my-rlsparse", "rlsparse-2"):
        succeed(hub, home, "push", run / "step-1", "me/run", "--subfolder", name)
    listed = json.loads(succeed(hub, home, "inspect", "me/run", "--json").stdout)
    assert [d["folder"] for d in listed["deltas"]] == ["my-rlsparse", "rlsparse-2"]


@pytest.mark.parametrize("extra", [[], ["--dry-run"], ["--create-pr"], ["--revision", "new"]])
def test_no_delta_at_the_root_of_a_run(
    run: Path, hub: LoopbackHub, home: Path, extra: list[str]
) -> None:
    succeed(hub, home, "push", run, "me/run")
    hub.requests.clear()
    stderr = fail(1, hub, home, "push", run / "step-2", "me/run", *extra)
    assert stderr == (
        "rlsparse: me/run: holds a run, with deltas in step-1, step-2, step-10: "
        "choose a folder within it (--subfolder), or another repository\n"
    )
    assert {request.method for request in hub.requests} == {"GET"}
    assert hub.repos["me/run"].refs.keys() == {"main"}
    succeed(hub, home, "push", run / "step-2", "me/run", "--subfolder", "again")
    listed = json.loads(succeed(hub, home, "inspect", "me/run", "--json").stdout)
    assert [d["folder"] for d in listed["deltas"]] == ["again", "step-1", "step-2", "step-10"]


def test_no_run_in_the_repository_of_a_delta(run: Path, hub: LoopbackHub, home: Path) -> None:
    succeed(hub, home, "push", run / "step-1", "me/new")
    hub.requests.clear()
    said = "rlsparse: me/new: holds a single delta, which cannot contain others: "
    said += "choose another repository\n"
    assert fail(1, hub, home, "push", run, "me/new") == said
    assert fail(1, hub, home, "push", run / "step-2", "me/new", "--subfolder", "step-2") == said
    assert {request.method for request in hub.requests} == {"GET"}
    succeed(hub, home, "push", run / "step-2", "me/new")
    succeed(hub, home, "apply", "me/new", "-o", run / "../out")
    assert contents(run / "../out") == contents(run / "../step-2")


def test_runs_and_deltas_in_folders_stay_apart(run: Path, hub: LoopbackHub, home: Path) -> None:
    succeed(hub, home, "push", run / "step-1", "me/both", "--subfolder", "one")
    stderr = fail(1, hub, home, "push", run, "me/both", "--subfolder", "one")
    assert "me/both/one: holds a single delta" in stderr
    assert "choose a folder beside it (--subfolder) or another repository" in stderr
    succeed(hub, home, "push", run, "me/both", "--subfolder", "one-run")
    stderr = fail(1, hub, home, "push", run / "step-1", "me/both", "--subfolder", "one-run")
    assert "me/both/one-run: holds a run, with deltas in one-run/step-1, one-run/step-2" in stderr


def test_deltas_of_another_base_are_rejected(
    run: Path, pair: Path, hub: LoopbackHub, home: Path
) -> None:
    succeed(hub, home, "push", run / "step-1", "me/run", "--subfolder", "step-1")
    other = {"a": bf16_tensor(7, 300, 200)}
    tuned = save(pair / "other-tuned", {"a": tune(other["a"], 1)})
    hub.commit("org/other", contents(save(pair / "other", other)))
    stderr = fail(
        3,
        *(hub, home, "push", "me/run", "-b", "org/other", "-t", tuned, "--subfolder", "step-2"),
    )
    assert "deltas of another base" in stderr


def test_one_branch_each(run: Path, hub: LoopbackHub, home: Path) -> None:
    for step in ("step-1", "step-2"):
        succeed(hub, home, "push", run / step, "me/run", "--revision", step)
    for step in ("step-1", "step-2"):
        succeed(hub, home, "apply", f"me/run@{step}", "-o", run / "../out" / step)
        assert contents(run / "../out" / step) == contents(run / ".." / step)
    assert "rlsparse/delta.safetensors" not in hub.files("me/run")


def test_pull_request(pair: Path, hub: LoopbackHub, home: Path) -> None:
    before = dict(hub.files(NAMED))
    hub.commit(NAMED, {"README.md": b"only a card\n"})
    result = succeed(hub, home, "push", pair / "delta", NAMED, "--create-pr", "-m", "A better one")
    assert "discussions/1" in result.stdout
    assert hub.files(NAMED) == {"README.md": b"only a card\n"}
    assert hub.files(NAMED, "refs/pr/1")["config.json"] == before["config.json"]
    fail_usage = rlsparse(
        hub, home, "push", pair / "delta", NAMED, "--create-pr", "--revision", "x"
    )
    assert fail_usage.returncode == 2


def test_new_delta_replaces_the_old_one(pair: Path, hub: LoopbackHub, home: Path) -> None:
    (base,) = pair.glob("models--org--base/snapshots/*")
    both = {"a": bf16_tensor(3, 300, 200), "still": bf16_tensor(4, 200, 100)}
    encode_delta(base, save(pair / "both", both), pair / "sharded", shard_bytes=1)
    succeed(hub, home, "push", pair / "sharded", "me/new")
    assert "rlsparse/delta.safetensors.index.json" in hub.files("me/new")
    succeed(hub, home, "push", pair / "delta", "me/new")
    found = [name for name in hub.files("me/new") if name.startswith("rlsparse/")]
    assert found == ["rlsparse/delta.safetensors"]
    succeed(hub, home, "verify", "me/new", "-b", "org/base")


# --- Private bases ------------------------------------------------------------------------------


def test_name_of_a_private_base(pair: Path, hub: LoopbackHub, home: Path) -> None:
    hub.repos["org/base"].private = True
    stderr = fail(1, hub, home, "push", pair / "delta", "me/new")
    assert "is private" in stderr
    assert "me/new" not in hub.repos
    succeed(hub, home, "push", pair / "delta", "me/hidden", "--private")
    assert hub.repos["me/hidden"].private
    succeed(hub, home, "push", pair / "delta", "me/new", "--yes")
    del hub.repos["org/base"]
    assert "is not visible" in fail(1, hub, home, "push", pair / "delta", "me/newer")


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1), (b"\x04", 1)])
def test_confirmation_can_be_declined(
    pair: Path, hub: LoopbackHub, home: Path, answer: bytes, code: int
) -> None:
    hub.repos["org/base"].private = True
    main, side = pty.openpty()
    os.write(main, answer)
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "rlsparse_store", "push", pair / "delta", "me/new"],
        env={"PATH": os.defpath, **hub.environment(home)},
        stdin=side,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        _, said = process.communicate(timeout=60)
    os.close(side)
    os.close(main)
    assert process.returncode == code
    assert "Publish its name? [y/N]:" in said
    assert ("rlsparse: aborted: confirmation required\n" in said) == bool(code)
    assert "Traceback" not in said
    assert ("me/new" in hub.repos) == (code == 0)


# --- The card -----------------------------------------------------------------------------------

OLD_CARD = """---
license: mit
tags:
- mine
datasets:
- org/data
---
# My model

Words of my own.
"""


def test_card_has_text_and_metadata(pair: Path, hub: LoopbackHub, home: Path) -> None:
    card = "---\nlicense: apache-2.0\npipeline_tag: text-generation\n---\n# Base\n"
    sha = hub.commit("org/base", {**hub.files("org/base"), "README.md": card.encode()})
    hub.repos["org/base"].commits[hub_revision(pair)] = hub.files("org/base")
    succeed(hub, home, "push", pair / "delta", "me/new")
    written = hub.files("me/new")["README.md"].decode()
    fields = front(written)
    assert fields["base_model"] == "org/base"
    assert fields["base_model_relation"] == "finetune"
    assert fields["library_name"] == "rlsparse-store"
    assert fields["license"] == "apache-2.0"
    assert fields["pipeline_tag"] == "text-generation"
    assert set(fields["tags"]) == {"rlsparse", "sparse-delta", "rl"}
    assert fields["rlsparse"]["base_revision"] == hub_revision(pair) != sha
    assert 'model = from_delta("org/base", "me/new")' in written
    assert "rlsparse apply me/new -o OUT" in written


def test_existing_card_is_kept(pair: Path, hub: LoopbackHub, home: Path) -> None:
    hub.commit("me/new", {"README.md": OLD_CARD.encode()})
    succeed(hub, home, "push", pair / "delta", "me/new")
    first = hub.files("me/new")["README.md"].decode()
    assert "# My model\n\nWords of my own.\n" in first
    assert front(first)["license"] == "mit"
    assert front(first)["datasets"] == ["org/data"]
    assert front(first)["tags"] == ["mine", "rlsparse", "sparse-delta", "rl"]
    hub.commit("me/new", {**hub.files("me/new"), "README.md": first.encode() + b"\nThe end.\n"})
    (base,) = pair.glob("models--org--base/snapshots/*")
    encode_delta(base, base, pair / "nothing")
    succeed(hub, home, "push", pair / "nothing", "me/new")
    second = hub.files("me/new")["README.md"].decode()
    assert second.count("rlsparse: end") == 1
    assert "| 0 | 0 % |" in second
    assert second.endswith("\nThe end.\n")


def test_unreadable_card(pair: Path, hub: LoopbackHub, home: Path) -> None:
    for front_text in (b"---\na: [\n---\n", b"---\n- a\n---\n"):
        hub.commit("me/new", {"README.md": front_text})
        assert "front matter of README.md" in fail(1, hub, home, "push", pair / "delta", "me/new")


def test_foreign_text_is_escaped_in_a_card(tmp_path: Path, hub: LoopbackHub, home: Path) -> None:
    hostile = "<img src=x>|[a](http://evil)`$x$`"
    base = {hostile: bf16_tensor(0, 64, 64), "model.layers.0.x$y$.weight": bf16_tensor(1, 64, 64)}
    tuned = save(tmp_path / "tuned", {name: tune(t, 1, 0.5) for name, t in base.items()})
    card = b"---\nlicense: apache-2.0\npipeline_tag: <script>\n---\n"
    hub.commit("org/base", {**contents(save(tmp_path / "base", base)), "README.md": card})
    succeed(hub, home, "push", "me/new", "-b", "org/base", "-t", tuned)
    written = hub.files("me/new")["README.md"].decode()
    assert "<img" not in written
    assert "<script>" not in written
    assert "](http://evil)" not in written
    assert hub.files("me/new")["density.png"].startswith(b"\x89PNG")


def front(card: str) -> dict[str, Any]:
    fields: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return fields


def hub_revision(pair: Path) -> str:
    (base,) = pair.glob("models--org--base/snapshots/*")
    return base.name


# --- Faults -------------------------------------------------------------------------------------

WRITES = ["preupload", "objects/batch", "PUT /upload", "POST /verify", "commit/main"]


@pytest.mark.parametrize("fault", ["503", "dropped"])
@pytest.mark.parametrize("on", ["api/models", "repos/create", *WRITES])
def test_push_retries_after_a_transient_fault(
    pair: Path, hub: LoopbackHub, home: Path, fault: str, on: str
) -> None:
    hub.fail(fault, on)
    succeed(hub, home, "push", pair / "delta", "me/new", RLSPARSE_HUB_TIMEOUT="20")
    assert len(hub.repos["me/new"].commits) == 2
    assert contents(pair / "delta").items() <= hub.files("me/new").items()


def test_lost_response_to_the_commit(pair: Path, hub: LoopbackHub, home: Path) -> None:
    hub.fail("lost", "commit/main")
    succeed(hub, home, "push", pair / "delta", "me/new")
    assert len(hub.repos["me/new"].commits) == 2, "once, not twice"


def test_lost_response_to_a_pull_request(pair: Path, hub: LoopbackHub, home: Path) -> None:
    hub.commit("me/new", {"README.md": b""})
    hub.fail("lost", "commit/main")
    stderr = fail(1, hub, home, "push", pair / "delta", "me/new", "--create-pr")
    assert "look at the repository's pull requests" in stderr
    assert [ref for ref in hub.repos["me/new"].refs if "pr" in ref] == ["refs/pr/1"]


@pytest.mark.parametrize(
    ("fault", "on", "code", "words"),
    [
        ("401", "preupload", 1, "log in"),
        ("403", "preupload", 1, "access token does not allow"),
        ("403", "repos/create", 1, "access token does not allow"),
        ("404", "objects/batch", 4, "not found on the Hub"),
        ("409", "commit/main", 1, "someone else wrote"),
        ("412", "commit/main", 1, "someone else wrote"),
        ("413", "PUT /upload", 1, "a limit of the Hub"),
        ("429", "commit/main", 1, "a limit of the Hub"),
        ("quota", "objects/batch", 1, "storage limit"),
        ("500", "commit/main", 1, "try again later"),
        ("flipped", "PUT /upload", 1, "HTTP 400"),
        ("silence", "preupload", 1, "did not answer"),
        ("silence", "PUT /upload", 1, "did not answer"),
        ("silence", "commit/main", 1, "did not answer"),
    ],
)
def test_permanent_fault_publishes_nothing(
    pair: Path, hub: LoopbackHub, home: Path, fault: str, on: str, code: int, words: str
) -> None:
    hub.fail(fault, on, times=1000)
    begun = time.monotonic()
    stderr = fail(code, hub, home, "push", pair / "delta", "me/new")
    assert words in stderr
    assert "me/new" not in hub.repos or hub.files("me/new").keys() == {".gitattributes"}
    assert time.monotonic() - begun < 90
    hub.faults.clear()
    succeed(hub, home, "push", pair / "delta", "me/new")
    assert contents(pair / "delta").items() <= hub.files("me/new").items()


def test_error_is_the_last_output(pair: Path, hub: LoopbackHub, home: Path) -> None:
    """Other uploads are in progress when one fails; they end with the process."""
    hub.fail("403", "preupload")
    hub.fail("silence", "preupload", times=1000)
    assert "access token does not allow" in fail(1, hub, home, "push", pair / "delta", "me/new")


def test_push_without_write_permission(pair: Path, hub: LoopbackHub, home: Path) -> None:
    assert "access token does not allow" in fail(
        1, hub, home, "push", pair / "delta", NAMED, HF_TOKEN=READER
    ) or hub.files(NAMED)
    hub.commit(NAMED, {})
    stderr = fail(1, hub, home, "push", pair / "delta", NAMED, HF_TOKEN=READER)
    assert "access token does not allow" in stderr
    offline = fail(4, hub, home, "push", pair / "delta", NAMED, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in offline


def test_concurrent_pushes(run: Path, hub: LoopbackHub, home: Path) -> None:
    hub.commit("me/run", {"README.md": b""})
    before = len(hub.repos["me/run"].commits)

    def push(step: str) -> int:
        return rlsparse(hub, home, "push", run / step, "me/run", "--subfolder", step).returncode

    with ThreadPoolExecutor() as pool:
        codes = list(pool.map(push, ["step-1", "step-2", "step-10"]))
    made = len(hub.repos["me/run"].commits) - before
    assert codes.count(0) == made >= 1
    assert set(codes) <= {0, 1}
    for step, code in zip(["step-1", "step-2", "step-10"], codes, strict=True):
        assert (f"{step}/rlsparse/delta.safetensors" in hub.files("me/run")) == (code == 0)


@pytest.mark.parametrize("on", ["repos/create", "preupload", "PUT /upload", "commit/main"])
def test_killed_push_repeated(pair: Path, hub: LoopbackHub, home: Path, on: str) -> None:
    hub.fail("silence", on)
    with kill_on_request(hub, home, on, "push", str(pair / "delta"), "me/new"):
        assert "me/new" not in hub.repos or hub.files("me/new").keys() == {".gitattributes"}
    succeed(hub, home, "push", pair / "delta", "me/new")
    assert contents(pair / "delta").items() <= hub.files("me/new").items()


@pytest.mark.parametrize("on", ["GET /api/models/org/delta", "GET /large/org/delta"])
def test_killed_pull_repeated(pair: Path, hub: LoopbackHub, home: Path, on: str) -> None:
    hub.fail("silence", on)
    with kill_on_request(hub, home, on, "pull", NAMED, "-o", str(pair / "out")):
        assert not (pair / "out").exists()
    succeed(hub, home, "pull", NAMED, "-o", pair / "out")
    assert contents(pair / "out") == contents(pair / "delta")
    assert not [path for path in pair.iterdir() if ".tmp-" in path.name]


class kill_on_request:  # noqa: N801 - a context manager
    """Runs a command and kills it at a request that the Hub leaves unanswered."""

    def __init__(self, hub: LoopbackHub, home: Path, on: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "rlsparse_store", *arguments],
            env={"PATH": os.defpath, **hub.environment(home)},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        asked = re.compile(on)
        until = time.monotonic() + 60
        while not any(asked.search(f"{r.method} {r.path}") for r in hub.requests):
            assert time.monotonic() < until
            assert self._process.poll() is None
            time.sleep(0.02)

    def __enter__(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("fault", ["flipped", "truncated", "500", "dropped", "slow", "429"])
def test_pull_retries_after_faults(pair: Path, hub: LoopbackHub, home: Path, fault: str) -> None:
    hub.fail(fault, r"GET /large/.*safetensors$")
    succeed(hub, home, "pull", NAMED, "-o", pair / "out")
    assert contents(pair / "out") == contents(pair / "delta")


def test_pull_rejects_damaged_files(pair: Path, hub: LoopbackHub, home: Path) -> None:
    files = dict(hub.files(NAMED))
    delta = bytearray(files["rlsparse/delta.safetensors"])
    delta[len(delta) // 2] ^= 1
    hub.commit(NAMED, {**files, "rlsparse/delta.safetensors": bytes(delta)})
    fail(3, hub, home, "pull", NAMED, "-o", pair / "out")
    assert not (pair / "out").exists()
    assert "is not a repository id" in fail(4, hub, home, "pull", "x", "-o", pair / "out")
    assert "holds no delta" in fail(4, hub, home, "pull", "org/base", "-o", pair / "out")


@pytest.mark.parametrize("offline", ["0", "1"])
def test_pull_downloads_only_listed_files(
    pair: Path, hub: LoopbackHub, home: Path, offline: str
) -> None:
    files = {**contents(pair / "delta"), "pytorch_model.bin": b"x", "step-9/optimizer.pt": b"x"}
    hub.commit(NAMED, files)
    everything = f"import huggingface_hub; huggingface_hub.snapshot_download({NAMED!r})"
    environment = {"PATH": os.defpath, **hub.environment(home)}
    subprocess.run([sys.executable, "-P", "-c", everything], env=environment, check=True)
    (cached,) = home.glob("hub/models--org--delta/snapshots/*")
    assert contents(cached) == files
    succeed(hub, home, "pull", NAMED, "-o", pair / "out", HF_HUB_OFFLINE=offline)
    assert contents(pair / "out") == contents(pair / "delta")


# Prints the number of files and folders flushed before the rename, and their total number.
FLUSHED = """
import os, sys
from pathlib import Path
flushed, before, fsync, rename = set(), set(), os.fsync, os.rename
def counted_fsync(descriptor):
    fsync(descriptor)
    flushed.add(os.fstat(descriptor).st_ino)
def counted_rename(source, target):
    before.update(flushed)
    rename(source, target)
os.fsync, os.rename = counted_fsync, counted_rename
from rlsparse_store.publish import pull_delta
out = Path(sys.argv[2])
pull_delta(sys.argv[1], out)
found = {path.stat().st_ino for path in (out, *out.rglob("*"))}
print(len(found & before), len(found))
"""


def test_pull_flushes_everything_before_the_rename(
    pair: Path, hub: LoopbackHub, home: Path
) -> None:
    environment = {"PATH": os.defpath, **hub.environment(home)}
    command = [sys.executable, "-P", "-c", FLUSHED, NAMED, str(pair / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
    there = len([*(pair / "delta").rglob("*")]) + 1
    assert done.stdout.split() == [str(there)] * 2


@pytest.mark.usefixtures("pair")
def test_inspect_of_a_server_without_ranges(hub: LoopbackHub, home: Path) -> None:
    hub.fail("no ranges", "GET /large", times=1000)
    report = json.loads(succeed(hub, home, "inspect", NAMED, "--json").stdout)
    assert report["changed"] > 0


# --- Other clients ------------------------------------------------------------------------------


def test_hf_downloads_and_uploads(pair: Path, hub: LoopbackHub, home: Path) -> None:
    hf = Path(sys.executable).with_name("hf")
    environment = {"PATH": os.defpath, **hub.environment(home)}

    def call(*arguments: str | Path) -> None:
        done = subprocess.run(
            [hf, *arguments], env=environment, capture_output=True, check=False, text=True
        )
        assert done.returncode == 0, done.stderr

    call("repos", "create", "me/copy")
    call("upload", "me/copy", pair / "delta", ".")
    call("download", "me/copy", "--local-dir", pair / "down")
    assert contents(pair / "delta").items() <= contents(pair / "down").items()
    succeed(hub, home, "verify", "me/copy", "-b", "org/base")
    assert TOKEN not in (pair / "down" / "config.json").read_text()


@pytest.fixture
def mirror(hub: LoopbackHub, tmp_path: Path) -> Iterator[str]:
    """A mirror by a third party, olah, in front of the Hub."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    port = endpoint.partition(":")[2]
    upstream = ("--hf-scheme", "http", "--hf-netloc", f"127.0.0.1:{hub.port}")
    large = ("--hf-lfs-netloc", f"localhost:{hub.port}", "--mirror-lfs-netloc", endpoint)
    itself = ("--host", "127.0.0.1", "--port", port)
    named = ("--mirror-scheme", "http", "--mirror-netloc", endpoint)
    kept = ("--repos-path", tmp_path / "mirror", "--log-path", tmp_path / "logs")
    olah = Path(sys.executable).with_name("olah-cli")
    with (tmp_path / "olah.log").open("w") as log:
        process = subprocess.Popen(
            [olah, *itself, *upstream, *large, *named, *kept],
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(endpoint)
            yield f"http://{endpoint}"
        finally:
            process.terminate()
            process.wait()


def wait_for(endpoint: str) -> None:
    """Wait until a server listens at an endpoint."""
    until = time.monotonic() + 60
    host, _, port = endpoint.partition(":")
    while True:
        try:
            socket.create_connection((host, int(port)), 1).close()
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.1)
        else:
            return


def test_reading_through_a_mirror(pair: Path, hub: LoopbackHub, home: Path, mirror: str) -> None:
    report = json.loads(succeed(hub, home, "inspect", NAMED, "--json", HF_ENDPOINT=mirror).stdout)
    assert report["base_repo"] == "org/base"
    succeed(hub, home, "apply", NAMED, "-o", pair / "out", HF_ENDPOINT=mirror)
    assert contents(pair / "out") == contents(pair / "tuned")
    succeed(hub, home, "pull", NAMED, "-o", pair / "pulled", HF_ENDPOINT=mirror)
    assert contents(pair / "pulled") == contents(pair / "delta")

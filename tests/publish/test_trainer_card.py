"""Push of a delta with a model card that a trainer wrote."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loopback_hub import LoopbackHub, rlsparse
from pairs import contents

from rlsparse_store.delta import encode_delta

if TYPE_CHECKING:
    from pathlib import Path

TEXT = "---\nlibrary_name: trl\n---\n\n# My GRPO run\n\nTrained with TRL, with a reward of mine.\n"


def test_text_of_a_trainer_card_is_kept(pair: Path, hub: LoopbackHub) -> None:
    (pair / "tuned" / "README.md").write_text(TEXT)
    sha = hub.repos["org/base"].refs["main"]
    base = pair / "models--org--base" / "snapshots" / sha
    report = encode_delta(base, pair / "tuned", pair / "mine")
    assert "README.md" in report.carried_files
    assert contents(pair / "mine")["README.md"].decode() == TEXT
    for _ in range(2):
        done = rlsparse(hub, pair / "home", "push", pair / "mine", "me/mine")
        assert done.returncode == 0, done.stderr
    card = hub.files("me/mine")["README.md"].decode()
    assert "Trained with TRL, with a reward of mine." in card
    assert "rlsparse" in card
    assert card.count("# My GRPO run") == 1
    # Nor does a card that is there get another text.
    hub.commit("me/mine", {**hub.files("me/mine"), "README.md": b"# Edited\n"})
    (pair / "mine" / "config.json").write_text('{"model_type": "llama"}')
    done = rlsparse(hub, pair / "home", "push", pair / "mine", "me/mine")
    assert done.returncode == 0, done.stderr
    edited = hub.files("me/mine")["README.md"].decode()
    assert "# Edited" in edited
    assert "My GRPO run" not in edited

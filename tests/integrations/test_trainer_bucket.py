"""A Trainer whose base is in a bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bucket_view import BucketView
from models import small_llama
from pairs import contents
from trainers import STEPS, make_trainer

from rlsparse_store.delta import verify_delta
from rlsparse_store.integrations.trainer import store_as_deltas

if TYPE_CHECKING:
    from pathlib import Path

    from loopback_s3 import LoopbackS3


def test_checkpoints_over_a_base_in_a_bucket(s3: LoopbackS3, tmp_path: Path) -> None:
    small_llama().save_pretrained(tmp_path / "base")
    for name, data in contents(tmp_path / "base").items():
        BucketView(s3.bucket).put(f"base/{name}", data)
    trainer = make_trainer(tmp_path / "base", tmp_path / "out")
    store_as_deltas(trainer, f"{s3.url}/base")
    trainer.train()
    last = tmp_path / "out" / f"checkpoint-{STEPS}"
    assert not (last / "model.safetensors").exists()
    assert verify_delta(last, base=f"{s3.url}/base").decoded

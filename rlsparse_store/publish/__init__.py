"""Deltas on the Hub beside their base: published with a card, and brought back."""

from rlsparse_store.publish.pull import PullReport, pull_delta
from rlsparse_store.publish.push import FileUpload, PushReport, push_delta, push_pair

__all__ = ["FileUpload", "PullReport", "PushReport", "pull_delta", "push_delta", "push_pair"]

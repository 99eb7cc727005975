"""Serving deltas with SGLang. Importing it loads no SGLang."""

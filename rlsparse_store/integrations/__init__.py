"""Integrations with other libraries. Each library is imported on first use."""

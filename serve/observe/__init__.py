"""Metrics, logs, spans and health."""

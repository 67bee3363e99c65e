"""A float checkpoint becomes W8A8; docs/guide/cpu.md describes the format."""

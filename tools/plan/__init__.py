"""Planner for a model on a device that need not be in this machine: a roofline from bytes, operations and links."""

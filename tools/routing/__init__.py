"""Where tokens go: how evenly a router loads experts, groups and ranks."""

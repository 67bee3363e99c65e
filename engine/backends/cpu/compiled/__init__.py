"""The CPU's own path: a whole step in one call of compiled kernels, rows never depending on rows."""

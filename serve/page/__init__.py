"""The page at /: one file that loads nothing else."""

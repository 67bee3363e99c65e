"""Tasks with known answers, of which the shipped models know the kinds."""

"""What answers: an engine in this process, in another process, or several as one."""

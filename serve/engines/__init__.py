"""Engines that answer: one in this process, one in another process, or several as one."""

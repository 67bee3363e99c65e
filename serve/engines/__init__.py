"""Engines behind the server: in this process, in one of their own, continued, routed."""

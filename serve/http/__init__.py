"""Sockets, bodies, events, and the application."""

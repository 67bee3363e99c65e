"""Interface of the server: the engine's contract, fields of requests, configuration, errors, keys and limits.

What a client or an operator gave wrong raises `ValueError` with one sentence: the field, its value, the limit.
Over HTTP that is an answer of status 400; `ApiError` says another status.
"""

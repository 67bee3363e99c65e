"""What is said of a cluster that cannot be joined."""

from __future__ import annotations

from fastslow.serve.ray.cluster import first_line

REFUSED = """Failed to connect to GCS. Last connection error: Traceback (most recent call last):
  File "node.py", line 996, in _init_gcs_client
ray.exceptions.AuthenticationError: RPC error: InvalidAuthToken: Authentication token is missing or incorrect.
"""


def test_one_sentence_is_told_of_an_error() -> None:
    assert first_line(RuntimeError("one\ntwo")) == "one"
    assert first_line(RuntimeError("why:\nmuch\n  because")) == "why: because"
    assert first_line(ConnectionError()) == "ConnectionError"


def test_a_cluster_that_asks_for_its_token_is_told_of() -> None:
    try:
        raise ConnectionError("Failed to connect to Ray cluster") from RuntimeError(REFUSED)
    except ConnectionError as error:
        told = first_line(error)
    assert "token" in told and "RAY_AUTH_MODE=token" in told and "Traceback" not in told

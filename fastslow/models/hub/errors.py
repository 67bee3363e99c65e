"""Errors of a hub, each as one sentence that says what to do."""

from __future__ import annotations

import errno
import json
import re

from huggingface_hub import errors

from fastslow.models.hub.name import HubName

NETWORK = errors.HfHubHTTPError.__mro__[1]  # of the client that huggingface_hub comes with
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_HUB = "{name}: {place} answers as no hub does: look at HF_ENDPOINT, a proxy or a firewall"
TO_CHANGE = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, ValueError)
SENTENCES: dict[type[BaseException], str] = {  # the first that fits
    errors.GatedRepoError: "{name} is gated: accept its terms at {place}/{name.repo}, and set HF_TOKEN to that account's",
    errors.RevisionNotFoundError: "{name}: {place} has no such revision of {name.repo}",
    errors.RepositoryNotFoundError: "model={name} is no folder here, and {place} has none of this name that you may see: "
    "look at its spelling; a private one needs HF_TOKEN",
    errors.RemoteEntryNotFoundError: "{name}: {place} lacks a file that it lists: {said}",
    errors.OfflineModeIsEnabled: "{name} is not in the cache as a whole, and HF_HUB_OFFLINE is set: unset it to fetch it",
    errors.HfHubHTTPError: "{name}: {place} answers {said}: try again later; at HTTP 401 or 403 look at HF_TOKEN",
    errors.FileMetadataError: NO_HUB,
    json.JSONDecodeError: NO_HUB,
    NETWORK: "{name}: {place} cannot be reached ({said}): look at the network, or set HF_ENDPOINT to a mirror",
    ValueError: "{name}: {said}",
    OSError: "{name}: {said}",
}


def public(text: str) -> str:
    """A text whose addresses have no user and no password."""
    return re.sub(r"(?<=://)[^/\s]*@", "", text)


def explained(error: Exception, name: HubName, place: str) -> Exception:
    """ValueError where the name is to be changed or access asked for, else RuntimeError; `place` is the hub's
    address. An error that is neither a hub's nor the system's stays as it is."""
    cause: BaseException = error
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        cause = error.__cause__  # the library wraps what happened
    said = public(" ".join(str(cause).split()))[:120] or type(cause).__name__
    if isinstance(cause, OSError) and cause.errno in FULL:
        said = "the disk is full: free some of it, or set HF_HOME to a folder on a larger one"
    for kind, sentence in SENTENCES.items():
        if isinstance(cause, kind):
            text = sentence.format(name=name, place=place, said=said)
            is_asked = isinstance(cause, TO_CHANGE) and sentence is not NO_HUB
            return ValueError(text) if is_asked else RuntimeError(text)
    of_modelscope = type(cause).__module__.startswith("modelscope_hub")
    return RuntimeError(f"{name}: {said}") if of_modelscope else error

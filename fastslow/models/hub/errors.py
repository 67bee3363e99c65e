"""What went wrong with a hub, in one sentence that says what to do."""

from __future__ import annotations

import errno

from huggingface_hub import errors

from fastslow.models.hub.name import HubName

NETWORK = errors.HfHubHTTPError.__mro__[1]  # of the client that huggingface_hub comes with
FULL = (errno.ENOSPC, errno.EDQUOT)


def explained(error: Exception, name: HubName, place: str) -> Exception:
    """ValueError where the name is to be changed or access asked for, else RuntimeError; `place` is the hub's
    address."""
    cause: BaseException = error
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        cause = error.__cause__  # the library wraps what happened
    status = getattr(getattr(cause, "response", None), "status_code", None)
    match cause:
        case Exception(__module__="modelscope_hub.errors") if not isinstance(cause, OSError):
            return ValueError(f"{name}: {place} says: {' '.join(str(cause).split())[:200]}")
        case errors.GatedRepoError():
            return ValueError(
                f"{name} is gated: accept its terms at {place}/{name.repo}, and set HF_TOKEN to a token of that "
                "account"
            )
        case errors.RevisionNotFoundError():
            return ValueError(f"{name.repo} has no revision {name.revision or 'main'!r} at {place}")
        case errors.RepositoryNotFoundError():
            return ValueError(
                f"model={name} is no folder here, and {place} has none of this name that you may see: look at "
                "its spelling; a private one needs HF_TOKEN"
            )
        case errors.RemoteEntryNotFoundError():
            return RuntimeError(
                f"{name}: {place} lists a file that it does not have: {cause.response.url}"
            )
        case errors.OfflineModeIsEnabled():
            return RuntimeError(
                f"{name} is not in the cache as a whole, and HF_HUB_OFFLINE is set: unset it to fetch the model"
            )
        case errors.HfHubHTTPError() if status in (401, 403):
            return ValueError(
                f"{name}: {place} refuses the token (HTTP {status}): look at HF_TOKEN"
            )
        case errors.HfHubHTTPError():
            return RuntimeError(f"{name}: {place} answers HTTP {status}: try again later")
        case errors.FileMetadataError():
            return RuntimeError(_no_hub(name, place))
        case OSError() if cause.errno in FULL:
            return RuntimeError(
                f"{name}: the disk is full: free some of it, or set HF_HOME to a folder on a larger one"
            )
        case OSError() if cause.errno is not None and cause.filename is not None:
            return RuntimeError(f"{name}: {cause.filename} cannot be written: {cause.strerror}")
        case OSError() if "Consistency check" in str(cause):
            return RuntimeError(f"{name}: a file came with a wrong size from {place}: try again")
        case ValueError() if "JSON" in type(cause).__name__:
            return RuntimeError(_no_hub(name, place))
        case ValueError():
            return ValueError(" ".join(str(cause).split()))
    if not isinstance(cause, (NETWORK, OSError)):
        return error  # a fault of ours, and no hub's
    said = " ".join(str(cause).split())[:100] or type(cause).__name__
    return RuntimeError(
        f"{name}: {place} cannot be reached ({said}): look at the network, or set HF_ENDPOINT to a mirror"
    )


def _no_hub(name: HubName, place: str) -> str:
    return f"{name}: {place} does not answer as a hub does: look at HF_ENDPOINT, and at a proxy or firewall"

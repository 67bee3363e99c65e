"""The options of `serve` about operations: keys, limits, browsers, log."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from fastslow.tools.cli.options import option, shown_option

if TYPE_CHECKING:
    from fastslow.serve.http.operations import OperationSettings
    from fastslow.serve.observe.logs import ServerLog

WHO, LOG = "Who may use it", "Log and metrics"


@dataclass(frozen=True)
class OperationOptions:
    """Who may use a server, and what it tells of itself."""

    api_keys: Annotated[
        Path | None,
        option("Keys file of `fastslow keys add`; default: the usual one, if it is there.", WHO),
    ] = None
    api_key: Annotated[
        list[str] | None,
        option(
            "A key of your own, may be repeated; better FASTSLOW_API_KEY, which ps does not show.",
            WHO,
        ),
    ] = None
    max_requests: Annotated[
        int | None, option("Most requests at the same time, of all keys; more get HTTP 429.", WHO)
    ] = None
    body_seconds: Annotated[
        float, shown_option("What a request's body may take to come.", WHO, min=0.1)
    ] = 60.0
    allow_origin: Annotated[
        list[str] | None,
        option(
            "Page that browsers may let use it, such as https://chat.example.com; may be repeated.",
            WHO,
        ),
    ] = None
    allow_host: Annotated[
        list[str] | None,
        option(
            "Name that requests may call it by, besides its own; '*' = any; may be repeated.", WHO
        ),
    ] = None
    log_format: Annotated[str, option("text or json, one object a line; default text.", LOG)] = (
        "text"
    )
    log_level: Annotated[str, option("debug, info, warning or error; default info.", LOG)] = "info"
    log_file: Annotated[Path | None, option("File to add to; default: standard error.", LOG)] = None
    log_texts: Annotated[
        bool, shown_option("Log prompts and answers, too: whoever reads the log reads them.", LOG)
    ] = False
    metrics_by_key: Annotated[bool, shown_option("Metrics by API key, too.", LOG)] = False

    def open_log(self) -> ServerLog:
        """The log, here and in the engine's process.

        Raises:
            ValueError: see `ServerLog`.
        """
        from fastslow.serve.observe.logs import ServerLog

        log = ServerLog(self.log_format, self.log_level, self.log_file)
        os.environ.update(self.log_environment())
        return log

    def log_environment(self) -> dict[str, str]:
        """What other processes need in their environment for the same log."""
        from fastslow.serve.observe.logs import in_environment

        return in_environment(self.log_format, self.log_level, self.log_file)

    def settings(
        self, host: str | None, model: str, log: ServerLog | None = None
    ) -> OperationSettings:
        """How the server is run.

        Args:
            host: that it listens on; None = a Unix socket.
            model: what clients call the model.
            log: the server's, which metrics tell of.

        Raises:
            ValueError: the keys do not fit.
        """
        from fastslow.serve.api.keys import known_keys, warn_if_open
        from fastslow.serve.http.operations import OperationSettings
        from fastslow.serve.observe.tracing import tracing

        keys = known_keys(self.api_keys, self.api_key or ())
        if host is not None:
            warn_if_open(keys, host)
        traced = tracing()
        return OperationSettings(
            keys=keys,
            host=host,
            model=model,
            concurrent=self.max_requests,
            body_seconds=self.body_seconds,
            allow_origins=self.allow_origin or (),
            allow_hosts=self.allow_host or (),
            log_texts=self.log_texts,
            metrics_by_key=self.metrics_by_key,
            lost_lines=int if log is None else lambda: log.lost,
            observers=() if traced is None else (traced,),
        )

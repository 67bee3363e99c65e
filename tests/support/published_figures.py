"""Published figures of openPangu Pro MoE 72B: arXiv 2505.21411, section 5.3, W8A8, four cards."""

from typing import NamedTuple


class PublishedRow(NamedTuple):
    """A published figure, for sequences of 2048 tokens."""

    device: str
    batch: int  # requests on all four cards
    drafted: int | None  # tokens per request and step; None: prefill
    milliseconds: float  # of the step, for each token that it brings; of the whole for prefill
    rate: float  # tokens per second and card


PUBLISHED = (
    PublishedRow("800i-a2", 1, 0, 18.4, 14),
    PublishedRow("800i-a2", 456, 0, 99.3, 1148),
    # "batch 2" gives the published rate only as two for each data-parallel half
    PublishedRow("800i-a2", 4, None, 424.0, 4828),
    PublishedRow("800i-a2", 584, 1, 95.6, 1528),
    PublishedRow("300i-duo", 80, 0, 99.5, 201),
    PublishedRow("300i-duo", 128, 1, 99.7, 321),
)

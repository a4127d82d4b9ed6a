"""Values on a page of metrics."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families as parse


def value(page: str, name: str, **labels: str) -> float:
    """Return the sum of a family's series with these labels."""
    return sum(
        sample.value
        for family in parse(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )

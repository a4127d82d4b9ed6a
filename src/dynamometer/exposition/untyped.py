"""Families whose names clash on one page, split into untyped families by sample name.

Prometheus stores the samples of such a page and ignores the types. For example, a
counter `q_count` beside a histogram `q` is shown as untyped `q_count`, `q_sum` and `q_bucket`.

OpenMetrics reserves more names than the text format: a gauge `a` and a counter `a_total` are both
`a` there, and `a_created` belongs to the counter. In OpenMetrics, a family whose type reserves a
name of another family has the type `unknown`: its samples keep their names, and no sample is
dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from dynamometer.exposition.families import Family, Metadata
from dynamometer.exposition.reuse import FamilyMap


class UntypedFamilies:
    """Splits the clashing families of one page; remembers the parts of unchanged families."""

    def __init__(self, find_clashing: Callable[[Sequence[Metadata]], frozenset[str]]) -> None:
        """Choose the rule of a format.

        Args:
            find_clashing: `clashing_in_text` or `clashing_in_openmetrics`.
        """
        self._find_clashing = find_clashing
        self._metadata: Sequence[Metadata] = ()
        self._clashing: frozenset[str] = frozenset()
        self._parts = FamilyMap(split)

    def apply(self, families: Sequence[Family]) -> Sequence[Family]:
        """Return the families of one page, each name and type once, without clashing names.

        A sample name may then have several families, which a merge joins. Without a clash the
        sequence is the same object.
        """
        metadata = [family.metadata for family in families]
        if metadata != self._metadata:
            self._metadata, self._clashing = metadata, self._find_clashing(metadata)
        clashing = [one for one in families if one.metadata.text_name in self._clashing]
        if not clashing:
            return families
        parts = dict(zip(clashing, self._parts.apply(clashing), strict=True))
        return [part for family in families for part in parts.get(family, (family,))]


def clashing_in_text(page: Sequence[Metadata]) -> frozenset[str]:
    """Return the text names of the families that share a name in the text format."""
    uses = Counter(name for metadata in page for name in metadata.text_names)
    return frozenset(
        metadata.text_name
        for metadata in page
        if any(uses[name] > 1 for name in metadata.text_names)
    )


def clashing_in_openmetrics(page: Sequence[Metadata]) -> frozenset[str]:
    """Return the text names of the families whose type OpenMetrics cannot show on this page."""
    uses = Counter(name for metadata in page for name in metadata.text_names)
    reserved: set[str] = set()
    found: set[str] = set()
    for metadata in page:
        own, wanted = metadata.text_names, metadata.reserved_names
        # A name that the family itself uses is taken if another family uses the name too.
        taken = any(uses[name] > (name in own) for name in wanted)
        if taken or not reserved.isdisjoint(wanted):
            found.add(metadata.text_name)
        else:
            reserved |= wanted
    return frozenset(found)


def split(family: Family) -> Sequence[Family]:
    """Return an untyped family for each sample name, without exemplars.

    An untyped sample has the name of the text format, also in OpenMetrics, and cannot have an
    exemplar.
    """
    metadata = family.metadata
    samples = family.text_samples
    return [
        Family.of_samples(
            Metadata(name, "unknown", metadata.documentation),
            [
                sample._replace(exemplar="") if sample.exemplar else sample
                for sample in samples
                if sample.series.name == name
            ],
        )
        for name in dict.fromkeys(sample.series.name for sample in samples)
    ]

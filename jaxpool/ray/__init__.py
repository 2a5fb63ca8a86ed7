"""jaxpool on a Ray cluster: any dataset through a pool of actors, or the units of a batch job with Ray's retries.

    import jaxpool.ray

    labelled = jaxpool.ray.classify(ray.data.read_parquet("s3://bucket/reviews"), model="my-model", text_column="body")

``data`` labels datasets, ``units`` runs batch jobs; both are thin: scheduling, retries and scaling are Ray's. Needs
``jaxpool[ray]``. The room imports the batch room and what is below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxpool.ray.data import classify
    from jaxpool.ray.units import work

__all__ = ["classify", "work"]


def __getattr__(name: str) -> object:
    """Loads a public name when it is first used."""
    if name == "classify":
        from jaxpool.ray.data import classify

        return classify
    if name == "work":
        from jaxpool.ray.units import work

        return work
    raise AttributeError(f"module 'jaxpool.ray' has no attribute {name!r}")

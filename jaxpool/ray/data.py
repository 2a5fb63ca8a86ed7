"""A Ray dataset with labels: ``map_batches`` over a pool of actors that hold the model."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from jaxpool.batch.columns import label_columns, refuse_taken
from jaxpool.batch.job import Settings
from jaxpool.batch.labelling import Labeller
from jaxpool.batch.reading import CHUNK, texts_of
from jaxpool.batch.units import check_schema
from jaxpool.errors import JaxpoolError
from jaxpool.ray.actors import resources

ERROR = "error"


def classify(
    dataset: Any,
    *,
    actors: int | tuple[int, int] = 1,
    tpus: float = 0,
    gpus: float = 0,
    cpus: float | None = None,
    batch_size: int = CHUNK,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Any:
    """The dataset with a label and scores for every row; lazy, as every transformation of a dataset.

    Args:
        dataset: a ``ray.data.Dataset`` with a column of texts.
        actors: how many, or from how many to how many as Ray sees fit; one a host is right.
        tpus, gpus, cpus: what each actor has to itself, see ``actors.resources``.
        batch_size: rows that an actor plans together.
        options: arguments of ``LLM`` that change no result, such as ``max_num_batched_tokens``.
        **settings: fields of ``jaxpool.batch.job.Settings``: ``model``, ``text_column``, ``pair_column``, ``prefix``,
            ``top_k``, ``logits``, ``long_text`` and so on. The model must be one that every host can open.

    Returns:
        a dataset with the columns ``label``, ``probs`` (``labels``, if several may hold) and ``error``: why a row has
        no label, null for nearly all of them. Rows are as many as before, and in no other order
        than Ray keeps.

    Raises:
        ValidationError: a setting is wrong.
    """
    made = Settings(**settings)
    return dataset.map_batches(
        Actor,
        fn_constructor_args=(made, options or {}),
        batch_size=batch_size,
        batch_format="pyarrow",
        concurrency=actors,
        **resources(tpus, gpus, cpus),
    )


class Actor:
    """Holds the model; one a host.

    Args:
        settings: of the job.
        options: further arguments of ``LLM``.
    """

    def __init__(self, settings: Settings, options: dict[str, Any]) -> None:
        self._settings = settings
        self._llm = settings.open_model(**options)
        self._labeller = Labeller(self._llm, settings)

    def __call__(self, table: Any) -> Any:
        """A ``pyarrow.Table`` with the columns of the results.

        Raises:
            JaxpoolError: a column is missing, or taken.
        """
        check_schema("the dataset", table.schema, self._settings.columns)
        labelled = self._labeller.compute(self._labeller.prepare(texts_of(table, self._settings.columns)))
        added = label_columns(self._labeller, labelled, self._settings)
        errors = [labelled.refused.get(index) for index in range(len(table))]
        added[self._settings.prefix + ERROR] = pa.array(errors, pa.string())
        refuse_taken("the dataset", added, table.column_names)
        if len(labelled.scores) != len(table):
            raise JaxpoolError("an actor gave back another number of rows; please report this")
        for name, values in added.items():
            table = table.append_column(name, values)
        return table

# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A batch job that is broken and goes on
#
# `jaxpool.batch` labels files of any size in parts. It may be killed at any moment: the same call again does what is
# left, and every row is in exactly one part. On the command line this is `jaxpool batch reviews.parquet --output out/`.

# %%
import json
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

import jaxpool.batch

folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A Parquet file
#
# The sixteen reviews of the other notebook, fifty times, in row groups of one hundred rows.

# %%
reviews = pyarrow.csv.read_csv("reviews.csv")
table = pa.concat_tables([reviews] * 50).append_column("row", pa.array(range(50 * len(reviews))))
pq.write_table(table, folder / "reviews.parquet", row_group_size=100)
table.num_rows, table.column_names

# %% [markdown]
# ## Label it, and break it
#
# A job is cut into units of about `unit_bytes` of input. Here the report of the progress raises an error after three
# units; a power cut would do the same.

# %%
job = {"inputs": folder / "reviews.parquet", "output": folder / "labelled", "unit_bytes": 4000}


def power_cut(progress):
    if progress.units_done == 3:
        raise RuntimeError("the lights went out")


try:
    jaxpool.batch.run(**job, report=power_cut)
except RuntimeError as error:
    print(error)

done = sorted(path.name for path in (folder / "labelled" / "receipts").iterdir())
print(len(done), "units are done:", *done)

# %% [markdown]
# ## Go on
#
# The same call again. What is done stays done; `job.json` would refuse another model, other settings or other inputs.

# %%
summary = jaxpool.batch.run(**job)
print("units done now:", summary.progress.units_done, "- before:", summary.progress.units_before)
{name: value for name, value in summary.manifest.items() if name != "parts"}

# %% [markdown]
# Every row is there once, with all its columns.

# %%
labelled = pq.read_table(folder / "labelled" / "parts")
assert labelled["row"].to_pylist() == list(range(table.num_rows))
labelled.slice(0, 3).to_pylist()

# %%
try:
    jaxpool.batch.run(**job, top_k=1)
except jaxpool.JaxpoolError as error:
    print(error)

# %% [markdown]
# ## The shares of the labels

# %%
import matplotlib.pyplot as plt

labels = json.loads((folder / "labelled" / "manifest.json").read_text())["labels"]
figure, axes = plt.subplots(figsize=(5, 1.6))
axes.barh(list(labels), [count / sum(labels.values()) for count in labels.values()])
axes.set_xlabel("share of rows")
plt.show()

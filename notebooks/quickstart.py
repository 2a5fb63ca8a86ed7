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
# # jaxpool in five minutes
#
# jaxpool turns a Hugging Face checkpoint into a fast text classifier in JAX. This notebook uses the small
# English sentiment model that comes with the package, so it needs no network and no GPU.

# %%
from jaxpool import LLM

llm = LLM()  # a folder or a hub id goes here; nothing means the embedded model

# %% [markdown]
# ## Classify
#
# One call, any number of texts; the answers come in the order of the texts.

# %%
texts = ["Loved the new café—coffee was great.", "This update broke everything. Frustrating."]
for text, output in zip(texts, llm.classify(texts, use_tqdm=False)):
    print(f"{output.outputs.label:9} {max(output.outputs.probs):.3f}  {text}")

# %% [markdown]
# An output is what vLLM would give, with the label's name added.

# %%
output = llm.classify("What a lovely surprise!", use_tqdm=False)[0]
print(output)
print("tokens:", output.prompt_token_ids)
print("label:", output.outputs.label, "of", llm.labels)

# %% [markdown]
# ## Encode
#
# `encode` gives the head's scores as an array. Without the activation they are logits.

# %%
from jaxpool import PoolingParams

raw = PoolingParams(use_activation=False)
for output in llm.encode(texts, raw, pooling_task="classify", use_tqdm=False):
    print(output.outputs.data)

# %% [markdown]
# ## Labels of your own
#
# `candidate_labels` go with three kinds of models: a language model gives the probability of each label's tokens
# behind a prompt, as in
#
# ```python
# llm = LLM("Qwen/Qwen2.5-1.5B-Instruct")
# llm.classify(texts, candidate_labels=["billing", "bug report", "praise"], prompt="Message: {text}\nKind: {labels}?",
#              examples=[("Thank you!", "praise")], calibrate=True)
# ```
#
# a model of entailment reads "This example is {label}." behind the text, and an embedder compares vectors. The
# embedded model is none of the first two; as an embedder it knows moods and little else:

# %%
with LLM(convert="embed") as embedder:
    moods = ["What a wonderful, delicious dinner!", "What an awful, disgusting dinner!"]
    for text, output in zip(texts, embedder.classify(texts, candidate_labels=moods, use_tqdm=False)):
        print(f"{max(output.outputs.probs):.3f}  {text}  ~  {output.outputs.label}")

# %% [markdown]
# The same stands in `jaxpool classify --candidate-labels`, in `jaxpool batch`, and in the server's `/classify`.
#
# ## A file of texts
#
# On the command line this would be `jaxpool classify --input reviews.csv`. Here we want a picture.

# %%
import csv
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

with Path("reviews.csv").open(encoding="utf-8", newline="") as file:
    reviews = [row["text"] for row in csv.DictReader(file)]
probs = np.array([output.outputs.probs for output in llm.classify(reviews, use_tqdm=False)])
probs.shape

# %%
order = np.argsort(probs[:, -1])
figure, axes = plt.subplots(figsize=(8, 5), dpi=72, layout="constrained")
left = np.zeros(len(reviews))
for label, color, column in zip(llm.labels, ("tab:red", "tab:blue"), probs[order].T):
    axes.barh([reviews[i] for i in order], column, left=left, color=color, label=label)
    left += column
axes.axvline(0.5, color="black", linewidth=0.8)
axes.set(xlim=(0, 1), xlabel="probability", title="What the model thinks of sixteen reviews")
axes.legend(loc="lower center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False)
plt.show()

# %% [markdown]
# ## Convert once, open faster
#
# `jaxpool convert SOURCE TARGET` writes the weights the way the model wants them: renamed, transposed, stacked by
# layer. `LLM` opens such a store like any checkpoint, and gives the same answers.

# %%
import tempfile

from jaxpool.checkpoints.location import locate
from jaxpool.commands.convert import convert

store = Path(tempfile.mkdtemp()) / "sentiment"
convert(locate(None), store)
sorted(path.name for path in store.iterdir())

# %%
with LLM(store) as again:
    reopened = np.array([output.outputs.probs for output in again.classify(reviews, use_tqdm=False)])
print("largest difference:", np.abs(reopened - probs).max())

# %% [markdown]
# ## What a bucket is
#
# XLA compiles a program for one shape, so texts are padded to a **bucket** of rows × length. Few large buckets
# waste time on padding, many small ones waste it on calls and compiles. The planner weighs all three in seconds
# and cuts the texts, longest first, into the batches that cost least.

# %%
from jaxpool.engine.buckets import plan

lengths = np.array([5, 300, 7, 12, 41, 9, 310, 15, 44, 120])
menu, cost = llm.engine.buckets, llm.engine.cost
for batch in plan(lengths, menu, cost, compiled=menu):  # as if every program were there already
    print(f"{batch.bucket.rows} x {batch.bucket.length:<3} holds", *lengths[batch.rows])

# %% [markdown]
# A program that is not there yet costs half a second, which the planner counts too: so few texts would not be worth
# new programs, ten thousand are. Lengths as real texts have them:

# %%
many = np.random.default_rng(0).lognormal(np.log(60), 0.8, 10_000).clip(1, 512).astype(int)
for count in (10, 100, 1_000, 10_000):
    batches = plan(many[:count], menu, cost)
    programs = {batch.bucket for batch in batches}
    padding = 1 - many[:count].sum() / sum(batch.bucket.tokens for batch in batches)
    print(f"{count:6} texts: {len(programs):3} programs, {len(batches):4} batches, {padding:5.1%} padding")

# %% [markdown]
# A program is compiled once, when a plan first needs it, and kept on disk for the next start. The second run of the
# same texts compiles nothing:

# %%
before = llm.engine.compiles
llm.classify(reviews, use_tqdm=False)
print("programs compiled:", llm.engine.compiles - before)
llm.close()

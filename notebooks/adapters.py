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
# # Adapters
#
# An adapter (LoRA) is a small change to a model: two thin matrices beside each weight, and perhaps a head of its own.
# jaxpool reads PEFT's folders as they are, serves many of them beside one copy of the weights, and trains new ones.
#
# ## Train one
#
# The base is the sentiment model that comes with the package; its weights stay as they are. On the command line this is
# `jaxpool fit messages.csv complaints-adapter --lora 4`.

# %%
import logging
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

from jaxpool import LLM, LoRARequest
from jaxpool.training.data import Labelled
from jaxpool.training.fit import fit
from jaxpool.training.recipe import Recipe

logging.getLogger("transformers").setLevel(logging.ERROR)
folder = Path(tempfile.mkdtemp())
messages = {
    "complaint": [
        "The parcel arrived broken and nobody answers.",
        "I am still waiting for my refund.",
        "Your update deleted all my photos.",
        "The hotline hung up on me twice.",
        "I was charged twice for one ticket.",
        "The room was dirty and the bed was broken.",
    ],
    "praise": [
        "Thank you, the replacement came within a day!",
        "Your colleague was so patient with me.",
        "The new search is wonderful, well done.",
        "The dinner was perfect.",
        "Thanks a lot for the quick help.",
        "What a lovely room.",
    ],
    "question": [
        "When do you open on Sundays?",
        "Where do I find my invoice?",
        "Can I change the address of my order?",
        "Do you ship to Norway?",
        "How long does a refund take?",
        "Is breakfast included?",
    ],
}
texts = [text for some in messages.values() for text in some]
labels = [label for label, some in messages.items() for _ in some]
data = Labelled(texts, labels, "messages")
recipe = Recipe(lora=4, epochs=3, batch_size=6)
fitted = fit(None, data, folder / "kinds", validation=data, recipe=recipe, log=logging.debug)
sorted(path.name for path in fitted.folder.iterdir())

# %% [markdown]
# ## Serve it beside the model
#
# `enable_lora` makes room; a `LoRARequest` names an adapter, for a call or for each prompt. Texts of different
# adapters, and of none, are computed in one batch. Each adapter answers with labels of its own.

# %%
llm = LLM(enable_lora=True, max_loras=2, max_lora_rank=8, max_lora_cls_labels=4)
kinds = LoRARequest("kinds", 1, str(fitted.folder))
asked = ["Do you deliver on Mondays?", "I love it."]
for output in llm.classify(asked * 2, lora_request=[kinds, kinds, None, None], use_tqdm=False):
    print(output.outputs.label, [round(p, 3) for p in output.outputs.probs])

# %% [markdown]
# A server does the same, and clients name the adapter as their `model`:
#
# ```bash
# jaxpool serve --lora-modules kinds=FOLDER
# curl -s localhost:8000/classify --json '{"model": "kinds", "input": "I love it."}'
# ```
#
# With `--allow-runtime-lora-updating`, `/v1/load_lora_adapter` and `/v1/unload_lora_adapter` change what is loaded
# without a restart, a compile, or a wait for others.
#
# ## Or merge it
#
# Where one adapter is all there is, it can be put into the weights: `merge_lora=` here, `jaxpool convert --lora` for a
# folder that needs nothing else.

# %%
merged = LLM(merge_lora=fitted.folder)
sentences = ["Where is the lift?", "My screen cracked after a week.", "Great service!", *asked]
together = llm.classify(sentences, lora_request=kinds, use_tqdm=False)
alone = merged.classify(sentences, use_tqdm=False)
pairs = [pair for one, two in zip(together, alone) for pair in zip(one.outputs.probs, two.outputs.probs)]
print("largest difference:", f"{max(abs(one - two) for one, two in pairs):.1e}")

# %%
figure, axes = plt.subplots(figsize=(7, 2.5))
for index, label in enumerate(merged.labels):
    left = [sum(output.outputs.probs[:index]) for output in alone]
    axes.barh(sentences, [output.outputs.probs[index] for output in alone], left=left, label=label)
axes.set_xlabel("probability")
axes.legend(loc="upper center", bbox_to_anchor=(0.3, 1.25), ncols=3)
figure.tight_layout()
plt.show()

# %%
llm.close()
merged.close()

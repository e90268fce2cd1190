"""Labels guessed by the classifier itself: UPL, FPL, iterative FPL, GRIP, and NoLA's selection."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from onceclip.adapters.classifier import Classifier
from onceclip.adapters.methods import method_class
from onceclip.adapters.ops import best_of_classes
from onceclip.adapters.support.source import Choice, SupportSource, most_alike, probabilities, rows_of
from onceclip.adapters.task import Pool, Task
from onceclip.adapters.text import Text
from onceclip.adapters.training.trainable import Hyperparameter

Probabilities = Iterator[tuple[slice, Tensor]]
WEIGHTED = {"weighted": Hyperparameter(False, "give every row its probability as weight, for methods that weigh rows")}
_ROUNDS = Hyperparameter(10, "times that rows are chosen; between them the method is trained on them", low=1, high=1000)
_METHOD = Hyperparameter("gda", "method that is fitted on the rows of a round to choose those of the next")
_K = Hyperparameter(16, "rows that each class takes", low=1, high=1e6)


def most_confident(found: Probabilities, classes: int, count: int) -> Choice:
    """Rows that are predicted a class, the `count` of highest probability: a row serves one class at most."""
    pairs = [(each.amax(dim=1), each.argmax(dim=1)) for _, each in found]
    score, label = (torch.cat(parts) for parts in zip(*pairs, strict=True))
    index = best_of_classes(label, score, classes, count)
    return Choice(index, label[index], score[index])


def most_probable(found: Probabilities, classes: int, count: int) -> Choice:
    """The `count` rows of highest probability of every class, whatever they are predicted; a row may serve several."""
    score, index = most_alike(((place, each.T) for place, each in found), count)
    label = torch.arange(classes, device=index.device).repeat_interleave(index.shape[1])
    return Choice(index.flatten(), label, score.flatten())


class UPL(SupportSource):
    """For every class the rows that zero-shot predicts to be it with the highest probability, `k` at most.

    Source: Unsupervised Prompt Learning for Vision-Language Models (Huang et al., 2022), section 3.2.
    """

    name = "upl"
    summary = "the k most confident images of every predicted class"
    hyperparameters = {"k": _K, **WEIGHTED}
    rule = staticmethod(most_confident)

    def choose(self, text: Text, pool: Pool, seed: int = 0) -> Choice:
        return self.weighed(self.rule(probabilities(text, pool), len(text.class_names), int(self.values["k"])))

    def weighed(self, choice: Choice) -> Choice:
        """A choice with or without its weights, as asked for."""
        return choice if self.values.get("weighted") else Choice(choice.index, choice.label)


class FPL(UPL):
    """For every class the `k` rows of highest probability, whatever they are predicted: no class is left out.

    The authors' code compares each new row with the last one kept, so that its choice depends on the order of rows;
    here it is the exact k best.

    Source: Enhancing CLIP with CLIP: Exploring Pseudolabeling for Limited-Label Prompt Tuning (Menghini et al., NeurIPS
    2023), few-pseudolabels.
    """

    name = "fpl"
    summary = "the k most probable images of every class"
    rule = staticmethod(most_probable)


class IFPL(UPL):
    """FPL, a method fitted on its rows, FPL again by that method's probabilities, and so on.

    The paper trains prompts between the rounds; here it is a method on cached embeddings.

    Source: Enhancing CLIP with CLIP: Exploring Pseudolabeling for Limited-Label Prompt Tuning (Menghini et al., NeurIPS
    2023), iterative refinement of FPL.
    """

    name = "ifpl"
    summary = "fpl, chosen again by what is learned from it"
    hyperparameters = {"k": _K, "rounds": _ROUNDS, "method": _METHOD, **WEIGHTED}

    def choose(self, text: Text, pool: Pool, seed: int = 0) -> Choice:
        rounds, k = int(self.values["rounds"]), int(self.values["k"])
        return self.weighed(repeated(text, pool, seed, str(self.values["method"]), [k] * rounds))


class GRIP(UPL):
    """As IFPL, with more rows in every round, until all are used: `k_i = floor(i M / (rounds C))` of M rows, C classes.

    Source: Enhancing CLIP with CLIP: Exploring Pseudolabeling for Limited-Label Prompt Tuning (Menghini et al., NeurIPS
    2023), GRIP.
    """

    name = "grip"
    summary = "as ifpl, with more and more images until all are used"
    hyperparameters = {"rounds": _ROUNDS, "method": _METHOD, **WEIGHTED}

    def choose(self, text: Text, pool: Pool, seed: int = 0) -> Choice:
        counts = grip_counts(len(pool), len(text.class_names), int(self.values["rounds"]))
        return self.weighed(repeated(text, pool, seed, str(self.values["method"]), counts))


class NoLA(UPL):
    """UPL with `k = max(least, floor(share M / C))`; a class that nothing is predicted takes second, or third, guesses.

    Source: CLIP meets DINO for Tuning Zero-Shot Classifier using Unlabeled Image Collections (Imam et al., WACV 2025).
    """

    name = "nola"
    summary = "as upl, of many images more, and second guesses where a class has none"
    hyperparameters = {
        "least": Hyperparameter(16, "rows that each class takes at least, if it has them", low=1, high=1e6),
        "share": Hyperparameter(0.2, "of a class's even part of all rows, which it takes where that is more", high=1.0),
        **WEIGHTED,
    }

    def choose(self, text: Text, pool: Pool, seed: int = 0) -> Choice:
        classes = len(text.class_names)
        k = nola_count(len(pool), classes, int(self.values["least"]), float(self.values["share"]))
        tops = [each.topk(min(3, classes), dim=1) for _, each in probabilities(text, pool)]
        scores, labels = (torch.cat([getattr(each, part) for each in tops]) for part in ("values", "indices"))
        index, label = best_of_classes(labels[:, 0], scores[:, 0], classes, k), labels[:, 0]
        chosen = [(index, label[index], scores[index, 0])]
        missing = torch.bincount(label, minlength=classes) == 0
        for guess in range(1, labels.shape[1]):
            rows = torch.nonzero(missing[labels[:, guess]])[:, 0]
            best = rows[best_of_classes(labels[rows, guess], scores[rows, guess], classes, k)]
            chosen.append((best, labels[best, guess], scores[best, guess]))
            missing[labels[rows, guess]] = False
        return self.weighed(Choice(*(torch.cat(parts) for parts in zip(*chosen, strict=True))))


def grip_counts(rows: int, classes: int, rounds: int) -> list[int]:
    """Rows that each class takes in every round of GRIP."""
    return [number * rows // (rounds * classes) for number in range(1, rounds + 1)]


def nola_count(rows: int, classes: int, least: int = 16, share: float = 0.2) -> int:
    """Rows that each class takes by NoLA's rule."""
    return max(least, int(share * rows / classes))


def repeated(text: Text, pool: Pool, seed: int, name: str, counts: list[int]) -> Choice:
    """Choose by probabilities, fit a method on what was chosen, and choose again by its probabilities.

    counts: rows that each class takes in every round; rounds of none are left out.
    """
    classes, method = len(text.class_names), method_class(name)()
    found = probabilities(text, pool)
    for number, count in enumerate(counts := [each for each in counts if each] or [1]):
        choice = most_probable(found, classes, min(count, len(pool)))
        if number + 1 < len(counts):
            support = rows_of(pool, Choice(choice.index, choice.label))
            classifier = method.fit(Task(text, support, logit_scale=pool.logit_scale), seed)
            found = _probabilities_of(classifier, pool)
    return choice


def _probabilities_of(classifier: Classifier, pool: Pool) -> Probabilities:
    for place, rows in pool.pieces(len(classifier.class_names)):
        yield place, classifier.logits(rows).softmax(dim=1).to(rows.device)

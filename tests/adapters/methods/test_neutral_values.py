"""Every method is zero-shot where its parameters say nothing: the values where they do, or why there are none."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from onceclip.adapters import METHODS, ZeroShot

UNTRAINED = {"epochs": 0}
NEUTRAL = {
    "zero-shot": {}, "template-selection": {"keep": 99}, "prompt-weights": UNTRAINED,
    "zs-lp": UNTRAINED, "clap": UNTRAINED,
    "lp++": {"share": 0}, "cross-modal-lp": {"share": 1, **UNTRAINED}, "wise-ft": {"alpha": 0},
    "taskres": {"alpha": 0}, "rla": UNTRAINED,
    "prolip": UNTRAINED, "clip-adapter": {"ratio": 0}, "cross-modal-adapter": {"share": 1, "ratio": 0, **UNTRAINED},
    "tip-adapter": {"alpha": 0}, "tip-adapter-f": {"alpha": 0}, "ape": {"alpha": 0},
    "ape-t": {"alpha": 0, **UNTRAINED}, "tip-x": {"alpha": 0, "gamma": 0}, "gda": {"alpha": 0},
    "gda-em": {"alpha": 0}, "proker": {"gain": "one", "ridge": 1e6},
    "meta-adapter": {"gate": -100, **UNTRAINED}, "multi-modal-adapter": {"ratio": 0}, "sgva": {"weight": 0},
    "vt-clip": {"ratio": 0}, "ss-text": {"text_weight": 1e10}, "lafter-text": UNTRAINED, "rapf": UNTRAINED,
    "caps-adapter": {"alpha": 0, "gamma": 0}, "reco": UNTRAINED,
}
VARIANTS = [("clip-adapter", {"ratio": 0, "branch": branch}) for branch in ("text", "both")]
NONE = {
    **dict.fromkeys(("linear-probe", "lpclip", "linear-probe-preproj", "linear-probe-adamw", "labelling-network",
                     "ranpac"),
                    "never sees the text"),
    "x-more": "the captions of a bank have their part in it",
    **{name: "learned prompts are not those of the text set" for name, method in METHODS.items() if method.wants_tower},
    "clip-a-self": "a layer norm follows the blend",
}
RAW = {"cross-modal-lp", "cross-modal-adapter"}  # start from the mean of the raw prompt vectors
ABOUT = {"proker": 0.05}  # a regression that is held down a millionfold, but not to nothing


def test_every_method_is_in_one_of_the_two_lists():
    """A new method joins by a line here."""
    assert set(METHODS) <= set(NEUTRAL) ^ set(NONE)


@pytest.mark.parametrize(("name", "values"),
                         [*((name, NEUTRAL[name]) for name in METHODS if name in NEUTRAL), *VARIANTS])
def test_neutral_values_give_zero_shot(make_task, make_method, make_rows, name, values):
    task, rows = make_task((2, 4, 3)), make_rows((7, 7, 7), 10, seed=50)
    method = make_method((name, values))
    actual = method.fit(task).logits(rows.input(method.inputs))
    text = replace(task.text, rule="raw-mean") if name in RAW else task.text
    expected = ZeroShot().fit(replace(task, text=text)).logits(rows.embedding)
    assert_close(actual, expected, rtol=1e-5, atol=ABOUT.get(name, 1e-4))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("zero-shot", "template-selection")])
def test_usual_values_do_not_give_zero_shot(make_task, make_method, make_rows, name):
    task, rows = make_task((2, 4, 3), noise=1.5), make_rows((7, 7, 7), 10, seed=50)
    method = make_method((name, {}))
    actual, expected = method.fit(task).logits(rows.input(method.inputs)), ZeroShot().fit(task).logits(rows.embedding)
    assert (actual - expected).abs().max() > 1e-3


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.mixing])
def test_the_weight_of_a_mixture_does_what_its_terms_say(make_task, make_method, make_rows, name):
    """`head` is A plus weight times B: selection finds the weight by the terms and predicts by the head."""
    task, rows = make_task((2, 4, 3)), make_rows((7, 7, 7), 10, seed=50)
    method = make_method((name, {}))
    prepared = method.prepare(task)
    parameters = method.initial(prepared, torch.Generator().manual_seed(0))
    values = method.rows_of(rows)
    first, second = (term(values) for term in method.terms(prepared, parameters))
    for weight in (0.0, 0.3, 2.0):
        each = method.with_values(**{method.mixing: weight})
        assert_close(each.head(prepared, parameters)(values), first + weight * second, rtol=1e-5, atol=1e-4)

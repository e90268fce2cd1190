"""Nothing about a test row but its embedding reaches a classifier: for every registered method."""

import numpy as np
import pytest

from onceclip.adapters import METHODS
from onceclip.adapters.task import EMBEDDING
from onceclip.pipeline.runs.fit import fit
from onceclip.pipeline.runs.run import RunSpec

QUICK = {"epochs": 3, "features": 100}


def values_of(name):
    return {key: value for key, value in QUICK.items() if key in METHODS[name].hyperparameters}


@pytest.mark.parametrize("name", [name for name, method in METHODS.items()
                                  if method.inputs == (EMBEDDING,) and not (method.wants_tower or method.from_bank)])
def test_labels_of_test_rows_change_no_prediction(name, arrays, import_of):
    """Shuffled, they change the score alone: a transductive method whose number of neighbours came from the labels of
    its queries was published."""
    test = arrays["split"] == "test"
    other = {**arrays, "label": arrays["label"].copy()}
    other["label"][test] = np.random.default_rng(1).permutation(other["label"][test])
    rows = arrays["embedding"][test]
    plain, shuffled = (fit(import_of(each, place), RunSpec(name, 4, select="val", values=values_of(name)))
                       for each, place in ((arrays, "plain"), (other, "shuffled")))
    np.testing.assert_array_equal(plain.classifier.logits(rows), shuffled.classifier.logits(rows))
    assert plain.row["hyperparameters"] == shuffled.row["hyperparameters"]
    assert plain.row["accuracy"] > shuffled.row["accuracy"]

"""``JaxpoolClassifier`` by scikit-learn's rules: clone, pickle, grid search, the checks that texts allow."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from toy import toy, write_bert

pytest.importorskip("sklearn")

from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import check_estimator

from jaxpool import JaxpoolClassifier
from jaxpool.errors import ValidationError

DATA = toy(60, 1)
TEXTS, LABELS = list(DATA.texts), np.array([3 if label == "good" else 20 for label in DATA.labels])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def fitted(bert: Path) -> JaxpoolClassifier:
    return JaxpoolClassifier(bert, freeze="backbone").fit(TEXTS, LABELS)


def test_labels_keep_their_type_and_probabilities_their_order(fitted: JaxpoolClassifier) -> None:
    assert fitted.classes_.tolist() == [3, 20]  # by value; as text "20" would come first
    probabilities = fitted.predict_proba(TEXTS)
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    predicted = fitted.predict(TEXTS)
    assert predicted.dtype == LABELS.dtype
    assert (predicted == fitted.classes_[probabilities.argmax(-1)]).all()
    assert fitted.score(TEXTS, LABELS) == np.mean(predicted == LABELS) > 0.8
    assert fitted.predict([]).shape == (0,)
    with pytest.raises(ValidationError, match="sequence of strings"):
        fitted.predict("one text")


def test_clone_is_unfitted_and_pickle_is_not(fitted: JaxpoolClassifier) -> None:
    fitted.predict(TEXTS[:1])  # an open model does not get in the way
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), fitted.predict_proba(TEXTS))
    assert again.report_ == fitted.report_
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(TEXTS)


def test_grid_search_in_a_pipeline(bert: Path) -> None:
    pipeline = make_pipeline(
        FunctionTransformer(lambda texts: [text.lower() for text in texts]), JaxpoolClassifier(bert)
    )
    grid = {"jaxpoolclassifier__freeze": ["backbone"], "jaxpoolclassifier__max_length": [3, None]}
    search = GridSearchCV(pipeline, grid, cv=2).fit(TEXTS, LABELS)
    assert search.best_params_["jaxpoolclassifier__max_length"] is None  # three tokens hold one word
    three, whole = search.cv_results_["mean_test_score"]
    assert search.best_score_ == whole > three


def test_a_matrix_of_labels(bert: Path) -> None:
    target = np.array([[int("film" in text), int("food" in text)] for text in TEXTS])
    model = JaxpoolClassifier(bert, freeze="backbone").fit(TEXTS, target)
    predicted = model.predict(TEXTS)
    assert predicted.shape == target.shape
    assert set(np.unique(predicted)) == {0, 1}
    assert (predicted == target).mean() > 0.7


def test_scikit_learns_own_checks() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one says that what needs a matrix of numbers is left out
        results = check_estimator(JaxpoolClassifier(), on_skip=None)
    assert [result["status"] for result in results] == ["passed"]


@pytest.mark.parametrize(
    "check",
    [
        "estimator_repr",
        "get_params_invariance",
        "no_attributes_set_in_init",
        "parameters_default_constructible",
        "set_params",
        "valid_tag_types",
    ],
)
def test_those_of_its_checks_that_fit_nothing(check: str) -> None:
    getattr(estimator_checks, f"check_{check}")("JaxpoolClassifier", JaxpoolClassifier())

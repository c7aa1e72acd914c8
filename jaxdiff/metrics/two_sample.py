"""The classifier two-sample test: can a classifier tell samples from data?"""

import numpy as np

from jaxdiff.metrics.distances import pair


def classifier_two_sample(x, y, trees=100, folds=5, seed=0):
    """Cross-validated accuracy of a random forest that tells `x` from `y`: 1/2 is none.

    Lopez-Paz and Oquab (2017), arXiv:1610.06545.

    Args:
      x, y: (n, ...) and (m, ...), flattened; sets of equal size make 1/2 the chance level.
      trees: of the forest.
      folds: of the stratified cross-validation.
      seed: of forest and folds.
    """
    import joblib
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    x, y = (np.asarray(a).reshape(len(a), -1) for a in (x, y))
    if x.shape[1] != y.shape[1] or min(len(x), len(y)) < folds:
        raise ValueError(
            f"classifier_two_sample: expected two sets of {folds} or more examples of one size, "
            f"got {x.shape} and {y.shape}"
        )
    x, y = pair("classifier_two_sample", x, y)
    forest = RandomForestClassifier(trees, random_state=seed)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    side = np.repeat([0, 1], [len(x), len(y)])
    with joblib.parallel_config(backend="threading"):  # trees grow outside of Python's lock
        return float(cross_val_score(forest, np.concatenate([x, y]), side, cv=split, n_jobs=-1).mean())

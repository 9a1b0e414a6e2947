"""Classifiers of every family of river that a model may learn by."""

# mypy: disable-error-code="no-untyped-call"
# Some constructors of river have no types.

from __future__ import annotations

from collections.abc import Callable

from river import (
    compose,
    drift,
    dummy,
    ensemble,
    facto,
    feature_extraction,
    feature_selection,
    forest,
    imblearn,
    linear_model,
    multiclass,
    naive_bayes,
    neighbors,
    optim,
    preprocessing,
    stats,
    tree,
)

from tests.models.outcomes import Learner

Make = Callable[[], Learner]


def _logistic(optimizer: optim.base.Optimizer | None = None) -> linear_model.LogisticRegression:
    return linear_model.LogisticRegression(optimizer)


NUMBERS: dict[str, Make] = {
    "logistic": lambda: preprocessing.StandardScaler() | _logistic(optim.AdaGrad(0.1)),
    "logistic, rolling scaler": lambda: preprocessing.StandardScaler(window_size=50) | _logistic(),
    "logistic, adam": lambda: preprocessing.MinMaxScaler() | _logistic(optim.Adam()),
    "logistic, ftrl": lambda: preprocessing.RobustScaler() | _logistic(optim.FTRLProximal()),
    "logistic, polynomials": lambda: feature_extraction.PolynomialExtender() | _logistic(),
    "logistic, random features": lambda: feature_extraction.RBFSampler(seed=1) | _logistic(),
    "logistic, chosen features": lambda: feature_selection.VarianceThreshold() | _logistic(),
    "logistic, imputed": lambda: preprocessing.StatImputer() | _logistic(),
    "softmax": lambda: linear_model.SoftmaxRegression(),
    "ad predictor": lambda: linear_model.AdPredictor(),
    "alma": lambda: linear_model.ALMAClassifier(),
    "passive aggressive": lambda: linear_model.PAClassifier(),
    "naive bayes, gaussian": lambda: naive_bayes.GaussianNB(),
    "naive bayes, bernoulli": lambda: naive_bayes.BernoulliNB(),
    "neighbours": lambda: neighbors.KNNClassifier(engine=neighbors.LazySearch(window_size=100)),
    "neighbours, graph": lambda: neighbors.KNNClassifier(engine=neighbors.SWINN(seed=1)),
    "tree": lambda: tree.HoeffdingTreeClassifier(grace_period=50),
    "tree, adaptive": lambda: tree.HoeffdingAdaptiveTreeClassifier(grace_period=50, seed=1),
    "tree, fast": lambda: tree.ExtremelyFastDecisionTreeClassifier(grace_period=50),
    "tree, gradient": lambda: tree.SGTClassifier(grace_period=50),
    "tree, last": lambda: tree.LASTClassifier(),
    "forest, adaptive": lambda: forest.ARFClassifier(n_models=3, grace_period=30, seed=1),
    "forest, mondrian": lambda: forest.AMFClassifier(n_estimators=3, seed=1),
    "ensemble, bagging": lambda: ensemble.BaggingClassifier(_logistic(), n_models=3, seed=1),
    "ensemble, adwin bagging": lambda: ensemble.ADWINBaggingClassifier(_logistic(), n_models=3, seed=1),
    "ensemble, leveraging": lambda: ensemble.LeveragingBaggingClassifier(_logistic(), n_models=3, seed=1),
    "ensemble, boosting": lambda: ensemble.AdaBoostClassifier(tree.HoeffdingTreeClassifier(), n_models=3, seed=1),
    "ensemble, random patches": lambda: ensemble.SRPClassifier(n_models=3, seed=1),
    "ensemble, stacking": lambda: ensemble.StackingClassifier(
        [naive_bayes.GaussianNB(), tree.HoeffdingTreeClassifier()], meta_classifier=_logistic()
    ),
    "factorisation": lambda: facto.FMClassifier(seed=1),
    "undersampling": lambda: imblearn.RandomUnderSampler(_logistic(), {False: 0.5, True: 0.5}, seed=1),
    "one against the rest": lambda: multiclass.OneVsRestClassifier(_logistic()),
    "retraining on drift": lambda: drift.DriftRetrainingClassifier(_logistic()),
    "prior": lambda: dummy.PriorClassifier(),
    "no change": lambda: dummy.NoChangeClassifier(),
}
"""Learners of numbers."""

TEXTS: dict[str, Make] = {
    "one-hot": lambda: (
        (
            (compose.SelectType(float) | preprocessing.StandardScaler())
            + (compose.SelectType(str) | preprocessing.OneHotEncoder())
        )
        | _logistic()
    ),
    "hashed": lambda: preprocessing.FeatureHasher(n_features=16, seed=1) | _logistic(),
    "target encoding": lambda: (
        (compose.Select("a") + feature_extraction.TargetAgg(by="country", how=stats.Mean())) | _logistic()
    ),
    "tree of texts": lambda: tree.HoeffdingTreeClassifier(grace_period=50, nominal_attributes=["country"]),
    "forest of texts": lambda: forest.ARFClassifier(
        n_models=3, grace_period=30, nominal_attributes=["country"], seed=1
    ),
    "ordinal": lambda: preprocessing.OrdinalEncoder() | tree.HoeffdingTreeClassifier(grace_period=50),
}
"""Learners of numbers a, b and the text country."""

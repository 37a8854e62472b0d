import numpy as np
import pytest

from studiogan_guidance.evaluation.inception_score import inception_score


def test_closed_forms() -> None:
    assert inception_score(np.eye(10)) == pytest.approx(10)
    assert inception_score(np.full((6, 4), 0.25)) == pytest.approx(1)
    p = np.array([[0.9, 0.1], [0.1, 0.9]])  # KL from (1/2, 1/2): log 2 - H(0.9)
    assert inception_score(p) == pytest.approx(2 * 0.9**0.9 * 0.1**0.1)


def test_splits_are_scored_one_by_one() -> None:
    p = np.concatenate([np.eye(4), np.full((4, 4), 0.25)])
    assert inception_score(p, splits=2) == pytest.approx((4 + 1) / 2)
    with pytest.raises(ValueError, match="splits need"):
        inception_score(p, splits=9)

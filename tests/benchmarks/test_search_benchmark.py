"""Precision among made-up patches, where the right answer can be counted."""

import numpy as np
import pytest

from histocodec.benchmarks.studies.patch_retrieval import Patches, as_they_are, precision


@pytest.fixture
def patches() -> Patches:
    """Two organs, each of two cases of two patches."""
    organ = np.array(["lung"] * 4 + ["colon"] * 4)
    case = np.array(["1", "1", "2", "2", "3", "3", "4", "4"])
    return Patches(organ, case, np.array(["one"] * 8))


def test_patches_of_ones_own_case_do_not_count(patches: Patches) -> None:
    cases = np.array([(1, 0, 0), (0.6, 0.8, 0), (0.9, 0, 0.44), (0, 0, 1)], np.float32)
    found = precision(patches, cases.repeat(2, axis=0), as_they_are, patches.case)
    assert found.queries == 8
    # 1 and 3, of different organs, find each other, 2 finds 1, and 4 finds 3; in its own case each would be right.
    assert found.at_1 == found.at_1_by_label == pytest.approx(4 / 8)


def test_chance_is_the_share_of_right_answers(patches: Patches) -> None:
    assert precision(patches, None, as_they_are, patches.case).at_1 == pytest.approx(2 / 6)


def test_queries_without_a_right_answer_are_left_out(patches: Patches) -> None:
    alone = np.array(["a"] * 4 + ["b", "b", "c", "c"])  # all of lung is one group
    assert precision(patches, None, as_they_are, alone).queries == 4

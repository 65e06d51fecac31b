import numpy as np

from dualseg.inference.components import keep_largest


def test_only_the_largest_component_of_the_given_classes_stays() -> None:
    label = np.zeros((12, 10, 8), np.uint8)
    label[1:4, 1:4, 1:4] = 1
    label[4, 4, 4] = 1  # touches by a corner
    label[8:10, 8:10, 6:8] = 1
    label[0, 0, 7], label[11, 0, 7] = 2, 2
    expected = label.copy()
    expected[8:10, 8:10, 6:8] = 0
    keep_largest(label, [1, 3])
    np.testing.assert_array_equal(label, expected)
    keep_largest(label, [2])
    expected[11, 0, 7] = 0  # of two as large the first
    np.testing.assert_array_equal(label, expected)

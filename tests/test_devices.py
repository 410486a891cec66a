import pytest

from devices import pick_device


def test_a_device_that_is_not_there():
    with pytest.raises(ValueError, match=r"cuda:77.*this machine has cpu"):
        pick_device("cuda:77")

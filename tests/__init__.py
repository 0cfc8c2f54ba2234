"""The tests, in folders that mirror flowlab's; ``support`` holds what several share."""

import pytest

pytest.register_assert_rewrite("tests.support")

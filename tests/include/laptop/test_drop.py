from __future__ import annotations

import pytest

from include.errors import ConfigurationError
from include.laptop import drop


@pytest.mark.parametrize("name", ["", "customize", "/manual__1", "customize/"])
def test_a_run_is_named_with_its_dag(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"RUN is '{name}': name the DAG and the run, as in make drop RUN="):
        drop.main(name)

"""Fixtures that several files share."""

import pytest
from report_cell import run_benchmark, run_generate


@pytest.fixture(scope="module")
def cell(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "cell"
    run_generate(folder)
    run_benchmark(folder)
    return folder

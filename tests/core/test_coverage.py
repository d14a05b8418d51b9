"""Each module of the core is covered, lines and branches, by the test module of its own name alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "heartbeat" / "core").glob("*.py") if path.stem != "__init__")


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_the_module_is_covered_by_its_own_tests(module, tmp_path):
    """100 % of lines and branches, measured in a process of its own."""
    tests = ROOT / "tests" / "core" / f"test_{module}.py"
    data, report = tmp_path / "data", tmp_path / "report.json"
    coverage = [sys.executable, "-m", "coverage"]
    run = [*coverage, "run", "--branch", f"--data-file={data}", "-m", "pytest", "-q", str(tests)]
    ran = subprocess.run(run, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert ran.returncode == 0, ran.stdout[-3000:]
    subprocess.run([*coverage, "json", f"--data-file={data}", "-o", str(report)], check=True, capture_output=True)
    found = json.loads(report.read_text())["files"][f"heartbeat/core/{module}.py"]
    assert found["missing_lines"] == []
    assert found["missing_branches"] == []
    assert found["summary"]["num_statements"] > 0

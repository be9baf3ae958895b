"""The command line answers without the heavy packages, and its help says what the code knows."""

import subprocess
import sys

from training.data.synthetic import PRESETS
from training.engine.run import EVALUATED_SPLITS


def test_help_does_not_wait_for_torch():
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom training.cli import app\n"
        "result = CliRunner().invoke(app, ['run', '--help'])\n"
        "heavy = {'torch', 'polars', 'matplotlib', 'optuna', 'scipy', 'sklearn'}\n"
        "print(result.exit_code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0 []"


def test_help_names_what_there_is():
    script = (
        "from typer.testing import CliRunner\nfrom training.cli import app\n"
        "for line in (['evaluate'], ['data', 'synthetic']):\n"
        "    print(CliRunner().invoke(app, [*line, '--help']).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert " or ".join(EVALUATED_SPLITS) in done.stdout
    assert " or ".join(PRESETS) in done.stdout

#!/usr/bin/env bash
# Builds the wheel and tries it as a user gets it: alone, then with all that [platform] asks for.
# wheel.sh PYTHON: an environment that has those packages; they are seen from there and not installed once more.
set -euo pipefail
unset PYTHONPATH
root=$(cd "$(dirname "$0")/.." && pwd)
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

fail() {
    echo "error: $1" >&2
    exit 1
}

rm -rf "$root"/build/lib "$root"/build/bdist.* # what is left there would be packed, too
"$python" -m pip wheel --quiet --no-deps --wheel-dir . "$root"
rm -rf "$root"/build/lib "$root"/build/bdist.*
wheel=$(echo fedrobust-*.whl)

echo "the wheel alone"
"$python" -m venv core
core/bin/pip install --quiet --constraint "$root/constraints.txt" "$wheel"
core/bin/pip check
core/bin/python - <<'END'
import sys

import numpy as np

from fedrobust.aggregation import NNM, Clip, GeometricMedian, Pipeline

updates = np.random.default_rng(0).standard_normal((10, 1000)).astype("float32") + 1
updates[:2] *= -50
aggregate = Pipeline([Clip(), NNM(), GeometricMedian()]).aggregate(updates, f=2)
assert abs(aggregate.mean() - 1) < 0.1, aggregate.mean()
assert "torch" not in sys.modules
END
core/bin/fedrobust --version
core/bin/fedrobust list >/dev/null
core/bin/fedrobust doctor
core/bin/fedrobust init work
diff --recursive --exclude __pycache__ "$root/experiments" work/experiments
cd work
code=0
../core/bin/fedrobust run experiments/quickstart.yaml 2>told || code=$?
cat told
[ "$code" = 2 ] || fail "exit code $code"
grep -q 'pip install "fedrobust\[platform\]"$' told || fail "the extra is not named"
[ ! -e mlruns ] || fail "something is written"

echo "the wheel with [platform]"
cd ..
"$python" -m venv platform
site='import sysconfig; print(sysconfig.get_path("purelib"))'
"$python" -c "$site" >"$(platform/bin/python -c "$site")/packages.pth"
platform/bin/pip install --quiet --no-deps --no-index --ignore-installed "$wheel"
cd work
../platform/bin/python -c 'import fedrobust, sys; assert fedrobust.__file__.startswith(sys.prefix), fedrobust.__file__'
cat >typed.py <<'END'
import fedrobust

reveal_type(fedrobust.run("experiments/quickstart.yaml", {"seed": 3}).recorded.rounds[0].weights)
fedrobust.run(3)
fedrobust.Experiment(sed=3)
END
"$python" -m mypy --python-executable ../platform/bin/python typed.py >told || true
cat told
grep -q 'Revealed type is "dict\[int, float | None\] | None"' told || fail "the types are not seen"
for error in 'incompatible type "int"' 'did you mean "seed"'; do
    grep -q "$error" told || fail "wrong arguments are not seen"
done
../platform/bin/fedrobust benchmark --list | grep -q '^histology-v1: ' || fail "no suites"
../platform/bin/fedrobust run experiments/quickstart.yaml federation.rounds=2
test -s mlruns/runs/*/report.html || fail "no report"

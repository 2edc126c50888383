#!/usr/bin/env bash
# Everything that needs a GPU, in parts of less than nine minutes each: build, tests, compute-sanitizer, benchmarks.
#   PART="build tests sanitizer bench" (some of these; by default all)  PYTHON=python3
# Each command has its own time limit. Logs go to build/gpu_check, benchmark results to bench/results/<card>; if OUT is
# set, both are copied there.
set -u
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
PARTS=${PART:-build tests sanitizer bench}
LOGS=build/gpu_check
mkdir -p "$LOGS"
export PYTHONPATH=$PWD
failed=()

run() { # name, limit in seconds, command…: runs the command, keeps its log, prints the end of it
  local name=$1 limit=$2 start=$SECONDS code
  shift 2
  timeout -k 5 "$limit" "$@" >"$LOGS/$name.log" 2>&1
  code=$?
  echo "== $name: $([ $code = 0 ] && echo ok || echo "FAILED ($code)"), $((SECONDS - start)) s"
  tail -n "$([ $code = 0 ] && echo 12 || echo 40)" "$LOGS/$name.log"
  [ $code = 0 ] || failed+=("$name")
  if [ -n "${OUT:-}" ]; then
    mkdir -p "$OUT/results" && cp -r "$LOGS" "$OUT/" && cp -r bench/results/. "$OUT/results/" 2>/dev/null
  fi
  return 0
}

for part in $PARTS; do
  case $part in
    build) # editable: the module is built in the source tree, from which the tests import it
      run build 200 env XMODAL_CUDA=ON XMODAL_WERROR=ON "$PYTHON" -m pip install --no-build-isolation --no-deps -e .
      run info 60 "$PYTHON" -m xmodal_ops
      ;;
    tests)
      run tests 240 "$PYTHON" -m pytest tests/gpu -m gpu -q --durations=5 -p no:cacheprovider
      ;;
    sanitizer)
      for tool in memcheck racecheck synccheck; do
        # Only the kernels of the package: those of torch and its libraries would take most of the time.
        run "$tool" 170 compute-sanitizer --tool "$tool" --kernel-regex kns=xmodal --error-exitcode 1 \
          "$PYTHON" tests/gpu/sanitize.py
      done
      ;;
    bench)
      run bench_covariance 100 "$PYTHON" -m bench.covariance --device cuda
      run bench_trace_norm 220 "$PYTHON" -m bench.trace_norm --device cuda
      run bench_triplets 200 "$PYTHON" -m bench.triplets --device cuda --sizes 1024 8192 131072
      ;;
    *)
      echo "PART must be build, tests, sanitizer or bench, got $part" >&2
      exit 2
      ;;
  esac
done
[ ${#failed[@]} = 0 ] || { echo "failed: ${failed[*]}"; exit 1; }

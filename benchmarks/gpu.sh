#!/usr/bin/env bash
# Everything that needs a GPU, in one call of under 8 minutes: build, `dlmt info`, the GPU tests, compute-sanitizer on a
# small case, the benchmark. Exits with 1 where any step failed, and prints a summary last.
#
#     benchmarks/gpu.sh [--wheels FOLDER] [--seconds N] [--only STEP]...
#
#   --wheels FOLDER   wheels to install first, for what this machine lacks and cannot fetch. The package itself needs
#                     numpy, numba, cryptography, typer, rich, pillow (stores also simplejpeg and isal, which nothing
#                     here imports); the tests pytest, pytest-timeout, hypothesis;
#                     the build setuptools, pybind11 and wheel. For a machine that lacks cryptography alone:
#                     pip download --only-binary=:all: --no-deps --python-version 3.12 --implementation cp \
#                       --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 -d FOLDER \
#                       cryptography cffi pycparser
#   --seconds N       the time for everything (470)
#   --only STEP       build always runs; of info, tests, sanitizer, bench only those named
#
# Environment: PYTHON (python3) is the interpreter that has torch; OUT (benchmarks/results) receives gpu.log,
# gpu-summary.txt and cuda-TIME.jsonl; COMMIT names the sources where there is no git folder.
# The steps are run by name.
# shellcheck disable=SC2329
set -uo pipefail

repo=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
out=${OUT:-$repo/benchmarks/results}
wheels="" seconds=470 only=()
while [ $# -gt 0 ]; do
  case $1 in
    --wheels | --seconds | --only)
      [ $# -ge 2 ] || { echo "$1 needs a value" >&2; exit 2; }
      case $1 in
        --wheels) wheels=$(cd "$2" 2>/dev/null && pwd) || { echo "--wheels $2: no such folder" >&2; exit 2; } ;;
        --seconds) seconds=$2 ;;
        --only) only+=("$2") ;;
      esac
      shift 2 ;;
    *) echo "unknown argument $1; see the head of $0" >&2; exit 2 ;;
  esac
done
[[ $seconds =~ ^[0-9]+$ ]] || { echo "--seconds $seconds: expected a whole number" >&2; exit 2; }
for step in "${only[@]}"; do
  case $step in
    info | tests | sanitizer | bench) ;;
    *) echo "--only $step: expected info, tests, sanitizer or bench" >&2; exit 2 ;;
  esac
done

mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
work=$(mktemp -d) || exit 2
trap 'rm -rf "$work"' EXIT
site=$work/site
log=$out/gpu.log summary=$out/gpu-summary.txt results=$out/cuda-$(date -u +%Y%m%dT%H%M%SZ).jsonl
: >"$log" && : >"$summary" || exit 2
commit=${COMMIT:-$(git -C "$repo" rev-parse --short=12 HEAD 2>/dev/null || echo unknown)}
export PYTHONPATH=$site PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
failed=0

left() { echo $((seconds - SECONDS)); }

wanted() {
  [ ${#only[@]} -eq 0 ] && return 0
  local each
  for each in "${only[@]}"; do [ "$each" = "$1" ] && return 0; done
  return 1
}

# step NAME LIMIT COMMAND...: runs it in an empty folder, so that the checkout is never imported.
step() {
  local name=$1 limit=$2 began=$SECONDS status word
  shift 2
  [ "$limit" -le "$(left)" ] || limit=$(left)
  if [ "$limit" -lt 5 ]; then
    echo "FAILED    $name: no time is left ($seconds s for everything)" | tee -a "$summary" "$log"
    failed=1
    return 1
  fi
  echo "=== $name (at most $limit s)" | tee -a "$log"
  (cd "$work" && timeout --kill-after=5 "$limit" "$@") 2>&1 | tee -a "$log"
  status=${PIPESTATUS[0]}
  case $status in
    0) word=ok ;;
    77) word="left out" ;;
    *) word=FAILED failed=1 ;;
  esac
  printf '%-9s %s: %d s%s\n' "$word" "$name" $((SECONDS - began)) \
    "$(case $status in 0 | 77) ;; 124 | 137) echo ", stopped at its limit of $limit s" ;; *) echo ", exit $status" ;; esac)" |
    tee -a "$summary" "$log"
  return "$status"
}

finish() {
  echo "=== summary: commit $commit, $SECONDS s, log $log"
  cat "$summary"
  if [ $failed -ne 0 ]; then echo "FAILED"; else echo "all steps passed"; fi
  exit $failed
}

build() {
  set -e
  command -v nvcc >/dev/null || { echo "nvcc is not on the PATH, so there is nothing to measure"; exit 1; }
  nvcc --version | tail -n 2
  nvidia-smi -L || echo "nvidia-smi does not run here"
  if [ -n "$wheels" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
  fi
  mkdir "$work/source"  # so that nothing is written to the checkout
  (cd "$repo" && cp -r pyproject.toml setup.py MANIFEST.in README.md LICENSE csrc dlmt_fast "$work/source")
  rm -f "$work/source"/dlmt_fast/*.so "$work/source/dlmt_fast/_build.json"
  DLMT_CUDA=1 DLMT_NATIVE=1 "$python" -m pip install -v --no-build-isolation --no-deps --no-cache-dir --upgrade \
    --target "$site" "$work/source" >"$work/build.txt" 2>&1 || { tail -n 60 "$work/build.txt"; exit 1; }
  grep -E 'ptxas|spill|\.cuh?[(:].*warning' "$work/build.txt" | head -n 20 || true
  ls "$site"/dlmt_fast/_cuda*.so "$site"/dlmt_fast/_cpu*.so
  rm -rf "$work/source"
}

usable() {
  "$python" "$repo/benchmarks/gpu_check.py" info
}

tests() {
  local plugins=(-p pytest_timeout)
  export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1  # others may be installed here, and their warnings would be errors
  "$python" -c 'import pytest, pytest_timeout, hypothesis' ||
    { echo "pytest, pytest-timeout and hypothesis are needed; give them with --wheels"; exit 1; }
  if "$python" -c 'import xdist' 2>/dev/null; then plugins+=(-p xdist.plugin -n 6); fi
  "$python" -m pytest -q -p no:cacheprovider "${plugins[@]}" -c "$repo/pyproject.toml" --rootdir "$repo" -m gpu \
    --junitxml "$work/tests.xml" "$repo"/tests/test_gpu_*.py || exit 1
  "$python" "$repo/benchmarks/gpu_check.py" tests "$work/tests.xml"
}

# 77: compute-sanitizer is not here, or does not know this device; that is said, and is no failure.
sanitizer() {
  local tool status=0 pids=() tools=(memcheck racecheck synccheck)
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on the PATH"; exit 77; }
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  for tool in "${tools[@]}"; do
    compute-sanitizer --tool "$tool" --error-exitcode 99 "$python" "$repo/benchmarks/gpu_check.py" small \
      >"$work/$tool.txt" 2>&1 &
    pids+=($!)
  done
  for i in "${!tools[@]}"; do
    tool=${tools[$i]}
    if wait "${pids[$i]}" && grep -q 'small case done' "$work/$tool.txt"; then
      echo "$tool: $(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$work/$tool.txt" | tail -n 1)"
    elif grep -q 'Device not supported' "$work/$tool.txt"; then
      echo "$tool: compute-sanitizer does not support this device here"
      [ "$status" -eq 0 ] && status=77
    else
      echo "$tool failed:"
      tail -n 40 "$work/$tool.txt"
      status=1
    fi
  done
  exit "$status"
}

bench() {
  "$python" "$repo/benchmarks/cuda.py" "$results" --budget $(($(left) - 45)) --commit "$commit"
}

export repo python work site wheels results commit seconds
export -f build usable tests sanitizer bench left
# Each step is a process of its own, so that it can be stopped; SECONDS goes on counting from this shell's start.
as() { echo "SECONDS=$SECONDS; $1"; }

step build 240 bash -c "$(as build)" || finish
step info 60 bash -c "$(as usable)" || finish
if wanted tests; then step tests 170 bash -c "$(as tests)"; fi
if wanted sanitizer; then step sanitizer 90 bash -c "$(as sanitizer)"; fi
if wanted bench; then step bench "$(left)" bash -c "$(as bench)"; fi
finish

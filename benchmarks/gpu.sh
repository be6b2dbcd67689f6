#!/usr/bin/env bash
# Measure on a GPU in two calls of under ten minutes each; every part has a hard limit and none stops another.
#
#   benchmarks/gpu.sh 1 OUT    tests that need a GPU, head log-probs, attention
#   benchmarks/gpu.sh 2 OUT    optimizer steps of models at full size, TRL beside them where it is installed
#
# Logs, JSON and plots go to OUT. The last lines are a table of the parts; the exit code is 1 if one failed.
# Nothing needs to be installed but torch, transformers, accelerate and pytest, and nothing is downloaded.
#
#   PREFOPT_BENCH_PYTHON    the interpreter; default python3
#   PREFOPT_BENCH_SECONDS   for one call; default 570, with QUICK 100
#   PREFOPT_BENCH_DEVICE    cuda or cpu; default cuda
#   PREFOPT_BENCH_QUICK     1: tiny shapes, to see that everything runs
#   PREFOPT_BENCH_WHEELS    a folder of wheels that this run may import: trl, which needs datasets, dill and
#                           multiprocess; liger-kernel
set -uo pipefail

usage() {
  sed -n '2,17s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

[ $# -eq 2 ] || usage
case $1 in 1 | 2) call=$1 ;; *) usage ;; esac
mkdir -p "$2" || exit 2
out=$(cd "$2" && pwd)
given=${PREFOPT_BENCH_WHEELS:-}
[ -z "$given" ] || given=$(cd "$given" && pwd) || exit 2
cd "$(dirname "$0")/.." || exit 2

python=${PREFOPT_BENCH_PYTHON:-python3}
device=${PREFOPT_BENCH_DEVICE:-cuda}
quick=${PREFOPT_BENCH_QUICK:-}
seconds=${PREFOPT_BENCH_SECONDS:-$([ -n "$quick" ] && echo 100 || echo 570)}
threads=$([ "$device" = cpu ] && echo 1 || echo 8)
case $device in cpu | cuda) ;; *) echo "PREFOPT_BENCH_DEVICE: '$device' is neither cpu nor cuda" >&2; exit 2 ;; esac
case $seconds in '' | *[!0-9]*) echo "PREFOPT_BENCH_SECONDS: '$seconds' is no whole number" >&2; exit 2 ;; esac
command -v "$python" >/dev/null || { echo "PREFOPT_BENCH_PYTHON: there is no '$python'" >&2; exit 2; }

export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
export PREFOPT_BENCH_RESULTS="$out"
export TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1
export PYTHONUNBUFFERED=1  # what a part has said is in its log even if it is stopped
scratch=
trap '[ -z "$scratch" ] || rm -rf "$scratch"' EXIT

table=()
failed=0

# part NAME LIMIT COMMAND…: run it for at most LIMIT seconds, keep its output in OUT/NAME.log
part() {
  local name=$1 limit=$2 began=$SECONDS code result
  shift 2
  echo "== $name, at most $limit s" >&2
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
  code=$?
  case $code in
    0) result=ok ;;
    124 | 137) result="stopped after $limit s" ;;
    *) result="failed with $code" ;;
  esac
  [ $code -eq 0 ] || failed=1
  table+=("$(printf '%-14s %5d s  %s' "$name" $((SECONDS - began)) "$result")")
  tail -n 70 "$out/$name.log"
}

share() { echo $((seconds * $1 / 100)); }

{
  date -u +%FT%TZ
  "$python" --version
  command -v nvidia-smi >/dev/null && nvidia-smi
} >"$out/environment.log" 2>&1

if [ -n "$given" ]; then
  scratch=$(mktemp -d)
  # dill, which datasets pickles with, takes modules in folders of another name for a script's own
  before=$SECONDS
  part wheels 60 "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --disable-pip-version-check --target "$scratch/site-packages" "$given"/*.whl
  seconds=$((seconds - (SECONDS - before)))  # the others share what is left
  export PYTHONPATH="$PYTHONPATH:$scratch/site-packages"
fi

if [ "$call" = 1 ]; then
  # only the files with such tests: others may need packages that are not there
  mapfile -t tests < <(grep -rlE --include='test_*.py' 'mark\.gpu' tests | sort)
  pytest=(-m gpu -v --tb=short --durations=10 -p no:cacheprovider)
  # most of their time goes into compiling, which keeps one core busy
  if [ "$device" = cuda ] && "$python" -c 'import xdist' 2>/dev/null; then pytest+=(-n 6); fi
  part tests "$(share 27)" "$python" -m benchmarks.gpu.tests "${pytest[@]}" "${tests[@]}"
  logp=(--device "$device" --threads "$threads" --within "$(share 28)")
  [ -z "$quick" ] || logp+=(--shape 64,32,300 --turns 3)
  part linear_logp "$(share 37)" "$python" -m benchmarks.bench_linear_logp "${logp[@]}"
  attention=(--device "$device" --threads "$threads" --within "$(share 22)")
  [ "$device" = cpu ] || attention+=(--seconds 3)  # of each: the slow ones are there for comparison only
  [ -z "$quick" ] || attention+=(--shape 64,32,32 --heads small --tokens 256 --turns 3)
  part attention "$(share 33)" "$python" -m benchmarks.bench_attention "${attention[@]}"
else
  step=(--device "$device" --threads "$threads" --seconds "$(share 88)" --out "$out")
  [ -z "$quick" ] || step+=(--quick)
  part step "$(share 98)" "$python" -m benchmarks.bench_step "${step[@]}"
fi

echo
printf '%s\n' "${table[@]}"
echo "in $out: $(cd "$out" && ls | tr '\n' ' ')"
exit $failed

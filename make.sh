#!/usr/bin/env bash
# Sets up an environment, builds the operator, runs the demo and the tests. `./make.sh help` lists the commands.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore

usage() {
  cat <<'EOF'
./make.sh                set up an environment and build the operator
./make.sh demo           the same, then train, validate and predict with a YOLO that holds DCNv4
./make.sh test [ARG...]  the same, then the test suite without its slow part; ARGs go to pytest
./make.sh test-full      the same, then every test
./make.sh build [cuda=0|1|try] [arch=8.6,9.0+PTX|native|wide|quick] [jobs=N] [verbose=1]
                         rebuild the operator
./make.sh wheel [jobs=N] build the operator for all GPUs from 7.5 on and put a wheel with it into dist/
./make.sh docs           build the site of docs/ into build/site, every link checked
./make.sh lint           ruff, mypy and clang-format
./make.sh clean          remove what was built (an environment stays)

An active virtualenv or conda environment is used, else .venv is made. Environment variables: PYTHON (for .venv), CXX,
CUDA_HOME, YOLO_DCNV4_ARCHS (as arch=), MAX_JOBS (as jobs=).
EOF
}

fail() {
  printf 'make.sh: %s\n' "$*" >&2
  exit 1
}

is_new_enough() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null
}

find_python() {
  local name
  for name in ${PYTHON:-python3 python python3.14 python3.13 python3.12 python3.11 python3.10}; do
    if is_new_enough "$name"; then
      printf '%s\n' "$name"
      return
    fi
  done
  fail "no Python >= 3.10 found (looked for ${PYTHON:-python3, python, python3.10 to python3.14}); name one with PYTHON=..."
}

make_venv() {
  local base
  base=$(find_python)
  echo "making .venv with $("$base" --version)" >&2
  if "$base" -c 'import ensurepip' 2>/dev/null; then
    "$base" -m venv .venv
  elif "$base" -c 'import venv, pip' 2>/dev/null; then
    # Debian's python3 without python3-venv: an environment needs nothing else than some pip to start from
    "$base" -m venv --without-pip .venv
    "$base" -m pip install -q --target "$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" pip
  else
    fail "$base has neither ensurepip nor pip to make an environment with; on Debian and Ubuntu: apt-get install python3-venv"
  fi
}

choose_environment() {
  local environment=${VIRTUAL_ENV:-${CONDA_PREFIX:-}}
  if [ -z "$environment" ]; then
    environment=$PWD/.venv
    [ -x .venv/bin/python ] || make_venv
  fi
  python=$environment/bin/python
  [ -x "$python" ] || fail "the active environment $environment has no bin/python; deactivate it or make it anew"
  is_new_enough "$python" || fail "$python is $("$python" --version 2>&1); Python >= 3.10 is needed"
  # what the environment holds comes first for the jobs too: yolo, ninja
  PATH=$(dirname "$python"):$PATH
  export PATH
}

# with `yolo`, ultralytics has to run too; the other words are extras of pyproject.toml
set_up() {
  choose_environment
  "$python" -m yolo_dcnv4.build.environment "$@"
}

# a machine without a compiler goes on with the PyTorch backend
build_if_possible() {
  local status=0
  "$python" -m yolo_dcnv4.build "$@" || status=$?
  [ "$status" = 0 ] || [ "$status" = 3 ] || return "$status"
}

run_tests() {
  # without a GPU too: a broken CUDA source shall not go unseen
  build_if_possible cuda=try arch="${YOLO_DCNV4_ARCHS:-quick}"
  # two at a time, for most wait for processes of their own; a later -n among the arguments counts
  "$python" -m pytest -n 2 --dist worksteal "$@"
}

# modules removed since would get into the next wheel, and the metadata count as an installation in this folder
remove_wheel_leftovers() {
  rm -rf build/lib* build/bdist.* ./*.egg-info
}

make_wheel() {
  # setuptools comes with the extra
  set_up test
  "$python" -m yolo_dcnv4.build cuda=1 arch=wide "$@"
  remove_wheel_leftovers
  "$python" -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .
  remove_wheel_leftovers
}

lint() {
  set_up dev
  "$python" -m ruff check .
  "$python" -m ruff format --check .
  "$python" -m mypy
  git ls-files -z 'cuda_src/*.cpp' 'cuda_src/*.h' 'cuda_src/*.cu' 'cuda_src/*.cuh' |
    xargs -0 -r "$(dirname "$python")/clang-format" --dry-run --Werror
}

command=${1:-}
[ $# = 0 ] || shift
case $command in
  '')
    set_up
    build_if_possible
    ;;
  demo)
    set_up yolo
    build_if_possible || echo "going on with the PyTorch backend" >&2
    "$python" examples/demo.py "$@"
    ;;
  test)
    set_up yolo test export docs
    run_tests -m 'not slow' "$@"
    ;;
  test-full)
    set_up yolo test export openvino notebook docs
    run_tests "$@"
    ;;
  build)
    set_up
    "$python" -m yolo_dcnv4.build force=1 "$@"
    ;;
  wheel) make_wheel "$@" ;;
  docs)
    set_up docs
    NO_MKDOCS_2_WARNING=1 "$python" -m mkdocs build --strict -f docs/site/mkdocs.yml
    echo "open build/site/index.html"
    ;;
  lint) lint ;;
  clean) rm -rf build dist yolo_dcnv4/lib ./*.egg-info ;;
  help | -h | --help) usage ;;
  *)
    usage >&2
    fail "unknown command '$command'"
    ;;
esac

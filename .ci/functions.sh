# Sourced: environments (by uv, in seconds, from pip's index), Pythons, and what to run in them.

# uv does not read pip's settings.
if index=${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2>/dev/null)}; then
  export UV_DEFAULT_INDEX="$index"
fi
export UV_SYSTEM_CERTS=true UV_NO_PROGRESS=true
uv() {
  [ -x .venv-uv/bin/uv ] || { python3 -m venv .venv-uv && .venv-uv/bin/pip install --quiet "uv>=0.9"; }
  .venv-uv/bin/uv "$@"
}
export -f uv

environment() { # NAME PYTHON ARGUMENTS: makes .venv-NAME and installs into it
  uv venv --quiet --clear --python "$2" ".venv-$1"
  VIRTUAL_ENV=".venv-$1" uv pip install --quiet "${@:3}"
}
export -f environment

python_of() { # VERSION: prints the path of such a Python, if this machine has one
  local candidate
  for candidate in "$(command -v "python$1")" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
    # pyenv puts commands on the path that only say that they are switched off.
    if "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "no Python $1 on this machine" >&2
  return 1
}
export -f python_of

tests() { # ENVIRONMENT ARGUMENTS; `-n 0` where the imports of two more processes take longer than the tests
  "$1/bin/python" -m pytest -q -n 2 -p no:cacheprovider "${@:2}"
}
export -f tests

sensitive() { # ENVIRONMENT ARGUMENTS: what a version of Python or of a dependency can change
  local left_out=(core/test_protocol.py core/test_{rate_limiter,limiter_shapes,limiter_simulation}.py adapters/test_ray_data.py)
  left_out+=(runtime/test_{loops_and_forks,quota,request_bounds,socket_faults}.py)
  local files=(core runtime adapters corpus/test_corpus_{files,formats,resume}.py)
  files+=(system/test_{docstrings,imports,secrets,secrets_in_tracebacks,signatures,sync_async_parity}.py)
  tests "$1" "${files[@]/#/tests/}" "${left_out[@]/#/--ignore=tests/}" "${@:2}"
}
export -f sensitive

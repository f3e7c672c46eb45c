# shellcheck shell=bash
# Virtual environments with the endpoint, the project (editable) and its tools: one with the
# newest supported endpoint, one with the oldest. Made from the system's Python, since root's
# own may lie where the test user cannot look.

SYSTEM_PYTHON=/usr/bin/python3
OLDEST_ENDPOINT='globus-compute-endpoint==4.16.*'

venv_newest_ready() { venv_ready newest; }
venv_oldest_ready() { venv_ready oldest; }
venv_newest_make() { venv_make newest "globus-compute-endpoint>=4,<5"; }
venv_oldest_make() { venv_make oldest "$OLDEST_ENDPOINT"; }

make_venvs() {
  step venv_newest "installing the newest Globus Compute endpoint and the project's tools"
  [[ $PROFILE != test ]] || step venv_oldest "installing the oldest supported endpoint"
}

venv_ready() {
  local venv="$STATE/venv-$1"
  [[ -x $venv/bin/python && -s $venv/.provisioned && $(<"$venv/.provisioned") == "$(venv_recipe)" ]]
}

# What an editable install copies into the environment, and what decides its contents.
# Newer releases upstream do not count: remove the folder to get them.
venv_recipe() {
  local checkout
  checkout=$(checkout_dir)
  { echo "$checkout"; "$SYSTEM_PYTHON" -V; cat "$HERE/venvs.sh" "$checkout/pyproject.toml" \
    "$checkout"/src/*.pth "$checkout"/src/*/__init__.py 2>/dev/null || true; } | sha256_of_stdin
}

# Installing over an older state changes only what differs.
venv_make() {
  local venv="$STATE/venv-$1" endpoint=$2
  [[ -x $venv/bin/pip ]] || "$SYSTEM_PYTHON" -m venv --clear "$venv"
  echo "$endpoint" >"$venv/constraints.txt"
  "$venv/bin/pip" install --quiet uv
  install_with_uv "$venv" || install_with_pip "$venv" ||
    advise "The Python packages could not be installed: check pip's index settings (pip config list), then run this again."
  ! is_root || share_pip_settings "$venv/bin/pip"
  venv_recipe >"$venv/.provisioned"
}

# Bytecode now: the test user may not write it later, and every start would pay for it.
install_with_uv() {
  (use_pip_settings "$1/bin/pip" && "$1/bin/uv" pip install --python "$1/bin/python" --upgrade \
    --compile-bytecode --constraints "$1/constraints.txt" --editable "$(checkout_dir)[endpoint,dev]")
}

install_with_pip() {
  "$1/bin/pip" install --upgrade --constraint "$1/constraints.txt" --editable "$(checkout_dir)[endpoint,dev]"
}

# uv does not read pip's configuration, where sites name their mirrors and certificates.
use_pip_settings() {
  local pip=$1 value
  export UV_INDEX_STRATEGY=${UV_INDEX_STRATEGY:-unsafe-best-match} # as pip chooses
  value=$(pip_setting "$pip" index-url) && export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$value}"
  value=$(pip_setting "$pip" extra-index-url | existing_places) && export UV_INDEX="${UV_INDEX:-$value}"
  value=$(pip_setting "$pip" find-links | existing_places) && export UV_FIND_LINKS="${UV_FIND_LINKS:-${value// /,}}"
  value=$(pip_setting "$pip" trusted-host) && export UV_INSECURE_HOST="${UV_INSECURE_HOST:-$value}"
  value=$(pip_setting "$pip" cert) && export SSL_CERT_FILE="${SSL_CERT_FILE:-$value}"
  return 0
}

# Root's own pip configuration may name the index; without it the test user reaches none.
share_pip_settings() {
  local pip=$1 file="$STATE/home/.config/pip/pip.conf" name value
  install -d -o "$GCA_TEST_USER_NAME" -g "$GCA_TEST_USER_NAME" "$STATE"/home/.config{,/pip}
  {
    echo "[global]"
    for name in index-url cert trusted-host proxy; do
      if value=$(pip_setting "$pip" "$name"); then echo "$name = $value"; fi
    done
  } >"$file"
  chown "$GCA_TEST_USER_NAME": "$file" && chmod 0600 "$file" # an index URL may hold a password
}

# pip_setting PIP NAME: the value that pip itself would use; fails where there is none.
pip_setting() {
  local pip=$1 name=$2 variable
  variable=PIP_$(tr a-z- A-Z_ <<<"$name")
  if [[ -n ${!variable:-} ]]; then
    echo "${!variable}"
  else
    "$pip" config list | sed -nE "s/^(global|install)\.$name='(.*)'\$/\2/p" | sed 's/\\n/ /g' | tail -n 1 | grep .
  fi
}

# Drops local folders that are not there: pip passes over them, uv does not.
existing_places() {
  local place places=()
  # shellcheck disable=SC2013  # places are separated by blanks
  for place in $(cat); do
    if [[ $place == *://* && $place != file://* || -e ${place#file://} ]]; then places+=("$place"); fi
  done
  [[ ${#places[@]} -eq 0 ]] || echo "${places[*]}"
  [[ ${#places[@]} -gt 0 ]]
}

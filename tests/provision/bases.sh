# shellcheck shell=bash
# Base images for machines that reach no public registry: bootstrapped from the configured
# Debian mirror, stored as a registry's files, served on loopback by services.py.
# They answer to the names of the images that they stand in for.

# NAME:TAG  IMAGE-ON-DOCKER-HUB  SUITE  PACKAGES
# "nopython" is for tasks that need none.
PYTHON=python3,python3-pip,python3-venv,python-is-python3,ca-certificates
BASES_DEMO=("python:3.11-slim python:3.11-slim bookworm $PYTHON")
BASES_TEST=("${BASES_DEMO[@]}"
  "python:3.13-slim python:3.13-slim trixie $PYTHON"
  "nopython:latest debian:bookworm-slim bookworm ca-certificates")

HUB=https://registry-1.docker.io/v2/

bases_wanted() {
  if [[ $PROFILE == test ]]; then printf '%s\n' "${BASES_TEST[@]}"; else printf '%s\n' "${BASES_DEMO[@]}"; fi
}

# Docker Hub answers 401 to a stranger: that is an answer, and all we ask.
hub_answers() {
  "$SYSTEM_PYTHON" - "$HUB" <<'PYTHON' 2>/dev/null
import sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=4)
except urllib.error.HTTPError as error:
    sys.exit(error.code != 401)
PYTHON
}

# The demo takes the real images where it can; the tests want the same bytes everywhere.
# Asked once per run, and not at all when our own images are there.
base_source_is_hub() {
  if [[ -z ${BASE_SOURCE:-} ]]; then
    BASE_SOURCE=loopback
    [[ $PROFILE == test ]] || bases_stored || ! hub_answers || BASE_SOURCE=hub
  fi
  [[ $BASE_SOURCE == hub ]]
}

bases_ready() { base_source_is_hub || bases_stored; }

bases_stored() {
  local base
  while read -r base; do
    base_stored "$base" || return 1
  done < <(bases_wanted)
}

base_stored() {
  local name=${1%% *} stamp
  stamp=$(stamp_of "$1")
  [[ -e $STATE/registry/docker/registry/v2/repositories/${name%:*}/_manifests/tags/${name#*:} ]] &&
    [[ -s $stamp && $(<"$stamp") == "$(recipe_of "$1")" ]]
}

stamp_of() {
  local name=${1%% *}
  echo "$STATE/bases/${name/:/-}.recipe"
}

# Everything that a base is made from; a change makes a new one.
recipe_of() {
  local suite
  suite=$(cut -d' ' -f3 <<<"$1")
  { echo "$1"; sources_for "$suite" || true; cat "$HERE/base-image"; } | sha256_of_stdin
}

bases_make() {
  local registry base
  mkdir -p "$STATE/bases" "$STATE/registry"
  # Without descriptor 9: the lock is ours, and a server's last moments must not hold it.
  exec {registry}< <(exec "$SYSTEM_PYTHON" "$HERE/services.py" registry "$STATE/registry" --writable 9>&-)
  local server=$! address
  # shellcheck disable=SC2064  # expand now
  trap "kill $server; wait $server || true" EXIT
  read -r address <&"$registry"
  while read -r base; do
    base_stored "$base" || make_base "$base" "$address"
  done < <(bases_wanted)
}

make_base() {
  local name original suite packages
  read -r name original suite packages <<<"$1"
  if debian_mirror >/dev/null; then
    echo "== $name from $suite"
    "$HERE/base-image" "$suite" "$packages" "$2/$name" ||
      advise "Making $name failed: check that the Debian mirror carries $suite."
  else
    echo "== $name from Docker Hub"
    skopeo --insecure-policy copy --dest-tls-verify=false "docker://$original" "docker://$2/$name" ||
      advise "No base images: this system has no Debian mirror, and Docker Hub does not answer."
  fi
  recipe_of "$1" >"$(stamp_of "$1")"
}

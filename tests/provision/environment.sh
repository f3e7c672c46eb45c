# shellcheck shell=bash
# What provisioning made, as KEY=value lines that shells, make and the tests read.

write_environment() {
  local new="$STATE/env.new"
  {
    setting GCA_STATE_DIR "$STATE"
    setting GCA_TEST_USER "$(is_root && echo "$GCA_TEST_USER_NAME" || true)"
    setting GCA_CHECKOUT "$(checkout_dir)"
    setting GCA_VENV_NEWEST "$STATE/venv-newest"
    setting GCA_VENV_OLDEST "$([[ ! -d $STATE/venv-oldest ]] || echo "$STATE/venv-oldest")"
    setting GCA_REGISTRY_STORE "$STATE/registry"
    setting GCA_APPTAINER "$(command -v apptainer)"
    setting GCA_BASE_SOURCE "$(base_source_is_hub && echo hub || echo loopback)"
  } >"$new"
  mv -f "$new" "$STATE/env"
}

# Quoted only where a shell would need it, so that plain readers can split at "=".
setting() { printf '%s=%q\n' "$1" "$2" | sed "s/=''$/=/"; }

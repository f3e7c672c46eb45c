# shellcheck shell=bash
# The unprivileged user that tests run as when provisioning runs as root.

testuser_ready() {
  [[ $(getent passwd "$GCA_TEST_USER_NAME" | cut -d: -f6) == "$STATE/home" ]] || return 1
  [[ -d $STATE/home && -d $STATE/run && -d $STATE/tmp ]]
}

testuser_make() {
  if ! getent passwd "$GCA_TEST_USER_NAME"; then
    useradd --no-create-home --home-dir "$STATE/home" --shell /bin/bash "$GCA_TEST_USER_NAME"
  else
    usermod --home "$STATE/home" "$GCA_TEST_USER_NAME" # the state folder has moved
  fi
  local folder
  for folder in home run tmp; do
    install -d -o "$GCA_TEST_USER_NAME" -g "$GCA_TEST_USER_NAME" -m 0700 "$STATE/$folder"
  done
}

# shellcheck shell=bash
# A copy of the checkout that the test user may read and write: root's own often lies in a
# folder closed to others. An ordinary user works in the checkout itself.

checkout_dir() {
  if is_root; then echo "$STATE/checkout"; else echo "$CHECKOUT"; fi
}

checkout_ready() { false; }

# Only what changed is written, by the test user itself, so a running test keeps its files.
checkout_make() {
  local copy="$STATE/checkout" list="$STATE/checkout.list"
  install -d -o "$GCA_TEST_USER_NAME" -g "$GCA_TEST_USER_NAME" "$copy"
  touch "$list"
  project_files | sort >"$list.new"
  comm -13 "$list.new" <(sort "$list") | (cd "$copy" && unprivileged xargs -r -d '\n' rm -fv)
  changed_files "$copy" <"$list.new" |
    tar --create --format=posix --directory="$CHECKOUT" --no-recursion --verbatim-files-from --files-from=- |
    unprivileged tar --extract --verbose --directory="$copy" --no-same-owner
  mv "$list.new" "$list"
}

unprivileged() {
  setpriv --reuid "$GCA_TEST_USER_NAME" --regid "$GCA_TEST_USER_NAME" --init-groups "$@"
}

# Tracked files and new ones that are not ignored; all files where this is no git checkout.
# git refuses another user's repository unless told that we mean it.
project_files() {
  if [[ -e $CHECKOUT/.git ]]; then
    git -c safe.directory='*' -C "$CHECKOUT" ls-files --cached --others --exclude-standard
  else
    (cd "$CHECKOUT" && find . \( -name '.*' ! -name . -o -name __pycache__ -o -name build \) -prune -o -type f -printf '%P\n')
  fi
}

changed_files() {
  local file
  while IFS= read -r file; do
    [[ -e $CHECKOUT/$file || -L $CHECKOUT/$file ]] || continue # deleted, not yet committed
    if [[ $CHECKOUT/$file -nt $1/$file || $CHECKOUT/$file -ot $1/$file ]]; then echo "$file"; fi
  done
}

# shellcheck shell=bash
# Shared by every provisioning file: where state lives, progress lines, logged steps.
# Sourced, never run.

# Another name, with another $GCA_STATE_DIR, lets several checkouts be tested beside each other.
GCA_TEST_USER_NAME=${GCA_TEST_USER_NAME:-gcatest}

# An ordinary user's PATH often lacks the folders that daemons and mkfs tools are in.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"

is_root() { [[ $EUID -eq 0 ]]; }

have() { command -v "$1" >/dev/null 2>&1; }

# Where everything that provisioning makes is kept.
state_dir() {
  if [[ -n ${GCA_STATE_DIR:-} ]]; then
    echo "$GCA_STATE_DIR"
  elif is_root; then
    echo /var/lib/gc-apptainer-test
  else
    echo "${XDG_CACHE_HOME:-$HOME/.cache}/gc-apptainer-test"
  fi
}

say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }

# The last line a failing step writes: what the reader should do now.
advise() {
  echo "==> $*"
  return 1
}

# Ends the whole run with one line; for what is known before a step starts.
stop() {
  echo "provision: $*" >&2
  exit 1
}

# step NAME DESCRIPTION: makes NAME unless NAME_ready says it is there already.
# A step is two functions, NAME_ready and NAME_make; the latter's output goes to logs/NAME.log.
step() {
  local name=$1 description=$2 log="$STATE/logs/$1.log" start=$SECONDS status
  if "${name}_ready" >/dev/null 2>&1; then
    say "$name: ready"
    return
  fi
  say "$name: $description …"
  # `if ! (…)` would switch `set -e` off inside the step, so ask for the status afterwards.
  set +e
  (set -e && "${name}_make") >"$log" 2>&1 </dev/null
  status=$?
  set -e
  [[ $status -eq 0 ]] || report_failure "$name" "$log" "$status"
  say "$name: done in $((SECONDS - start)) s"
}

report_failure() {
  local name=$1 log=$2 status=$3 advice
  advice=$(grep '^==> ' "$log" | tail -n 1 || true)
  {
    echo "---- end of $log"
    tail -n 20 "$log" | grep -v '^==> ' || true
    echo "----"
    echo "provision: step '$name' failed (exit $status). ${advice#==> }"
    [[ -n $advice ]] || echo "provision: read $log, mend the cause and run this again; finished steps are kept."
  } >&2
  exit 1
}

# in_parallel STEP-FUNCTION…: runs them at the same time, fails when one of them failed.
in_parallel() {
  local pids=() pid failed=0 function
  for function in "$@"; do
    "$function" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do
    wait "$pid" || failed=1
  done
  [[ $failed -eq 0 ]] || exit 1
}

# Background jobs of a script ignore Ctrl-C, so what a run started is ended here, by pid.
kill_descendants() {
  local child
  for child in $(ps -o pid= --ppid "$1"); do
    kill_descendants "$child"
    kill "$child" 2>/dev/null || true
  done
}

sha256_of_stdin() { sha256sum | cut -d' ' -f1; }

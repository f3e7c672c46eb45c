# shellcheck shell=bash
# What an ordinary user cannot do: told once, in one line that an admin can act on.

APPTAINER_INSTALL=https://apptainer.org/docs/admin/main/installation.html

require_admins_part() {
  local requests
  requests=$(admin_requests | paste -sd';' - | sed 's/;/; /g')
  [[ -z $requests ]] || stop "ask your admin: $requests"
  say "system: ready"
}

admin_requests() {
  local missing
  missing=$(missing_commands | sort -u | xargs)
  if have apt-get; then
    [[ -z $missing ]] || echo "apt-get install $missing"
  else
    [[ -z $missing ]] || echo "install $missing (Debian's names)"
  fi
  have apptainer || echo "install Apptainer 1.1 or newer ($APPTAINER_INSTALL)"
  namespace_problems
}

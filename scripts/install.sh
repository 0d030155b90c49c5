#!/bin/bash
# Installs those of the named Debian packages that are not there yet. Their services are not started: a test
# starts what it needs itself, inside a namespace, and a DHCP server must never run on this host's network.
set -euo pipefail
missing=()
for package; do
  if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed'; then missing+=("$package"); fi
done
[ ${#missing[@]} -gt 0 ] || exit 0
echo "installing: ${missing[*]}"
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod 755 $policy
  trap 'rm -f $policy' EXIT
fi
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null

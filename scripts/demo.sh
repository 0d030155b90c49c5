#!/bin/bash
# Installs a virtual rack on the embedded defaults: three machines (BIOS, UEFI PXE, UEFI HTTP Boot), from power-on over
# the installation to their own disks. Then takes it down again, whatever happened.
set -euo pipefail
rackstrap=$(readlink -f "$1")
scripts=$(dirname "$(readlink -f "$0")")
state=${DEMO_STATE:-/var/lib/rackstrap-lab/demo}
lab() { "$rackstrap" lab --name demo --state "$state" "$@"; }
cd "$(mktemp -d)" # the embedded defaults, not a configuration that happens to lie here
trap 'lab down; rmdir "$PWD"' EXIT
lab up --wait "${DEMO_WAIT:-20m}"
for _ in {1..60}; do # until the agents have called home
  "$rackstrap" --config "$state/rackstrap.yaml" status | grep -q ' installed ' || break
  sleep 5
done
echo
"$rackstrap" --config "$state/rackstrap.yaml" status
i=0
for machine in kmaster knode1 knode2; do
  echo
  "$rackstrap" --config "$state/rackstrap.yaml" events "$machine" -n 60
  echo
  echo "$machine, as it has booted from its disk:"
  lab ssh "$machine" bash -s "$machine" "10.10.10.8$i" <"$scripts/check-installed.sh"
  i=$((i + 1))
done
echo
echo "All three machines are installed and run from their disks. The serial logs stay in $state/machines."

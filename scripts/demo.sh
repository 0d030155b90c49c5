#!/bin/bash
# Boots a virtual rack on the embedded defaults: three machines (BIOS, UEFI PXE, UEFI HTTP Boot), from
# power-on to the installer's kernel. Then takes it down again, whatever happened.
set -euo pipefail
rackstrap=$(readlink -f "$1")
state=${DEMO_STATE:-/var/lib/rackstrap-lab/demo}
lab() { "$rackstrap" lab --name demo --state "$state" "$@"; }
cd "$(mktemp -d)" # the embedded defaults, not a configuration that happens to lie here
trap 'lab down; rmdir "$PWD"' EXIT
lab up --boot-only --wait "${DEMO_WAIT:-8m}"
echo
"$rackstrap" --config "$state/rackstrap.yaml" status
echo
for machine in kmaster knode1 knode2; do
  "$rackstrap" --config "$state/rackstrap.yaml" events "$machine" -n 40
  echo
done
echo "All three machines reached the installer. The serial logs stay in $state/machines."

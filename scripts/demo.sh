#!/bin/bash
# The main job, on a virtual rack and on the embedded defaults: three machines with blank disks (BIOS, UEFI PXE, UEFI
# HTTP Boot), from power-on over the installation and their own disks to a Kubernetes cluster whose nodes are all
# Ready. Then takes the rack down again, whatever happened.
set -euo pipefail
rackstrap=$(readlink -f "$1")
scripts=$(dirname "$(readlink -f "$0")")
state=${DEMO_STATE:-/var/lib/rackstrap-lab/demo}
lab() { "$rackstrap" lab --name demo --state "$state" "$@"; }
appliance() { "$rackstrap" --config "$state/rackstrap.yaml" "$@"; }
cd "$(mktemp -d)" # the embedded defaults, not a configuration that happens to lie here
trap 'lab down; rmdir "$PWD"' EXIT
echo "Without KVM, on two cores, this takes ten to twenty minutes, and the first time ten more, to build"
echo "Kubernetes. The time in front of each line counts from power-on."
lab up --wait "${DEMO_WAIT:-25m}"
echo
echo "All three have booted their disks, and call the appliance: kmaster initialises, the others join."
appliance wait --timeout "${DEMO_WAIT:-25m}"
echo
appliance status
i=0
for machine in kmaster knode1 knode2; do
  echo
  appliance events "$machine" -n 80
  echo
  echo "$machine, as it has booted from its disk:"
  lab ssh "$machine" bash -s "$machine" "10.10.10.8$i" <"$scripts/check-installed.sh"
  i=$((i + 1))
done
echo
lab ssh kmaster kubectl --kubeconfig /etc/kubernetes/admin.conf get nodes,pods --all-namespaces --output wide
echo
echo "The rack is complete. The serial logs stay in $state/machines."

#!/bin/bash
# A thousand simulated nodes, with the agent's own protocol over TLS, from the kickstart to Ready: the time it takes, the
# daemon's memory, and what each call took. Kubernetes is not in it: what is measured is the appliance.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
out=$(RACKSTRAP_LOAD_NODES=${BENCH_NODES:-1000} go test ./e2e -count=1 -timeout 25m -run '^TestNodesAtOnce$' -v) || { echo "$out"; exit 1; }
sed -n 's/^ *load_test.go:[0-9]*: //p' <<<"$out"

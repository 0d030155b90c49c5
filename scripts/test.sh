#!/bin/bash
# Everything that proves the project: formatting, vet, shellcheck, all tests with the race detector, and the
# QEMU boots. RACKSTRAP_CI=1 turns every skip for want of root or of a program into a failure.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."

unformatted=$(git ls-files "*.go" | xargs gofmt -l)
[ -z "$unformatted" ] || { echo "gofmt would change: $unformatted"; exit 1; }
go vet ./...
git ls-files '*.sh' '.ci/*' | xargs shellcheck --external-sources
# What the lab's machines run is built once, before anything has a time limit.
go run ./cmd/rackstrap lab kubernetes
# Two packages at a time would starve the emulated machines of the lab's tests on a small host: they come last.
others=$(go list ./... | grep -vE '^rackstrap/(lab|e2e)$')
# shellcheck disable=SC2086 # a list of words
go test -race -timeout 25m $others
said=$(mktemp)
trap 'rm -f "$said"' EXIT
if ! go test -timeout 60m -p 1 -v ./lab ./e2e | grep -vE '^=== (RUN|PAUSE|CONT)' | tee "$said"; then
  # The machines' logs stand between the reader and the reason.
  echo 'What failed, once more:'
  awk '/Error Trace:/ { n = 40 } /^ *--- FAIL|^panic:|^FAIL/ { print } n-- > 0 { print } /Test: / { n = 0 }' "$said" | cut -c 1-400
  exit 1
fi

#!/bin/bash
# Runs every fuzz target for the given time.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
git grep -hoE '^func Fuzz[A-Za-z0-9]+' -- '*_test.go' >/dev/null || { echo "no fuzz targets"; exit 1; }
git grep -oE '^func Fuzz[A-Za-z0-9]+' -- '*_test.go' | while IFS=: read -r file declaration; do
  target=${declaration#func }
  echo "$(dirname "$file") $target"
  go test -run '^$' -fuzz "^$target\$" -fuzztime "${1:-30s}" -fuzzminimizetime 1s "./$(dirname "$file")" </dev/null
done

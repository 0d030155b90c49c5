#!/bin/bash
# The pull-through of package repositories beside nginx's proxy_cache: the same upstream, 50 clients that each
# fetch a repository of 100 MB, metadata first, cold and warm. All bytes are compared. Printed as ratios.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
rackstrap=$PWD/bin/rackstrap
clients=${BENCH_CLIENTS:-50}
tmp=$(mktemp -d)
ns=rsbench-repo
started=()

cleanup() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
  ip netns del $ns 2>/dev/null || true
  rm -rf "$tmp"
}
trap cleanup EXIT

ip netns add $ns
ip -n $ns link set lo up
serve() { # NAME COMMAND...
  local name=$1
  shift
  ip netns exec $ns "$@" >"$tmp/$name.log" 2>&1 &
  started+=($!)
}
go build -o "$tmp/client" scripts/bench-repo.go
"$tmp/client" make "$tmp/repo"
mkdir "$tmp/cache"
"$tmp/client" medium "$tmp/tree"
chmod -R a+rX "$tmp"

# shellcheck disable=SC2016 # $status and $uri are nginx's
nginx_config() { # NAME, and the http section on the standard input
  printf 'worker_processes 2; pid %s.pid; error_log %s.err; daemon off; user root;\nevents { worker_connections 1024; }\nhttp { sendfile on; tcp_nopush on; log_format short "$status $uri";\n' "$tmp/$1" "$tmp/$1" >"$tmp/$1.conf"
  cat >>"$tmp/$1.conf"
  printf '}\n' >>"$tmp/$1.conf"
}
nginx_config upstream <<NGINX
access_log $tmp/upstream-access.log short;
server { listen 127.0.0.1:8001; root $tmp/repo; }
NGINX
# proxy_cache_lock: one request fetches, the others wait; with the defaults they would all fetch after 5 s.
nginx_config proxy <<NGINX
access_log off;
proxy_cache_path $tmp/cache levels=1:2 keys_zone=repo:10m max_size=10g use_temp_path=off;
upstream repo { server 127.0.0.1:8001; keepalive 16; }
server { listen 127.0.0.1:8002; location / {
  proxy_pass http://repo; proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_cache repo; proxy_cache_valid 200 1h; proxy_cache_lock on; proxy_cache_lock_timeout 600s; proxy_cache_lock_age 600s;
} }
NGINX
cat >"$tmp/rackstrap.yaml" <<YAML
server: {interface: lo, address: 127.0.0.1, data_dir: $tmp/data}
network: {subnet: 127.0.0.0/8, dhcp: {mode: "off"}}
media: [{name: bench, dir: $tmp/tree}]
install: {repos: {base: {url: "http://127.0.0.1:8001/", via: appliance}}}
machines: [{name: kmaster, mac: "52:54:00:00:00:80", ip: 127.0.0.80, role: control-plane}]
YAML
serve upstream nginx -c "$tmp/upstream.conf" -p "$tmp"
serve proxy nginx -c "$tmp/proxy.conf" -p "$tmp"
serve rackstrap "$rackstrap" --config "$tmp/rackstrap.yaml" serve
daemon=${started[-1]}
for _ in $(seq 600); do grep -q '^ready' "$tmp/rackstrap.log" && break; sleep 0.1; done
grep -q '^ready' "$tmp/rackstrap.log" || { cat "$tmp/rackstrap.log"; exit 1; }
for _ in $(seq 100); do grep -q 'repomd.xml.asc' "$tmp/upstream-access.log" && break; sleep 0.1; done # its metadata is there at the start

declare -A rate fetched
ticks() { awk '{ print $14 + $15 }' "/proc/$daemon/stat"; }
measure() { # NAME TEMPERATURE URL
  local seconds bytes before
  before=$(grep -c '^200 /Packages' "$tmp/upstream-access.log" || true)
  read -r seconds bytes < <(ip netns exec $ns timeout 900 "$tmp/client" fetch "$tmp/repo" "$3" "$clients")
  rate[$1,$2]=$(awk -v s="$seconds" -v b="$bytes" 'BEGIN { printf "%.0f", b / 1e6 / s }')
  fetched[$1,$2]=$(($(grep -c '^200 /Packages' "$tmp/upstream-access.log") - before))
}
for temperature in cold warm; do
  measure nginx $temperature http://127.0.0.1:8002/
  measure rackstrap $temperature http://127.0.0.1:8080/repo/base/
done
files=$(find "$tmp/repo/Packages" -type f | wc -l)

row() { printf '%-44s %12s %12s %12s %8s\n' "$@"; }
echo
row "Pull-through, MB/s to $clients clients in all" rackstrap nginx "" ratio
for temperature in cold warm; do
  row "100 MB repository, $temperature" "${rate[rackstrap,$temperature]}" "${rate[nginx,$temperature]}" "" \
    "$(awk -v a="${rate[rackstrap,$temperature]}" -v b="${rate[nginx,$temperature]}" 'BEGIN { printf "%.2f", a / b }')"
done
row "$files packages, fetched upstream" "$((fetched[rackstrap,cold] + fetched[rackstrap,warm]))" "$((fetched[nginx,cold] + fetched[nginx,warm]))" "" ""
echo "rackstrap compares every file with its checksum; its memory at most: $(awk '$1 == "VmHWM:" { printf "%.0f", $2 / 1024 }' "/proc/$daemon/status") MiB, its processor time: $(($(ticks) * 10)) ms"

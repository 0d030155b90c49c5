#!/bin/bash
# Rackstrap beside its peers, in one run on one host: DHCP against Kea (memfile) and dnsmasq, alone and under a flood of
# strangers, TFTP against tftpd-hpa, HTTP from inside an ISO against nginx with the file unpacked; memory. Printed as ratios: the
# machines are shared, only the relation means something. Clients and servers are in network namespaces.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
rackstrap=$PWD/bin/rackstrap
seconds=${BENCH_SECONDS:-8}
tmp=$(mktemp -d)
servers=rsbench-srv clients=rsbench-cli
started=()

stop_all() {
  for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${started[@]}"; do wait "$pid" 2>/dev/null || true; done
  started=()
}
cleanup() {
  stop_all
  ip netns del $servers 2>/dev/null || true
  ip netns del $clients 2>/dev/null || true
  rm -rf "$tmp"
}
trap cleanup EXIT

ip netns add $servers
ip netns add $clients
ip -n $servers link add srv0 type veth peer name cli0 netns $clients
ip -n $servers addr add 10.20.0.1/16 dev srv0
ip -n $clients addr add 10.20.0.2/16 dev cli0
for pair in "$servers srv0" "$clients cli0"; do
  read -r ns link <<<"$pair"
  ip -n "$ns" link set lo up
  ip -n "$ns" link set "$link" up
done
serve() { # NAME COMMAND...
  local name=$1
  shift
  ip netns exec $servers "$@" >"$tmp/$name.log" 2>&1 &
  server=$!
  started+=("$server")
}
client() { ip netns exec $clients "$@"; }
# Two servers are measured in turns, so that what else the machine does falls on both. The round in the middle, by its
# ratio, is what counts; the others tell how far to believe it.
rounds=${BENCH_ROUNDS:-5}
in_turns() { # KEY OURS THEIRS COMMAND...: COMMAND is called with OURS or THEIRS as its last argument
  local key=$1 ours=$2 theirs=$3 a b
  shift 3
  for _ in $(seq "$rounds"); do
    a=$("$@" "$ours")
    b=$("$@" "$theirs")
    echo "$a $b $(ratio "$a" "$b")" >>"$tmp/$key.rounds"
  done
}
middle() { # KEY LABEL
  local a b r
  read -r a b r < <(sort -k3g "$tmp/$1.rounds" | sed -n "$(((rounds + 1) / 2))p")
  row "$2" "$a" "$b" "$(sort -k3g "$tmp/$1.rounds" | awk 'NR == 1 { low = $3 } { high = $3 } END { print low "-" high }')" "$r"
}
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { if (b > 0) printf "%.2f", a / b; else printf "-" }'; }

# --- the work: an ISO with one large file, a thousand reserved machines ---------------------------------
mkdir -p "$tmp/tftp"
go run scripts/bench-repo.go medium "$tmp/tree"
printf '[general]\nfamily = CentOS\nversion = 7\narch = x86_64\n[images-x86_64]\nkernel = images/pxeboot/vmlinuz\ninitrd = images/pxeboot/initrd.img\n' >"$tmp/tree/.treeinfo"
# Both stay what they are by their first bytes, which is all that anybody looks at here.
head -c 1000000 /dev/urandom >>"$tmp/tree/images/pxeboot/vmlinuz"
head -c 33554432 /dev/urandom >>"$tmp/tree/images/pxeboot/initrd.img"
head -c 67108864 /dev/urandom >"$tmp/tree/Packages/large.rpm"
xorriso -as mkisofs -quiet -R -J -V BENCH -o "$tmp/bench.iso" "$tmp/tree" 2>/dev/null
mkdir -p "$tmp/tftp/media/bench/images"
cp -r "$tmp/tree/images/pxeboot" "$tmp/tftp/media/bench/images/"
chmod -R a+rX "$tmp"

config() { # conflict-free: reserved addresses 10.20.1.0 and up, the pool beyond
  cat <<YAML
server: {interface: srv0, address: 10.20.0.1, data_dir: $tmp/data}
network:
  subnet: 10.20.0.0/16
  gateway: 10.20.0.2
  dns: [10.20.0.2]
  dhcp: {pool: 10.20.100.0-10.20.250.255}
media: [{name: bench, iso: $tmp/bench.iso}]
cluster: {pod_cidr: 10.244.0.0/16, service_cidr: 10.1.0.0/16}
machines:
  - {name: client, mac: "52:54:00:ff:00:01", ip: 10.20.0.3, role: control-plane}
YAML
  for i in $(seq 0 999); do
    printf '  - {name: m%d, mac: "52:54:00:00:%02x:%02x", ip: 10.20.%d.%d, role: worker}\n' "$i" $((i / 256)) $((i % 256)) $((1 + i / 200)) $((1 + i % 200))
  done
}
config >"$tmp/rackstrap.yaml"
for i in $(seq 0 999); do printf '52:54:00:00:%02x:%02x\n' $((i / 256)) $((i % 256)); done >"$tmp/macs.txt"

start_rackstrap() {
  serve rackstrap "$rackstrap" --config "$tmp/rackstrap.yaml" serve
  for _ in $(seq 600); do grep -q '^ready' "$tmp/rackstrap.log" && break; sleep 0.1; done
  grep -q '^ready' "$tmp/rackstrap.log" || { cat "$tmp/rackstrap.log"; exit 1; }
  daemon=$(pgrep -f "^$rackstrap --config $tmp/" | head -n 1)
}
memory() { awk -v key="$1" '$1 == key":" { printf "%.0f", $2 / 1024 }' "/proc/$daemon/status"; }

# --- DHCP -----------------------------------------------------------------------------------------------
kea_config() {
  printf '{"Dhcp4":{"interfaces-config":{"interfaces":["srv0"]},"lease-database":{"type":"memfile","persist":true,"name":"%s/kea.csv"},' "$tmp"
  printf '"valid-lifetime":43200,"subnet4":[{"id":1,"subnet":"10.20.0.0/16","pools":[{"pool":"10.20.100.0-10.20.250.255"}],'
  printf '"option-data":[{"name":"routers","data":"10.20.0.2"},{"name":"domain-name-servers","data":"10.20.0.2"}],"reservations":['
  for i in $(seq 0 999); do
    [ "$i" = 0 ] || printf ','
    printf '{"hw-address":"52:54:00:00:%02x:%02x","ip-address":"10.20.%d.%d"}' $((i / 256)) $((i % 256)) $((1 + i / 200)) $((1 + i % 200))
  done
  printf ']}],"loggers":[{"name":"kea-dhcp4","severity":"ERROR","output_options":[{"output":"%s/kea-own.log"}]}]}}' "$tmp"
}
kea_config >"$tmp/kea.json"
{
  printf 'port=0\ninterface=srv0\nbind-interfaces\nno-ping\ndhcp-range=10.20.100.0,10.20.250.255,12h\ndhcp-option=3,10.20.0.2\ndhcp-lease-max=70000\nuser=root\nquiet-dhcp\ndhcp-leasefile=%s/dnsmasq.leases\n' "$tmp"
  for i in $(seq 0 999); do
    printf 'dhcp-host=52:54:00:00:%02x:%02x,10.20.%d.%d\n' $((i / 256)) $((i % 256)) $((1 + i / 200)) $((1 + i % 200))
  done
} >"$tmp/dnsmasq.conf"

ticks() { awk '{ print $14 + $15 }' "/proc/$server/stat"; } # processor time of the server so far, in 10 ms
rates="2000 4000 8000 12000 16000"

# perfdhcp plays a relay. Of four-way exchanges at the offered rate: how many were completed per second, how many percent
# of the packets were lost, and microseconds of the server's processor time for each that was completed.
exchanges() { # RATE OPTIONS...
  local rate=$1 before
  shift
  before=$(ticks)
  client timeout $((seconds + 20)) perfdhcp -4 -r "$rate" -p "$seconds" -W 1000000 "$@" 10.20.0.1 >"$tmp/perf.log" 2>&1 || true
  awk -v cpu=$(($(ticks) - before)) -v time="$seconds" '
    /drops:/ { drops += $2 } /sent packets:/ { sent += $3 } /received packets:/ { acks = $3 } # the last section is REQUEST-ACK
    END { printf "%d %.2f %s\n", acks / time, sent ? 100 * drops / sent : 100, acks ? int(cpu * 10000 / acks) : "-" }' "$tmp/perf.log"
}
declare -A dhcp
measure_dhcp() { # NAME
  local rate completed lost us
  for rate in 1000 $rates; do
    read -r completed lost us < <(exchanges "$rate" -M "$tmp/macs.txt")
    dhcp[$1,reserved,$rate]=$completed dhcp[$1,lost,$rate]=$lost dhcp[$1,reserved-us,$rate]=$us
  done
  for rate in $rates; do
    read -r completed lost us < <(exchanges "$rate" -R 30000)
    dhcp[$1,pool,$rate]=$completed dhcp[$1,pool-us,$rate]=$us
  done
}
start_kea() {
  serve kea env KEA_PIDFILE_DIR="$tmp" KEA_LOCKFILE_DIR=none kea-dhcp4 -c "$tmp/kea.json"
  sleep 2
}
start_dnsmasq() {
  serve dnsmasq dnsmasq -k -C "$tmp/dnsmasq.conf"
  sleep 1
}
echo "DHCP: ${seconds} s per step, three servers"
start_rackstrap
at_rest=$(memory VmRSS)
measure_dhcp rackstrap
under_dhcp=$(memory VmHWM)
stop_all
start_kea
measure_dhcp kea
stop_all
start_dnsmasq
measure_dhcp dnsmasq
stop_all

# --- a flood of strangers beside listed machines ------------------------------------------------------------
go build -o "$tmp/flood" scripts/bench-flood.go
ip -n $clients addr add 10.20.0.3/16 dev cli0
floods="0 2000 8000 20000"
measure_flood() { # NAME, with all addresses free again
  local name=$1 strangers pair
  rm -rf "$tmp"/data "$tmp"/kea.csv* "$tmp/dnsmasq.leases"
  "start_$name"
  for strangers in $floods; do
    for pair in $(client "$tmp/flood" -pid "$server" -flood "$strangers" -seconds "$seconds"); do
      dhcp[$name,${pair%%=*},$strangers]=${pair#*=}
    done
  done
  stop_all
}
echo "DHCP under a flood: the same three, ${seconds} s per step"
measure_flood rackstrap
measure_flood kea
measure_flood dnsmasq

# --- TFTP -----------------------------------------------------------------------------------------------
fetch_tftp() { # BLKSIZE CLIENTS PORT -> MB/s in all
  local size=33554432 begun ended pids=()
  begun=$(date +%s.%N)
  # Every client has an address of its own, and one that was given out: those of m0 to m31.
  for i in $(seq "$2"); do
    client curl --interface "10.20.1.$i" -sS --max-time 300 --tftp-blksize "$1" -o /dev/null "tftp://10.20.0.1:$3/media/bench/images/pxeboot/initrd.img" 2>>"$tmp/curl.log" &
    pids+=($!)
  done
  for pid in "${pids[@]}"; do wait "$pid" || echo failed >>"$tmp/tftp-failed"; done
  ended=$(date +%s.%N)
  awk -v n="$2" -v size=$size -v a="$begun" -v b="$ended" 'BEGIN { printf "%.1f", n * size / 1e6 / (b - a) }'
}
ip -n $clients addr flush dev cli0
for i in $(seq 32); do ip -n $clients addr add "10.20.1.$i/16" dev cli0; done
start_rackstrap
serve tftpd in.tftpd --foreground --listen --address 10.20.0.1:6969 --secure --user root "$tmp/tftp"
sleep 1
echo "TFTP: $rounds rounds, in turns with tftpd-hpa"
for blksize in 512 1468; do
  for n in 1 32; do in_turns "tftp-$blksize-$n" 69 6969 fetch_tftp $blksize $n; done
done

# --- HTTP -----------------------------------------------------------------------------------------------
cat >"$tmp/nginx.conf" <<NGINX
worker_processes 2; pid $tmp/nginx.pid; error_log $tmp/nginx.err; daemon off; user root;
events { worker_connections 1024; }
http { access_log off; sendfile on; tcp_nopush on; server { listen 10.20.0.1:8088; root $tmp/tree; } }
NGINX
serve nginx nginx -c "$tmp/nginx.conf" -p "$tmp"
sleep 1
fetch_http() { # CLIENTS URL -> MB/s
  client wrk -t "$(($1 > 1 ? 2 : 1))" -c "$1" -d "${seconds}s" --timeout 60s "$2" 2>&1 |
    awk '/Transfer\/sec/ { v = $2; m = v ~ /GB/ ? 1073.741824 : v ~ /MB/ ? 1.048576 : v ~ /KB/ ? 0.001024 : 0.000001; sub(/[A-Z]+/, "", v); printf "%.0f", v * m }'
}
echo "HTTP: $rounds rounds, in turns with nginx"
for n in 1 64; do
  in_turns "http-$n" http://10.20.0.1:8080/media/bench/Packages/large.rpm http://10.20.0.1:8088/Packages/large.rpm fetch_http $n
done
under_load=$(memory VmHWM)
stop_all

# --- what was seen --------------------------------------------------------------------------------------
row() { printf '%-44s %12s %12s %12s %8s\n' "$@"; }
echo
three() { # LABEL KEY
  row "$1" "${dhcp[rackstrap,$2]}" "${dhcp[kea,$2]}" "${dhcp[dnsmasq,$2]}" "$(ratio "${dhcp[rackstrap,$2]}" "${dhcp[kea,$2]}")"
}
row "DHCP, exchanges completed/s" rackstrap kea dnsmasq "to kea"
for rate in $rates; do
  three "1,000 reservations, $rate/s offered" "reserved,$rate"
  three "  processor time for each, us" "reserved-us,$rate"
done
for rate in $rates; do
  three "pool, $rate/s new clients (only ours asks first)" "pool,$rate"
  three "  processor time for each, us" "pool-us,$rate"
done
three "loss at 1,000/s with reservations, %" "lost,1000"
echo
row "DHCP, 500/s listed beside a flood" rackstrap kea dnsmasq "to kea"
for strangers in $floods; do
  three "listed exchanges lost, %, $strangers/s DISCOVERs" "lost_percent,$strangers"
  three "  the slowest percent of them took, ms" "p99_ms,$strangers"
  [ "$strangers" = 0 ] || three "  strangers' DISCOVERs answered/s" "flood_offers_per_s,$strangers"
  three "  processor time for each answer, us" "cpu_us_per_answer,$strangers"
  three "  memory at most, MiB" "peak_mib,$strangers"
done
echo
row "TFTP, MB/s in all" rackstrap tftpd-hpa "ratios seen" middle
for blksize in 512 1468; do
  for n in 1 32; do middle "tftp-$blksize-$n" "blksize $blksize, $n clients"; done
done
[ ! -e "$tmp/tftp-failed" ] || echo "$(wc -l <"$tmp/tftp-failed") TFTP transfers failed: $(sort "$tmp/curl.log" | uniq -c | head -n 3)"
echo
row "HTTP, MB/s in all" rackstrap nginx "ratios seen" middle
for n in 1 64; do middle "http-$n" "64 MiB from inside the ISO, $n clients"; done
echo
echo "memory: $at_rest MiB at rest, $under_dhcp MiB at most under DHCP, $under_load MiB at most under TFTP and HTTP"
echo
echo "kickstarts rendered per second of one processor (aim: 5,000):"
go test -run '^$' -bench '^BenchmarkRender$' -cpu 1 -benchtime 2s ./kickstart |
  awk '/^BenchmarkRender/ { for (i = 2; i < NF; i++) if ($(i + 1) == "kickstarts/cpu-s") printf "  %-10s %d\n", substr($1, 17), $i }'
echo
scripts/bench-repo.sh
echo
scripts/bench-nodes.sh

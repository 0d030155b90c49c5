#!/bin/bash
# Looks, on a machine of the lab that has booted its disk, whether it is as the plan prescribes. Run it there with the
# machine's name and address: rackstrap lab ssh NAME bash -s NAME ADDRESS <check-installed.sh
set -uo pipefail
name=$1 address=$2 faults=0
expect() { # WHAT WANT HAVE
  case $3 in
  *$2*) printf '  %-22s %s\n' "$1" "$(tr '\n' ' ' <<<"$3" | cut -c 1-90)" ;;
  *) printf '  %-22s WRONG: want "%s", have "%s"\n' "$1" "$2" "$3" && faults=$((faults + 1)) ;;
  esac
}
timeout 300 systemctl is-system-running --wait >/dev/null || true # kubelet waits for kubeadm: "degraded" may be right
expect systemd systemd "$(cat /proc/1/comm)"
expect root "/dev/mapper/centos_${name//-/_}-root" "$(findmnt --noheadings --output SOURCE,FSTYPE /)"
expect boot xfs "$(findmnt --noheadings --output SOURCE,FSTYPE /boot)"
expect 'host name' "$name" "$(hostname)"
expect address "$address/24" "$(ip -4 -oneline addr show scope global | awk '{ print $2, $4 }')"
expect 'hosts file' "$address $name" "$(cat /etc/hosts)"
expect swap none "none$(swapon --show --noheadings)"
for pair in net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1 net.ipv4.ip_forward=1 vm.swappiness=0; do
  expect "${pair%=*}" "${pair#*=}" "$(sysctl --values "${pair%=*}" 2>&1)"
done
for module in overlay br_netfilter ip_vs ip_vs_rr ip_vs_wrr ip_vs_sh nf_conntrack; do
  expect "module $module" loaded "$(lsmod | awk -v m="$module" '$1 == m { print "loaded" }')"
done
for unit in sshd chronyd containerd docker; do
  expect "$unit" =active "=$(systemctl is-active "$unit")"
done
expect kubelet =enabled "=$(systemctl is-enabled kubelet)"
expect firewalld 'not there' "$(systemctl is-enabled firewalld >/dev/null 2>&1 || echo not there)"
config=$(containerd config dump)
expect 'containerd cgroups' 'SystemdCgroup = true' "$(grep -m 1 SystemdCgroup <<<"$config")"
expect 'containerd sandbox' 'google_containers/pause:3.9' "$(grep -m 1 sandbox_image <<<"$config")"
expect 'containerd CRI' io.containerd.grpc.v1 "$(ctr plugins ls | awk '$2 == "cri" && $4 == "ok" { print $1, $4 }')"
expect time "server " "$(grep '^server' /etc/chrony.conf)"
expect packages 'kubeadm-1.28.2' "$(rpm --query kubeadm kubelet kubectl containerd.io docker-ce 2>&1)"
exit "$((faults > 0))"

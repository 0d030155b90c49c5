#!/bin/sh
# shellcheck disable=SC2154 # the variables are udhcpc's
# Configures the NIC as udhcpc asks, and leaves what the server said for init.
case "$1" in
bound | renew)
	ip addr flush dev "$interface"
	ip addr add "$ip/${mask:-24}" dev "$interface"
	for gateway in $router; do
		ip route replace default via "$gateway" dev "$interface"
		break
	done
	{
		echo "address=$ip"
		echo "server=$serverid"
		echo "router=$router"
		echo "hostname=$hostname"
		echo "lease=$lease"
	} >/run/lease
	;;
esac
exit 0

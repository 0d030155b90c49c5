#!/bin/sh
# The init of the lab's initrd. It stands in for Anaconda's first minutes: it does on the wire what the
# CentOS 7 installer does (DHCP on the NIC of BOOTIF, the kickstart with the installer's headers, the tree's
# first files) and tells each step on the serial port. A second stage that holds the lab's system then takes over
# (package lab/installer), as Anaconda does from dracut. With rackstrap.disk=NAME it stands in for the installed
# system.

export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

# Every step is told on the serial port, whatever console= says, and on the screen.
say() {
	for console in /dev/ttyS0 /dev/tty0; do
		[ -c "$console" ] && echo "rackstrap-lab: $*" >"$console"
	done
}

# argument NAME prints the value of the last NAME=value on the kernel command line.
argument() {
	value=''
	# shellcheck disable=SC2013 # words, not lines
	for word in $(cat /proc/cmdline); do
		case "$word" in "$1"=*) value=${word#*=} ;; esac
	done
	echo "$value"
}

# given WORD tells whether the word stands on the kernel command line.
given() {
	# shellcheck disable=SC2013 # words, not lines
	for word in $(cat /proc/cmdline); do
		[ "$word" = "$1" ] && return 0
	done
	return 1
}

# finish ends as asked: the power off, or a shell for `rackstrap lab console`.
finish() {
	if given rackstrap.poweroff; then
		say "powering off"
		poweroff -f
	fi
	while :; do
		setsid -c sh </dev/ttyS0 >/dev/ttyS0 2>&1
		sleep 1
	done
}

fail() {
	say "FAILED $*"
	finish
}

# nic_of MAC prints the name of the NIC that has the address.
nic_of() {
	for nic in /sys/class/net/*; do
		[ "$(cat "$nic/address")" = "$1" ] && basename "$nic" && return
	done
	return 1
}

# first_nic prints the name of the first Ethernet NIC (type 1: ARPHRD_ETHER).
first_nic() {
	for nic in /sys/class/net/*; do
		[ "$(cat "$nic/type")" = 1 ] && basename "$nic" && return
	done
	return 1
}

# await COMMAND... repeats the command until it succeeds, for ten seconds: drivers probe when they like.
await() {
	tries=0
	while ! "$@"; do
		tries=$((tries + 1))
		[ "$tries" -lt 100 ] || return 1
		usleep 100000
	done
}

# configure NIC [UDHCPC-OPTION...] gets an address.
configure() {
	nic=$1
	shift
	ip link set "$nic" up || fail "bringing up $nic"
	udhcpc -i "$nic" -n -q -t 8 -T 3 -s /etc/udhcpc.sh "$@" >/run/udhcpc.log 2>&1 ||
		fail "no DHCP lease on $nic: $(tail -n 1 /run/udhcpc.log)"
	address='' server='' router='' hostname='' lease=''
	while IFS='=' read -r key value; do
		case "$key" in
		address) address=$value ;;
		server) server=$value ;;
		router) router=$value ;;
		hostname) hostname=$value ;;
		lease) lease=$value ;;
		esac
	done </run/lease
	say "address $address on $nic $(cat "/sys/class/net/$nic/address")"
	say "lease from $server: router ${router:-none}, hostname ${hostname:-none}, $lease s"
}

# get URL FILE fetches once and prints the HTTP status and the size. As Anaconda does, it sends what
# inst.ks.sendmac and inst.ks.sendsn ask for: every NIC, counted from 0; the serial number.
get() {
	target=$1 file=$2
	set --
	if given inst.ks.sendmac || [ -n "$(argument inst.ks.sendmac)" ]; then
		count=0
		for nic in /sys/class/net/*; do
			[ "$(cat "$nic/type")" = 1 ] || continue
			set -- "$@" --header "X-RHN-Provisioning-MAC-$count: $(basename "$nic") $(cat "$nic/address")"
			count=$((count + 1))
		done
	fi
	if given inst.ks.sendsn || [ -n "$(argument inst.ks.sendsn)" ]; then
		set -- "$@" --header "X-System-Serial-Number: $(cat /sys/class/dmi/id/product_serial)"
	fi
	rm -f "$file"
	timeout 300 wget -S -U "curl/7.29.0" -O "$file" "$@" "$target" >/run/wget.log 2>&1
	status=$(sed -n 's|.*HTTP/1\.[01] \([0-9][0-9][0-9]\).*|\1|p' /run/wget.log | tail -n 1)
	size=$(wc -c 2>/dev/null <"$file")
	echo "${status:-000} ${size:-0}"
}

# fetch WHAT URL FILE gets a file as Anaconda does, with three more tries when the server has a fault
# (curl --retry 3), and tells the outcome. It succeeds with status 200.
fetch() {
	what=$1 url=$2 file=$3 tries=0
	case "$url" in
	http://*) ;;
	*) fail "$what $url: the lab fetches by http alone" ;;
	esac
	while :; do
		# shellcheck disable=SC2046 # two words: status and size
		set -- $(get "$url" "$file")
		say "$what $url HTTP $1 $2 bytes"
		case "$1" in 000 | 5??) ;; *) break ;; esac
		tries=$((tries + 1))
		[ "$tries" -le 3 ] || break
		sleep "$tries"
	done
	[ "$1" = 200 ]
}

# tree URL fetches what the installer needs first of an installation tree that the appliance serves; a mirror
# elsewhere cannot be reached from the virtual rack.
tree() {
	base=${1%/}
	case "$base" in
	"http://$server" | "http://$server:"* | "http://$server/"*) ;;
	*) say "installation tree $base is outside of the rack: not fetched" && return ;;
	esac
	fetch treeinfo "$base/.treeinfo" /run/treeinfo || return 1
	image=$(sed -n 's/^mainimage *= *//p' /run/treeinfo)
	image=${image:-LiveOS/squashfs.img}
	fetch stage2 "$base/$image" /run/install/stage2 || return 1
	# A medium need not have these: 404 is the rule.
	for image in updates product; do
		! fetch "$image" "$base/images/$image.img" "/run/$image.img" || say "the lab has no use for $image.img"
	done
}

# hand_over makes the second stage the root, with a layer of memory above it, and lets the installer in it go on.
# It returns if the second stage is none that the lab has made.
hand_over() {
	mkdir -p /run/lower /run/upper /run/root
	mount -t squashfs -o loop,ro /run/install/stage2 /run/lower 2>/run/mount.log || return 1
	[ -x /run/lower/rackstrap-lab/rackstrap ] || return 1
	mount -t tmpfs -o size=50%,mode=755 upper /run/upper
	mkdir /run/upper/files /run/upper/work
	mount -t overlay -o lowerdir=/run/lower,upperdir=/run/upper/files,workdir=/run/upper/work overlay /run/root ||
		fail "mounting the second stage"
	cp /run/kickstart /run/install/ks.cfg
	mkdir -p /run/root/run/install
	mount -t proc proc /run/root/proc
	mount -t sysfs sysfs /run/root/sys
	# The kernel would ask for them in this initrd, which is still its root.
	chroot /run/root modprobe -a crc32c_generic dm_mod xfs ext4 vfat nls_cp437 nls_ascii nls_utf8
	if [ -d /sys/firmware/efi ]; then
		chroot /run/root modprobe efivarfs
		mount -t efivarfs efivarfs /run/root/sys/firmware/efi/efivars
	fi
	mount -t devtmpfs devtmpfs /run/root/dev
	mkdir -p /run/root/dev/pts
	mount -t devpts devpts /run/root/dev/pts
	mount -t tmpfs -o mode=755 run /run/root/run
	mkdir /run/root/run/install
	mount --bind /run/install /run/root/run/install
	cp /etc/resolv.conf /run/root/etc/resolv.conf 2>/dev/null
	chroot /run/root /usr/lib/systemd/systemd-udevd --daemon
	chroot /run/root udevadm trigger
	chroot /run/root udevadm settle --timeout=60
	chroot /run/root /rackstrap-lab/rackstrap lab-installer --handover /run/install >/dev/ttyS0 2>&1
	say "the installer has ended with status $?"
}

say "kernel command line: $(cat /proc/cmdline)"
while read -r module; do
	insmod "/modules/$module.ko" 2>/run/insmod.log || say "FAILED module $module: $(cat /run/insmod.log)"
done </modules/order

disk=$(argument rackstrap.disk)
if [ -n "$disk" ]; then
	# As the installed system: no PXEClient, no vendor class, its own host name.
	say "booted from the disk of $disk"
	nic=$(await first_nic) || fail "no network card"
	configure "$nic" -V "" -x "hostname:$disk"
	say "system reached"
	finish
fi

bootif=$(argument BOOTIF)
if [ -n "$bootif" ]; then
	# 01-52-54-00-00-00-80: the hardware type, then the address.
	mac=$(echo "${bootif#01-}" | tr 'A-F-' 'a-f:')
	nic=$(await nic_of "$mac") || fail "no network card has the address of BOOTIF=$bootif"
else
	say "no BOOTIF on the kernel command line: taking the first network card"
	nic=$(await first_nic) || fail "no network card"
fi
configure "$nic" -V "anaconda-Linux 3.10.0-1160.el7.x86_64 x86_64"

mkdir -p /run/install
repo=$(argument inst.repo)
kickstart=$(argument inst.ks)
if [ -n "$kickstart" ]; then
	fetch kickstart "$kickstart" /run/kickstart || fail "kickstart $kickstart"
	[ -n "$repo" ] || repo=$(sed -n 's/^url .*--url[= ]"\{0,1\}\([^" ]*\).*/\1/p' /run/kickstart)
else
	say "no inst.ks on the kernel command line"
fi
stage2=$(argument inst.stage2)
stage2=${stage2:-$repo}
if [ -n "$stage2" ]; then
	tree "$stage2" || fail "installation tree $stage2"
fi
say "installer reached"
hand_over
finish

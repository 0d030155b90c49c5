// Package installer stands in for Anaconda in the lab, which cannot have CentOS's own installer: it executes an
// unchanged kickstart as Anaconda 21.48 (CentOS 7.9) would, and lays down a Debian system.
//
// It keeps to the installer's contract: kernel arguments, the order of its requests and their headers, %pre,
// storage, %packages resolved against the medium's metadata, users, services and network, %post in a chroot,
// boot loader, reboot. When something fails, it stops as Anaconda of the kickstart's release does, in text or cmdline mode:
// what is logged, whether %onerror runs, whether the machine waits for a key (see stopOf). The kernel argument
// rackstrap.fault=storage|package|source|transaction|boot-loader|exception makes that happen. Commands, options and sections that it does not know are errors, never
// ignored. docs/lab.md says what all this does not prove.
//
// It runs in two modes. On a machine with a disk the lab's initrd fetches kickstart and second stage, as dracut
// does, and hands over (`rackstrap lab-installer --handover DIR`). For a machine that is a set of namespaces, it
// installs into a directory that holds the lab's system already (see lab.System), for instance an overlay:
//
//	ip netns exec knode1 rackstrap lab-installer --root /srv/knode1 --interface eth0 --mac 52:54:00:00:00:81 \
//	  --serial knode1 --kernel-args "inst.ks=http://10.10.10.1:8080/ks/52-54-…/… BOOTIF=01-52-54-… ip=dhcp inst.ks.sendmac …"
//
// or, in Go, from a process that is in the machine's network namespace:
//
//	outcome, err := installer.Run(ctx, installer.Options{Root: …, KernelArgs: …, Interface: "eth0", MAC: mac})
//
// There it does everything too (DHCP on the interface, the requests of the second stage, %pre, packages, %post,
// %onerror) except for partitions, file systems and the boot loader, and it does not reboot: the outcome says
// what the kickstart asks for. /proc, /sys, /dev, /run and /tmp are mounted below Root in a mount namespace of its
// own; its programs have a PID namespace, which a reboot by one of them ends. %pre and %post see one disk, sda of 20 GiB, whatever the host has. The kernel arguments are what the boot
// script gives (`/boot/{mac}/ipxe`).
//
// In the installed system the same program is `yum` (see Tool): it reads /etc/yum.repos.d, resolves against the
// repositories' metadata, and leaves the rest to the real rpm.
package installer

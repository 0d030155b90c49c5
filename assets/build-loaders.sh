#!/bin/bash
# Collects the boot loaders that the binary embeds into assets/loaders: iPXE from Debian's package `ipxe`,
# GRUB built from the modules of grub-efi-amd64-bin, grub-efi-ia32-bin and grub-pc-bin. What a package does
# not bring is left out: DHCP offers what is there.
set -euo pipefail
out=$(dirname "$(readlink -f "$0")")/loaders
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

for loader in undionly.kpxe snponly.efi ipxe.efi ipxe.pxe; do
  if [ -e "/usr/lib/ipxe/$loader" ]; then install -m644 "/usr/lib/ipxe/$loader" "$out/$loader"; fi
done
# Newer Debian releases bring iPXE for arm64.
for loader in snponly ipxe; do
  if [ -e "/usr/lib/ipxe/$loader-arm64.efi" ]; then install -m644 "/usr/lib/ipxe/$loader-arm64.efi" "$out/$loader-arm64.efi"; fi
done

# The GRUB of firmware for which there is no iPXE, and of local_boot: grub. Its configuration comes by TFTP:
# the port of HTTP is not known when it is built.
cat >"$tmp/early.cfg" <<'CFG'
if [ -z "$net_default_server" ]; then net_bootp; fi
set prefix=(tftp,$net_default_server)/grub
configfile (tftp,$net_default_server)/grub/host-$net_default_mac.cfg
CFG
common="normal configfile echo test true sleep reboot halt boot linux chain search search_fs_file search_label part_gpt
  part_msdos fat ext2 xfs lvm iso9660 net tftp http gzio minicmd ls cat"
grub() { # platform, file, modules of its own
  [ -d "/usr/lib/grub/$1" ] || return 0
  local module modules=()
  for module in $common $3; do
    if [ -e "/usr/lib/grub/$1/$module.mod" ]; then modules+=("$module"); fi
  done
  grub-mkimage --format="$4" --output="$out/$2" --prefix=/grub --config="$tmp/early.cfg" "${modules[@]}"
}
grub x86_64-efi grubnetx64.efi "efinet all_video" x86_64-efi
grub i386-efi grubnetia32.efi "efinet all_video" i386-efi
grub arm64-efi grubnetaa64.efi "efinet all_video" arm64-efi
grub i386-pc grubpxe.0 "pxe biosdisk vbe" i386-pc-pxe
ls -l "$out"

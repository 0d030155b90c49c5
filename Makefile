# Rackstrap. `make` builds the binary, `make demo` boots a virtual rack with it, `make test` proves it.
# On a fresh Debian 12 with Go, as root: every target installs what it needs.

SHELL := /bin/bash
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
ARCH ?= $(shell go env GOARCH)

# Debian packages, by what they are for.
BUILD_PACKAGES := ipxe grub-common grub-efi-amd64-bin grub-efi-ia32-bin grub-pc-bin
LAB_PACKAGES   := iproute2 qemu-system-x86 qemu-utils ovmf ipxe-qemu xorriso squashfs-tools cpio zstd mtools dosfstools \
	fdisk gdisk busybox-static shim-signed grub-efi-amd64-signed mmdebstrap createrepo-c \
	gcc libc6-dev openssh-client
TEST_PACKAGES  := gcc libc6-dev udhcpc isc-dhcp-client isc-dhcp-relay kea-admin dnsmasq-base tftp-hpa atftp curl \
	tcpdump iputils-ping procps socat shellcheck dnf createrepo-c python3 systemd bsdutils
BENCH_PACKAGES := kea-dhcp4-server tftpd-hpa nginx-light wrk

.PHONY: all build loaders packages lab-packages test-packages bench-packages demo test quick bench fuzz clean

all: build

build: bin/rackstrap

# One static binary; ARCH=arm64 cross-compiles.
bin/rackstrap: loaders FORCE
	CGO_ENABLED=0 GOARCH=$(ARCH) go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/rackstrap

.PHONY: FORCE
FORCE:

loaders: packages
	@assets/build-loaders.sh >/dev/null

packages:
	@scripts/install.sh $(BUILD_PACKAGES)
lab-packages: packages
	@scripts/install.sh $(LAB_PACKAGES)
test-packages: lab-packages
	@scripts/install.sh $(TEST_PACKAGES)
bench-packages: test-packages
	@scripts/install.sh $(BENCH_PACKAGES)

# The main job on a virtual rack, on embedded defaults: three machines, power-on to Ready nodes.
demo: lab-packages build
	@scripts/demo.sh bin/rackstrap

# Real Kubernetes on namespace machines: from power-on to a cluster, and what its life brings. The first run builds
# Kubernetes from its Go modules, which takes ten minutes on two cores.
.PHONY: e2e
e2e: test-packages loaders
	set -o pipefail; go test -count=1 -timeout 60m -run '^TestRealKubernetes$$' -v ./e2e | grep -vE '^ *=== '

# The same with power cuts and a killed appliance in between, in REAL_ROUNDS racks.
REAL_ROUNDS ?= 3
.PHONY: chaos-kubernetes
chaos-kubernetes: test-packages loaders
	set -o pipefail; RACKSTRAP_REAL_CHAOS_ROUNDS=$(REAL_ROUNDS) RACKSTRAP_CHAOS_SEED=$(CHAOS_SEED) \
	  go test -count=1 -timeout 3h -run '^TestRealChaos$$' -v ./e2e | grep -vE '^ *=== '

# Everything, QEMU boots included. Under CI a skipped test is a failure.
test: test-packages loaders
	@scripts/test.sh

# Without machines that boot: seconds instead of minutes.
quick: loaders
	go vet ./... && go test -short ./...

bench: bench-packages build
	@scripts/bench.sh

# Random kills of agents, masters and the appliance, in CHAOS_ROUNDS racks from CHAOS_SEED on, some at a time.
CHAOS_ROUNDS ?= 200
CHAOS_LANES ?= 4
CHAOS_SEED ?= $(shell date +%s)
.PHONY: chaos
chaos: test-packages loaders
	set -o pipefail; RACKSTRAP_CHAOS_ROUNDS=$(CHAOS_ROUNDS) RACKSTRAP_CHAOS_LANES=$(CHAOS_LANES) RACKSTRAP_CHAOS_SEED=$(CHAOS_SEED) \
	  go test ./e2e -count=1 -timeout 3h -run '^TestChaos$$' -v | grep -vE '^ *=== '

# The attacks of docs/security.md, against the daemon in network namespaces: each is refused, bounded and reported. Part of
# `make test`, too.
.PHONY: attack
attack: test-packages loaders
	set -o pipefail; go test ./e2e -count=1 -timeout 30m -run '^TestAttack' -v | grep -vE '^ *=== '

# Each fuzz target for FUZZTIME.
FUZZTIME ?= 30s
fuzz:
	@scripts/fuzz.sh $(FUZZTIME)

clean:
	rm -rf bin
	find assets/loaders -type f ! -name README.md -delete

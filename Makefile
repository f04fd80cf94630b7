# The entry points; README.md tells what each is for. All are idempotent, and quick when nothing changed.
#
#   make            build everything into build/stage: host programs, agent, guest kernel, initrd and image
#   make kernel     build the small guest kernel, once per machine (10 to 20 minutes); `make` takes it from then on
#   make install    install what was built           [DESTDIR=] [PREFIX=/usr/local]
#   make uninstall  take it away again               [DESTDIR=] [PREFIX=/usr/local]
#   make demo       a container in a VM under containerd, with proof            (as root)
#   make check      the quick tests: format, lints, layers, licences, units     (as root)
#   make test       all tests, with real engines and VMs                        (as root)
#   make soak       boots, and processes that print and exit, many times in a row: hours   (as root)
#   make test-guests  tests with the pairs of guest kernel and root that are not installed: a quarter of an hour   (as root)
#   make test-kernel  build the small kernel once more, as a user without rights, and compare   (as root)
#   make host-vm    a machine with KVM for the tests, made on the spot, cached  (as root)
#   make bench      measure, print a table [BENCH=--groups=start,exec ...]      (as root)
#   make audit      look for published vulnerabilities of dependencies
#   make clean      remove all that was built

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo
CARGO_FLAGS ?= --locked
# The distribution's kernel package that guests boot, or a meta package that depends on it.
KERNEL_PACKAGE ?= linux-image-cloud-amd64
# Which kernel is installed: "small", "distribution", or "auto": the small one where it was built before (also by another checkout, or
# by root for all: see image/kernel/README.md), else one that needs no modules where a package or `make install` has left it, else the
# distribution's. Or the path of one that needs no modules: the kernel itself, compressed or not, or a directory with vmlinux.container or
# vmlinuz.container.
GUEST_KERNEL ?= auto
installed_kernels ?= $(wildcard $(addsuffix /share/kata-containers/vmlinux.container,$(PREFIX) /usr))

# --- Where things are -----------------------------------------------------------------------------

build := $(CURDIR)/build
# Tests and the demo run what is installed here, with a configuration that names its own paths.
stage := $(build)/stage/usr/local
release := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)/release
guest_target := x86_64-unknown-linux-gnu
agent := $(dir $(release))$(guest_target)/guest/kata-agent
# Kernel and initrd belong together; `chosen` is a link to the pair that is installed, `distribution` one to the package's.
guest := $(build)/guest
chosen := $(guest)/chosen
small := $(guest)/small
given := $(guest)/given
distribution := $(guest)/$(KERNEL_PACKAGE)
kernel_packages := $(distribution)/packages
guest_files := vmlinux.container vmlinuz.container kata-containers-initrd.img
image := $(guest)/kata-containers.img

host_crates := containerd-shim-kata-v2 kata-krun kata-ksm-throttler kata-runtime kata-shim kata-virtiofsd kata-image xtask
host_programs := $(addprefix $(release)/,$(host_crates))

build_packages := gcc libc6-dev pkg-config libseccomp-dev libcap-ng-dev
kernel_build_packages := gcc make binutils libc6-dev flex bison bc lz4 libelf-dev
check_packages := busybox-static iproute2 e2fsprogs erofs-utils cryptsetup-bin
bench_packages := runsc
engine_packages := containerd runc qemu-system-x86 busybox-static iproute2 containernetworking-plugins iptables \
    podman crun conmon netavark aardvark-dns docker.io
host_vm_packages := mmdebstrap debian-archive-keyring e2fsprogs util-linux

# --- Building -------------------------------------------------------------------------------------

.PHONY: all
all: $(host_programs) guest
	$(call install-into,$(stage),$(stage),$(shell mktemp -d))

# Cargo knows best what is up to date; it leaves a program alone, with its time, when nothing changed.
.PHONY: host-programs agent
host-programs: | build-deps
	$(CARGO) build $(CARGO_FLAGS) --release $(addprefix --package=,$(host_crates))
$(host_programs): host-programs ; @:

# The guest has no libraries: all of the agent is linked statically, with libseccomp.
agent: | build-deps
	RUSTFLAGS='-C target-feature=+crt-static' LIBSECCOMP_LINK_TYPE=static \
	    LIBSECCOMP_LIB_PATH="$$(pkg-config --variable=libdir libseccomp)" \
	    $(CARGO) build $(CARGO_FLAGS) --profile=guest --target=$(guest_target) --package=kata-agent
$(agent): agent ; @:

# The kernel's package files, listed one a line. They stay until `make clean`.
$(kernel_packages): | $(release)/kata-image
	@((EUID)) || apt-get update --quiet=2
	@mkdir -p $(@D)
	@$(release)/kata-image fetch-kernel --package=$(KERNEL_PACKAGE) --output=$(@D) >$@.new
	@mv $@.new $@

kernel_arguments = $$(sed 's/^/--kernel-package=/' $(kernel_packages))

$(distribution)/vmlinux.container $(distribution)/vmlinuz.container &: $(kernel_packages) $(release)/kata-image
	@$(release)/kata-image kernel $(kernel_arguments) --vmlinuz=$(distribution)/vmlinuz.container \
	    --output=$(distribution)/vmlinux.container

$(distribution)/kata-containers-initrd.img: $(kernel_packages) $(agent) $(release)/kata-image
	@$(release)/kata-image initrd --agent=$(agent) $(kernel_arguments) --output=$@

.PHONY: distribution-guest kernel guest
distribution-guest: $(addprefix $(distribution)/,$(guest_files))
	@ln -sfn $(KERNEL_PACKAGE) $(guest)/distribution

# Quick when the cache has it; $(1) are further options.
small_kernel = $(release)/kata-image kernel $(1) --vmlinuz=$(small)/vmlinuz.container --output=$(small)/vmlinux.container

kernel: $(release)/kata-image
	@mk/require-packages $(kernel_build_packages)
	@apt-cache show linux-source-6.12 >/dev/null 2>&1 || ((EUID)) || apt-get update --quiet=2
	@$(call small_kernel)

# The directory of the first that is installed. One that could load modules asks for the version that they are made for.
define kernel_without_modules
for file in $(installed_kernels); do grep --quiet 'version magic' $$file || { echo $${file%/*}; exit; }; done; exit 1
endef

# Works with any kernel.
$(image): $(agent) $(release)/kata-image
	@$(release)/kata-image rootfs --agent=$(agent) --file-system=ext4 --output=$@

# What is cheap is made at each call; what is the same is not installed again.
guest: $(release)/kata-image $(agent) $(image)
	@kind='$(GUEST_KERNEL)'; \
	if [[ $$kind == auto ]]; then \
	    if said=$$($(call small_kernel,--only-cached) 2>&1); then \
	        kind=small; \
	        note=$$(sed -n 's/^note: //p' <<<"$$said"); \
	        echo "guest kernel: small, built before$${note:+; $$note; 'make kernel' builds it anew}"; \
	    elif found=$$($(kernel_without_modules)); then \
	        kind=$$found; \
	        echo "guest kernel: $$found, which is installed; 'make kernel' builds one"; \
	    else \
	        kind=distribution; \
	        echo "guest kernel: the distribution's ($(KERNEL_PACKAGE)); 'make kernel' builds the small one ($${said##*kata-image: })"; \
	    fi; \
	else \
	    echo "guest kernel: as GUEST_KERNEL says: $$kind"; \
	fi; \
	case $$kind in \
	small) \
	    if [[ '$(GUEST_KERNEL)' == small ]]; then $(MAKE) kernel; fi; \
	    $(release)/kata-image initrd --agent=$(agent) --output=$(small)/kata-containers-initrd.img; \
	    ln -sfn small $(chosen) ;; \
	distribution) \
	    $(MAKE) distribution-guest; \
	    ln -sfn $(KERNEL_PACKAGE) $(chosen) ;; \
	*/*) \
	    $(release)/kata-image kernel --from="$$kind" --vmlinuz=$(given)/vmlinuz.container --output=$(given)/vmlinux.container; \
	    $(release)/kata-image initrd --agent=$(agent) --output=$(given)/kata-containers-initrd.img; \
	    ln -sfn given $(chosen) ;; \
	*) echo 'GUEST_KERNEL must be auto, small, distribution or the path of a kernel (with a slash in it)' >&2; exit 1 ;; \
	esac

# --- Installing -----------------------------------------------------------------------------------

config := share/defaults/kata-containers/configuration.toml
# io.containerd.kata-NAME.v2: the same shim, with configuration-NAME.toml.
variants := clh fc krun qemu
# What the configuration calls those whose variant has another name.
hypervisor_fc := firecracker
variant_files := $(foreach v,$(variants),bin/containerd-shim-kata-$(v)-v2 \
    share/defaults/kata-containers/configuration-$(v).toml)
public_programs := containerd-shim-kata-v2 kata-image kata-runtime
private_programs := kata-krun kata-shim kata-virtiofsd
# The shim under another name (docs/adr/0028): one file, where the file system allows that.
proxy := libexec/kata-containers/kata-proxy
# How engines are told of Kata.
examples := $(notdir $(wildcard docs/examples/*))
ksm_units := kata-ksm-throttler.service kata-vc-throttler.service
# Made from the definitions of the command line. `*` is for the shell that takes them away: a page for each command.
manual := share/man/man8/kata-runtime.8 share/man/man8/kata-runtime-*.8 share/man/man1/kata-image.1 share/man/man1/kata-image-*.1 \
    $(foreach program,kata-image kata-runtime,share/bash-completion/completions/$(program) \
    share/zsh/site-functions/_$(program) share/fish/vendor_completions.d/$(program).fish)
installed := $(variant_files) $(addprefix bin/,$(public_programs)) $(addprefix libexec/kata-containers/,$(private_programs)) $(proxy) \
    $(addprefix share/kata-containers/,$(guest_files) $(notdir $(image))) $(config) \
    $(addprefix share/kata-containers/guest/,kata-agent kata-agent.service kata-containers.target) \
    $(addprefix libexec/kata-ksm-throttler/,kata-ksm-throttler trigger/virtcontainers/vc) \
    $(addprefix lib/systemd/system/,$(ksm_units)) $(manual) \
    $(addprefix share/doc/kata-containers/examples/,$(examples))

# What an installation is made of. Only a kernel that was given uncompressed has no compressed form.
built = $(host_programs) $(release)/vc $(agent) $(addprefix $(chosen)/,$(filter-out vmlinuz.container,$(guest_files))) $(image)

# $(call install-into,DIRECTORY,PREFIX,SCRATCH): what is built, into DIRECTORY, configured for PREFIX. What has to be made for that is made in
# SCRATCH, a directory of its own, so that root leaves nothing in the checkout of somebody else. Files that are the same are left alone.
define install-into
@install -C -D -m 755 $(addprefix $(release)/,$(public_programs)) -t $(1)/bin
@install -C -D -m 755 $(addprefix $(release)/,$(private_programs)) -t $(1)/libexec/kata-containers
@shim=$(1)/bin/containerd-shim-kata-v2; \
    [[ $(1)/$(proxy) -ef $$shim ]] || ln -f $$shim $(1)/$(proxy) 2>/dev/null || install -C -m 755 $$shim $(1)/$(proxy)
@for file in $(guest_files); do \
    if [[ -e $(chosen)/$$file ]]; then \
        install -C -D -m 644 $(chosen)/$$file -t $(1)/share/kata-containers; \
    else \
        rm -f $(1)/share/kata-containers/$$file; \
    fi; \
done
@install -C -D -m 644 $(image) -t $(1)/share/kata-containers
@install -C -D -m 755 $(agent) -t $(1)/share/kata-containers/guest
@install -C -D -m 644 $(addprefix image/rootfs/systemd/,kata-agent.service kata-containers.target) -t $(1)/share/kata-containers/guest
@install -C -D -m 755 $(release)/kata-ksm-throttler -t $(1)/libexec/kata-ksm-throttler
@install -C -D -m 755 $(release)/vc -t $(1)/libexec/kata-ksm-throttler/trigger/virtcontainers
@for unit in $(ksm_units); do \
    sed 's|@libexec@|$(2)/libexec|' bin/kata-ksm-throttler/systemd/$$unit.in >$(3)/$$unit; \
    install -C -D -m 644 $(3)/$$unit -t $(1)/lib/systemd/system; \
done
@for name in $(examples); do \
    sed 's|@prefix@|$(2)|g' docs/examples/$$name >$(3)/$$name; \
    install -C -D -m 644 $(3)/$$name -t $(1)/share/doc/kata-containers/examples; \
done
@$(release)/xtask default-config --prefix $(2) >$(3)/configuration.toml
@install -C -D -m 644 $(3)/configuration.toml $(1)/$(config)
@for variant in $(foreach v,$(variants),$(v):$(or $(hypervisor_$(v)),$(v))); do \
    name=$${variant%:*}; \
    ln -sfn containerd-shim-kata-v2 $(1)/bin/containerd-shim-kata-$$name-v2; \
    sed "s/^hypervisor_name = .*/hypervisor_name = \"$${variant#*:}\"/" $(3)/configuration.toml \
        >$(3)/configuration-$$name.toml; \
    install -C -m 644 $(3)/configuration-$$name.toml -t $(1)/$(dir $(config)); \
done
@$(release)/xtask manual $(3)/manual
@cd $(3)/manual && find -type f -exec install -C -D -m 644 {} $(abspath $(1))/share/{} ';'
@rm -rf $(3)
@echo 'installed into $(1)'
endef

# Installs what `make` has built, so that root needs no Rust; builds only if something of it is missing.
.PHONY: install uninstall
install: $(if $(filter-out $(wildcard $(built)),$(built)),all)
	$(call install-into,$(DESTDIR)$(PREFIX),$(PREFIX),$(shell mktemp -d))

uninstall:
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,$(installed))
	@rmdir --ignore-fail-on-non-empty $(wildcard $(addprefix $(DESTDIR)$(PREFIX)/, \
	    libexec/kata-ksm-throttler/trigger/virtcontainers libexec/kata-ksm-throttler/trigger libexec/kata-ksm-throttler \
	    lib/systemd/system lib/systemd \
	    share/bash-completion/completions share/bash-completion share/zsh/site-functions share/zsh \
	    share/fish/vendor_completions.d share/fish share/man/man8 share/man/man1 \
	    share/doc/kata-containers/examples share/doc/kata-containers \
	    libexec/kata-containers share/kata-containers/guest share/kata-containers share/defaults/kata-containers)) 2>/dev/null || true

# --- Showing and testing --------------------------------------------------------------------------

.PHONY: demo
demo: all engines
	$(CARGO) run $(CARGO_FLAGS) --quiet --release --package=kata-e2e --bin=demo

.PHONY: check
check: build-deps
	@mk/require-packages $(check_packages)
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	$(CARGO) run $(CARGO_FLAGS) --quiet --package=xtask -- check
	@if command -v cargo-deny >/dev/null; then \
	    $(CARGO) deny --log-level=error check bans licenses sources; \
	else \
	    echo 'licences of dependencies are not checked: cargo-deny is not installed'; \
	fi
	$(CARGO) test $(CARGO_FLAGS) --workspace --exclude=kata-e2e --exclude=kata-kubernetes --exclude=kata-guest-tests \
	    --exclude=kata-host-vm --exclude=kata-qemu --exclude=kata-driver-contract
	$(CARGO) test $(CARGO_FLAGS) --package=kata-e2e --package=kata-host-vm --package=kata-qemu --lib --bins

.PHONY: test test-engines test-quick-starts
test:
	@mk/require-packages $(build_packages) $(check_packages) $(kernel_build_packages) $(engine_packages) $(host_vm_packages)
	$(MAKE) check kernel all distribution-guest engines
	$(CARGO) test $(CARGO_FLAGS) --package=kata-qemu --package=kata-driver-contract --test='*'
	$(CARGO) test $(CARGO_FLAGS) --package=kata-guest-tests --test='*' -- --test-threads=2
	$(CARGO) test $(CARGO_FLAGS) --package=kata-e2e --package=kata-kubernetes --test='*' -- --test-threads=2
	@# Each of them leaves a processor idle.
	$(MAKE) --jobs=2 --output-sync=line test-engines test-quick-starts
	$(CARGO) test $(CARGO_FLAGS) --package=kata-host-vm --test=kvm

test-engines test-quick-starts: test-%:
	$(CARGO) test $(CARGO_FLAGS) --package=kata-host-vm --test=$(subst -,_,$*)

# Guests that differ from the one that the tests have otherwise: each is a configuration file for tests.
guests := small small-image small-template distribution distribution-image

define write-guests
@mkdir -p $(build)/guests
@for guest_kind in $(guests); do \
    kernel=$${guest_kind%%-*}; file=$(build)/guests/$$guest_kind.toml; \
    initrd=$(guest)/$$kernel/kata-containers-initrd.img; \
    { echo '[hypervisor.qemu]'; echo "kernel = '$(guest)/$$kernel/vmlinux.container'"; \
      case $$guest_kind in \
      *-image) echo "image = '$(abspath $(image))'"; \
          if [ $$kernel = distribution ]; then echo "image_drivers = '$$initrd'"; fi ;; \
      *) echo "initrd = '$$initrd'" ;; \
      esac; \
      case $$guest_kind in *-template) \
          echo '[factory]'; echo 'enable_template = true'; echo "template_path = '$(build)/guests/template'" ;; \
      esac; } >$$file; \
done
endef

# What must not fail once in many times: boots of each guest under load, boots of the QEMU driver, short-lived processes.
soak_boots ?= 200
soak_driver_boots ?= 100
soak_processes ?= 1000

.PHONY: soak
soak: build-deps kernel all distribution-guest engines
	$(write-guests)
	@failed=; for guest_kind in $(guests); do \
	    echo "boots under load: $$guest_kind"; \
	    file=$(build)/guests/$$guest_kind.toml; \
	    if [[ $$guest_kind = *-template ]]; then KATA_CONF_FILE=$$file $(stage)/bin/kata-runtime factory init; fi; \
	    KATA_E2E_CONFIG=$$file KATA_E2E_BOOTS=$(soak_boots) \
	        $(CARGO) test $(CARGO_FLAGS) --package=kata-e2e --test=soak boots_in_a_row_under_load || failed+=" $$guest_kind"; \
	    if [[ $$guest_kind = *-template ]]; then KATA_CONF_FILE=$$file $(stage)/bin/kata-runtime factory destroy; fi; \
	done; \
	if [[ -n $$failed ]]; then echo "boots have failed with$$failed" >&2; exit 1; fi
	KATA_TEST_BOOTS=$(soak_driver_boots) $(CARGO) test $(CARGO_FLAGS) --package=kata-qemu --test=boot boots_in_a_row_never_hang
	KATA_E2E_SHORT_LIVED=$(soak_processes) \
	    $(CARGO) test $(CARGO_FLAGS) --package=kata-e2e --test=integrity short_lived -- --test-threads=1

# The tests of what a guest has a part in, with the pairs of kernel and root that `make test` takes only through a summary of them.
guest_tests := lifecycle integrity mounts network pods kill ends processes_by_hand output_by_hand

.PHONY: test-guests
test-guests: build-deps kernel all distribution-guest engines
	$(write-guests)
	@failed=; for guest_kind in $(filter-out small small-template,$(guests)); do \
	    echo "the guest is $$guest_kind"; \
	    KATA_E2E_CONFIG=$(build)/guests/$$guest_kind.toml \
	        $(CARGO) test $(CARGO_FLAGS) --package=kata-e2e $(guest_tests:%=--test=%) --no-fail-fast -- --test-threads=2 \
	        || failed+=" $$guest_kind"; \
	done; \
	if [[ -n $$failed ]]; then echo "tests have failed with$$failed" >&2; exit 1; fi

# Two builds of the kernel give the same bytes, and the second one is nobody's.
.PHONY: test-kernel
test-kernel: build-deps kernel
	@directory=$$(mktemp -d); trap 'rm -rf "$$directory"' EXIT; \
	install -m 755 $(release)/kata-image -t "$$directory"; chown nobody "$$directory"; \
	setpriv --reuid=nobody --regid=nogroup --clear-groups env -i PATH="$$PATH" HOME="$$directory" KATA_CACHE_DIR="$$directory/cache" \
	    "$$directory/kata-image" kernel --vmlinuz="$$directory/vmlinuz.container" --output="$$directory/vmlinux.container"; \
	for file in vmlinux.container vmlinuz.container; do cmp "$$directory/$$file" $(small)/$$file; done; \
	echo 'the kernel that nobody has built anew is the same byte for byte'

.PHONY: host-vm
host-vm: build-deps
	@mk/require-packages $(host_vm_packages)
	$(CARGO) run $(CARGO_FLAGS) --quiet --package=kata-host-vm --bin=host-vm -- build

.PHONY: bench
bench: kernel all distribution-guest engines
	@mk/require-packages $(bench_packages)
	$(CARGO) run $(CARGO_FLAGS) --quiet --release --package=kata-e2e --bin=bench -- $(BENCH)

# Needs the network, and changes without a change of ours: therefore not a part of `check`.
.PHONY: audit
audit:
	$(CARGO) deny check advisories

# --- Preparing and cleaning -----------------------------------------------------------------------

.PHONY: build-deps engines
build-deps:
	@command -v $(CARGO) >/dev/null || { echo 'cargo is missing; install Rust 1.90 or newer,' \
	    'with the package rustup (Debian 13 and newer) or from https://rustup.rs' >&2; exit 1; }
	@mk/require-packages $(build_packages)

engines:
	@((EUID == 0)) || { echo 'containerd and its VMs need root; run this as root' >&2; exit 1; }
	@mk/require-packages $(engine_packages)
	@# A file server that is not ours, for a test: older suites have it with QEMU, newer ones by itself.
	@test -e /usr/lib/qemu/virtiofsd || mk/require-packages virtiofsd

.PHONY: clean
clean:
	rm -rf $(build)
	$(CARGO) clean

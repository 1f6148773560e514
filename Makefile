# What a person types first. `make` lists the targets; CONTRIBUTING.md says how they fit together.
#
# Settings, each from the environment or the command line:
#   HAFS_CACHE         everything that is kept between runs      (default $XDG_CACHE_HOME/hafs or ~/.cache/hafs)
#   CARGO_TARGET_DIR   cargo's output                            (default $HAFS_CACHE/target: outside the checkout)
#   PREFIX, DESTDIR    where `make install` puts things        (default /usr/local, and no staging directory)
#   ROCKSDB_LIB_DIR    a directory with librocksdb.a             (default: built once by tools/scripts/build-rocksdb)
#   BENCH_ARGS         more for `hafs-bench filesystem`, for example BENCH_ARGS='--rounds 5 --only small -o json'
#   PEER               `PEER=gluster make bench` measures GlusterFS too, set up for the run (installs Debian's)
#   SCALE_ARGS         more for `hafs-bench scale`, for example SCALE_ARGS='--files 100000'
#   FUZZ_SECONDS       how long `make fuzz` attacks each decoder   (default 30)
#   NEXTEST_ARGS       more for `cargo nextest run`, for example NEXTEST_ARGS='-E test(rename)'

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

HAFS_CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/hafs
CARGO_TARGET_DIR ?= $(HAFS_CACHE)/target
export HAFS_CACHE CARGO_TARGET_DIR
export ROCKSDB_STATIC := 1
export PATH := $(HAFS_CACHE)/bin:$(PATH)

# One profile for everything (Cargo.toml says why), and the lock file as it is.
CARGO_FLAGS := --release --locked
# What is installed, and the same with fail points for the tests: side by side, so that neither is taken for the other.
PROGRAMS := hafsd hafsctl mount-fuse-hafs
BIN_DIR := $(CARGO_TARGET_DIR)/hafs
TEST_BIN_DIR := $(CARGO_TARGET_DIR)/failpoints
# What a run of the tests left out, and why: nextest does not show what passing tests say.
SKIPPED := $(CARGO_TARGET_DIR)/skipped
# Where install-packages has run, a program that it installs and a test misses is a failure, and not skipped.
test chaos-power stress: export HAFS_INSTALLED := 1
FAIL_POINTS := --features hafs-tools/failpoints
copy_programs = install -d $(1) && for p in $(PROGRAMS); do install -C -m 755 $(CARGO_TARGET_DIR)/release/$$p $(1)/$$p; done

.PHONY: help
help: ## List the targets
	@sed -n '/^[a-z-]*:.*## /{s/:.*## /|/; s/\$$\$$/$$/; p}' $(MAKEFILE_LIST) | while IFS='|' read -r target what; do \
	    printf '  make %-12s %s\n' "$$target" "$$what"; done

.PHONY: build
build: rocksdb ## Build hafsd, hafsctl and mount-fuse-hafs (the first time: RocksDB too, about 5 minutes)
	@cargo build $(CARGO_FLAGS) -p hafs-tools
	@$(call copy_programs,$(BIN_DIR))
	@echo "built: $(BIN_DIR)/{hafsd,hafsctl,mount-fuse-hafs}"

PREFIX ?= /usr/local
SYSCONFDIR ?= /etc
# mount(8) looks for helpers nowhere else.
MOUNT_HELPER_DIR ?= /sbin
.PHONY: install uninstall
install uninstall: export BIN_DIR := $(BIN_DIR)
install uninstall: export PREFIX := $(PREFIX)
install uninstall: export DESTDIR := $(DESTDIR)
install uninstall: export SYSCONFDIR := $(SYSCONFDIR)
install uninstall: export MOUNT_HELPER_DIR := $(MOUNT_HELPER_DIR)
install: ## Install what `make build` has built: programs, mount helpers, unit, manual pages (as root, or into DESTDIR)
	@tools/scripts/install install
uninstall: ## Take away what was installed, but no data
	@tools/scripts/install uninstall

.PHONY: demo
demo: build ## Redis in a container on a hafs volume, killed and back; cleans up after itself
	@tools/scripts/install-packages demo
	@HAFS_BIN_DIR=$(BIN_DIR) tools/scripts/demo

.PHONY: test
test: packages-test rocksdb ## Install what the tests need and run all of them (as root, else without those that mount)
	@[ "$$(id -u)" = 0 ] || echo "NOT ROOT: every test that mounts or starts a container is skipped; run 'sudo -E make test' for all"
	@cargo build $(CARGO_FLAGS) -p hafs-tools $(FAIL_POINTS)
	@$(call copy_programs,$(TEST_BIN_DIR))
	cargo test $(CARGO_FLAGS) --workspace $(FAIL_POINTS) --doc
	@rm -f $(SKIPPED)
	status=0; HAFS_SKIPPED=$(SKIPPED) HAFS_BIN_DIR=$(TEST_BIN_DIR) \
	    cargo nextest run $(CARGO_FLAGS) --workspace $(FAIL_POINTS) $(NEXTEST_ARGS) || status=$$?; \
	    sort -u $(SKIPPED) 2>/dev/null || true; exit $$status

.PHONY: chaos-power
chaos-power: packages-test rocksdb ## 200 power cuts under four writers (HAFS_POWER_CUTS, HAFS_POWER_SEED; as root, some 8 minutes)
	@cargo build $(CARGO_FLAGS) -p hafs-tools $(FAIL_POINTS)
	@$(call copy_programs,$(TEST_BIN_DIR))
	HAFS_POWER_CUTS=$${HAFS_POWER_CUTS:-200} HAFS_POWER_SEED=$${HAFS_POWER_SEED:-$$RANDOM} HAFS_BIN_DIR=$(TEST_BIN_DIR) \
	    cargo nextest run $(CARGO_FLAGS) --profile chaos -p hafs-tests -E 'binary(power)' $(NEXTEST_ARGS)

.PHONY: stress
stress: packages-test rocksdb ## stress-ng's filesystem stressors and dbench on a mount (as root, 5 minutes; HAFS_STRESS_SECONDS)
	@tools/scripts/install-packages stress
	@cargo build $(CARGO_FLAGS) -p hafs-tools $(FAIL_POINTS)
	@$(call copy_programs,$(TEST_BIN_DIR))
	HAFS_BIN_DIR=$(TEST_BIN_DIR) cargo nextest run $(CARGO_FLAGS) --profile chaos -p hafs-tests --run-ignored only --no-capture -E 'test(/^stress::/)' $(NEXTEST_ARGS)

.PHONY: lint
lint: rocksdb ## Formatting, clippy and docs, warnings as errors
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets $(FAIL_POINTS) -- -D warnings
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc $(CARGO_FLAGS) --workspace $(FAIL_POINTS) --no-deps --document-private-items
	for script in tools/scripts/* .ci/run; do bash -n "$$script"; done
	if command -v shellcheck >/dev/null; then shellcheck --severity=warning tools/scripts/* .ci/run; else echo "shellcheck is not here: skipped"; fi

.PHONY: fmt
fmt: ## Format the code
	cargo fmt --all

.PHONY: benches
benches: rocksdb ## Compile the benches
	@# With everything else, and the fail points of the tests: what those have compiled is used again.
	cargo build $(CARGO_FLAGS) --workspace $(FAIL_POINTS) --all-targets

.PHONY: bench
bench: build ## Measure a hafs mount beside ext4, bare FUSE and bindfs on one disk (as root; BENCH_ARGS='--only small')
	@tools/scripts/install-packages bench $(addprefix bench-,$(PEER))
	@cargo build $(CARGO_FLAGS) -p hafs-bench
	@HAFS_BIN_DIR=$(BIN_DIR) $(CARGO_TARGET_DIR)/release/hafs-bench filesystem $(addprefix --peer ,$(PEER)) $(BENCH_ARGS)

.PHONY: scale
scale: build ## Measure ten million files, a sparse TiB, 100 volumes (as root, an hour, 19 GiB; SCALE_ARGS)
	@cargo build $(CARGO_FLAGS) -p hafs-bench
	@HAFS_BIN_DIR=$(BIN_DIR) $(CARGO_TARGET_DIR)/release/hafs-bench scale $(SCALE_ARGS)

FUZZ_SECONDS ?= 30
.PHONY: fuzz
fuzz: rocksdb ## Attack every decoder of disk bytes with libFuzzer, FUZZ_SECONDS (30) each
	@tools/scripts/fuzz $(FUZZ_SECONDS)

.PHONY: deny
deny: ## Licences, sources and banned crates (needs cargo-deny; apart from the other gates)
	cargo deny check bans licenses sources

.PHONY: env
env: rocksdb ## Print the settings for cargo by hand: eval "$$(make env)"
	@echo "export ROCKSDB_STATIC=1 ROCKSDB_LIB_DIR='$(ROCKSDB_LIB_DIR)' CARGO_TARGET_DIR='$(CARGO_TARGET_DIR)'"

.PHONY: clean-cache
clean-cache: ## Remove all that was kept between runs (RocksDB, cargo's output, tools, images)
	rm -rf '$(HAFS_CACHE)' '$(CARGO_TARGET_DIR)'

.PHONY: packages-build packages-test
packages-build packages-test: packages-%:
	@tools/scripts/install-packages $*

# Finds RocksDB, and builds it the first time; only for the targets that need it.
.PHONY: rocksdb
rocksdb: packages-build
ifndef ROCKSDB_LIB_DIR
	$(eval export ROCKSDB_LIB_DIR := $(shell tools/scripts/build-rocksdb))
	@test -n "$(ROCKSDB_LIB_DIR)"
endif

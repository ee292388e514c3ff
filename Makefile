# quire - `make run` and `make test` are the two commands; `make help` lists all of them.
#
# Sources are found by wildcard:
#   engine/*.c, kernels/*.c, kernels/cpu/*.c   libquire.a, the embeddable engine
#   runner/*.c without main.c, cluster_mpi.c   librunner.a, linked to the CLI and to the tests
#   runner/cluster_mpi.c                       quire_mpi.so, where there is mpicc
#   tests/test_NAME.c                          one cmocka program each
#   tests/bench_NAME.c                         one measuring program each
#   tests/fuzz_NAME.c                          one libFuzzer target each (clang)
#   other tests/*.c                            libtesting.a, linked to those that use it
#   examples/NAME.c                            linked with libquire.a alone
#
# Every build is a folder ($(BUILD)): the sanitizers and clang have their own beside build/'s files.

ifeq ($(origin CC),default)
CC := $(if $(shell command -v gcc),gcc,cc)
endif

CC_VERSION := $(shell $(CC) -dumpfullversion -dumpversion 2>/dev/null)

BUILD  ?= build
OPT    ?= -O3
PREFIX ?= /usr/local

WARNINGS := -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
            -Wcast-qual -Wvla -Wimplicit-fallthrough -Wundef
# Warnings are errors with the compilers that quire is checked with (gcc 12, clang 14): a newer one may
# have a new warning, which is no reason to stop somebody's build.
WERROR   ?= $(if $(filter 12.% 14.0.%,$(CC_VERSION)),-Werror)
# -fno-math-errno only lets sqrtf become one instruction; results stay those of IEEE arithmetic.
COMPILE  := -std=c17 -D_GNU_SOURCE -I. $(OPT) -g $(WARNINGS) $(WERROR) -fno-math-errno -fopenmp \
            $(SANITIZE) $(CFLAGS)
# -rdynamic: quire_cuda.so, which is opened at run time, uses the executable's engine/util.c.
LINK     := $(OPT) -g -fopenmp -rdynamic $(SANITIZE) $(LDFLAGS)

ENGINE_LIBS := -ljansson -lpcre2-8 -lutf8proc -lcrypto -lm -lpthread -ldl
RUNNER_LIBS := -lyaml -lsqlite3
TEST_LIBS   := -lcmocka

# ---- sources and objects ------------------------------------------------------------------------

X86_ONLY := %_avx2.c %_avx512.c %_avx512vnni.c %_avx512bf16.c %_amx.c
MACHINE  := $(shell uname -m)

FOREIGN  := $(if $(filter-out x86_64,$(MACHINE)),$(X86_ONLY))

ENGINE_SRC  := $(filter-out $(FOREIGN),$(sort $(wildcard engine/*.c kernels/*.c kernels/cpu/*.c)))
RUNNER_SRC  := $(sort $(filter-out runner/main.c runner/cluster_mpi.c,$(wildcard runner/*.c)))
TEST_SRC    := $(sort $(wildcard tests/test_*.c))
BENCH_SRC   := $(sort $(wildcard tests/bench_*.c))
FUZZ_SRC    := $(sort $(wildcard tests/fuzz_*.c))
EXAMPLE_SRC := $(sort $(wildcard examples/*.c))
TESTING_SRC := $(filter-out tests/test_% tests/bench_% tests/fuzz_% $(FOREIGN), \
                 $(sort $(wildcard tests/*.c)))
ALL_SRC     := $(ENGINE_SRC) $(RUNNER_SRC) runner/main.c $(TEST_SRC) $(BENCH_SRC) $(FUZZ_SRC) \
               $(EXAMPLE_SRC) $(TESTING_SRC)

object      = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))
TESTS      := $(patsubst tests/%.c,$(BUILD)/tests/%,$(TEST_SRC))
BENCHES    := $(patsubst tests/%.c,$(BUILD)/bench/%,$(BENCH_SRC))
FUZZERS    := $(patsubst tests/%.c,$(BUILD)/programs/%,$(FUZZ_SRC))
EXAMPLES   := $(patsubst examples/%.c,$(BUILD)/examples/%,$(EXAMPLE_SRC))
E2E        := $(sort $(filter-out tests/e2e/lib.sh,$(wildcard tests/e2e/*.sh)))
LIBQUIRE   := $(BUILD)/libquire.a
LIBRUNNER  := $(BUILD)/librunner.a
LIBTESTING := $(BUILD)/libtesting.a
TEST_OBJ   := $(LIBTESTING) $(LIBRUNNER) $(LIBQUIRE)

# ---- commands -----------------------------------------------------------------------------------

# Recursion lets a set-up finish before anything is compiled; objects are then built on all cores
# unless the caller gave -j.
JOBS    = $(if $(findstring jobserver,$(MAKEFLAGS)),,-j$(shell nproc))
SUBMAKE = +@$(MAKE) --no-print-directory $(JOBS)

.PHONY: all run test test-slurm unit bench asan ubsan tsan fuzz lint format install clean help
.PHONY: binaries test-binaries bench-binaries fuzz-binaries run-fuzzers objects
.DEFAULT_GOAL := all

all: ## build ./quire and build/libquire.a
	@CC="$(CC)" tests/setup.sh --check build
	$(SUBMAKE) binaries

run: ## set up, build, run configs/demo.yaml and show its results
	@CC="$(CC)" tests/setup.sh build
	$(SUBMAKE) binaries
	@BUILD=$(BUILD) tests/demo.sh

test: ## set up, build, run every test
	@CC="$(CC)" tests/setup.sh test
	$(SUBMAKE) binaries test-binaries
	@BUILD=$(BUILD) tests/run.sh $(TESTS) $(E2E)

test-slurm: ## run tests/slurm against a real Slurm on this machine (root; skipped where it cannot be)
	@CC="$(CC)" tests/setup.sh test
	@tests/setup.sh slurm || true
	$(SUBMAKE) binaries
	@BUILD=$(BUILD) tests/slurm/test.sh

unit: ## build and run the unit tests only
	@CC="$(CC)" tests/setup.sh test
	$(SUBMAKE) test-binaries
	@BUILD=$(BUILD) tests/run.sh $(TESTS)

bench: ## run quire bench engine and tests/bench_*.c
	@CC="$(CC)" tests/setup.sh build
	$(SUBMAKE) binaries bench-binaries
	$(BUILD)/quire bench engine --dtype bfloat16,float32
	@set -e; for program in $(BENCHES); do $$program; done

# gcc's warnings see false paths in instrumented code, so -Werror stays with the plain build.
SANITIZED = WERROR= OPT=-O1
asan: ## unit tests under AddressSanitizer (build/asan)
	+@$(MAKE) --no-print-directory BUILD=$(BUILD)/asan $(SANITIZED) \
	    SANITIZE="-fsanitize=address -fno-omit-frame-pointer" unit

ubsan: ## unit tests under UndefinedBehaviorSanitizer (build/ubsan)
	+@$(MAKE) --no-print-directory BUILD=$(BUILD)/ubsan $(SANITIZED) \
	    SANITIZE="-fsanitize=undefined -fno-sanitize-recover=all" unit

# GCC's OpenMP runtime is not instrumented, so its barriers look like races: one OpenMP thread leaves
# the threads that quire itself starts. setarch -R: new kernels map where ThreadSanitizer's shadow is.
THREADED = $(shell grep -lE 'pthread_create|engine_start|cluster_start' $(TEST_SRC))
tsan: ## the unit tests that start threads, under ThreadSanitizer (build/tsan)
	+@OMP_NUM_THREADS=1 TEST_WRAPPER="setarch $(MACHINE) -R" $(MAKE) --no-print-directory \
	    BUILD=$(BUILD)/tsan $(SANITIZED) SANITIZE=-fsanitize=thread TEST_SRC="$(THREADED)" unit

FUZZ_S ?= 20
fuzz: ## run each fuzz target for FUZZ_S=20 seconds (needs clang; build/fuzz keeps the corpora)
	+@$(MAKE) --no-print-directory BUILD=$(BUILD)/fuzz CC=clang $(SANITIZED) \
	    SANITIZE=-fsanitize=fuzzer-no-link,address,undefined run-fuzzers

lint: ## format, include directions, banned calls, sizes, and a build with clang
	@tests/setup.sh lint
	@BUILD=$(BUILD) MAKE="$(MAKE)" tests/lint.sh

format: ## clang-format every tracked C file
	git ls-files '*.c' '*.h' '*.cu' '*.cuh' | xargs clang-format -i

install: all ## install below DESTDIR/PREFIX (default /usr/local)
	install -D -m 755 $(BUILD)/quire $(DESTDIR)$(PREFIX)/bin/quire
	install -D -m 644 $(LIBQUIRE) $(DESTDIR)$(PREFIX)/lib/libquire.a
	if [ -f $(BUILD)/quire_cuda.so ]; then \
	    install -D -m 755 $(BUILD)/quire_cuda.so $(DESTDIR)$(PREFIX)/lib/quire/quire_cuda.so; \
	fi
	if [ -f $(BUILD)/quire_mpi.so ]; then \
	    install -D -m 755 $(BUILD)/quire_mpi.so $(DESTDIR)$(PREFIX)/lib/quire/quire_mpi.so; \
	fi
	install -d $(DESTDIR)$(PREFIX)/include/quire/engine $(DESTDIR)$(PREFIX)/include/quire/kernels
	install -m 644 $(addprefix engine/,engine.h chat.h tokenizer.h trace.h util.h) \
	    $(DESTDIR)$(PREFIX)/include/quire/engine
	install -m 644 $(addprefix kernels/,backend.h random_rows.h) \
	    $(DESTDIR)$(PREFIX)/include/quire/kernels
	install -d $(DESTDIR)$(PREFIX)/share/quire
	cp -R configs $(DESTDIR)$(PREFIX)/share/quire/

clean: ## remove what was built; results/ stays
	rm -rf $(BUILD) quire

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12

# ---- build --------------------------------------------------------------------------------------

MPICC   ?= $(shell command -v mpicc)
MPI_LIB := $(if $(MPICC),$(BUILD)/quire_mpi.so)

binaries: $(BUILD)/quire $(LIBQUIRE) $(EXAMPLES) $(MPI_LIB)
ifeq ($(BUILD),build)
	@ln -sf build/quire quire
endif

test-binaries: $(TESTS)
bench-binaries: $(BENCHES)
fuzz-binaries: $(FUZZERS)
run-fuzzers: fuzz-binaries
	@set -e; for program in $(FUZZERS); do \
	    mkdir -p $$program.corpus; \
	    $$program -max_total_time=$(FUZZ_S) -artifact_prefix=$$program. $$program.corpus; \
	done

objects: $(call object,$(ALL_SRC))

# Archives are made anew: ar would keep the members of sources that are gone.
$(LIBQUIRE): $(call object,$(ENGINE_SRC))
$(LIBRUNNER): $(call object,$(RUNNER_SRC))
$(LIBTESTING): $(call object,$(TESTING_SRC))
$(LIBQUIRE) $(LIBRUNNER) $(LIBTESTING):
	@mkdir -p $(@D)
	@rm -f $@
	@$(AR) rcs $@ $^

$(BUILD)/quire: $(call object,runner/main.c) $(LIBRUNNER) $(LIBQUIRE) $(BUILD)/flags
	@echo "  link     $@"
	@$(CC) $(LINK) -o $@ $(filter-out %/flags,$^) $(RUNNER_LIBS) $(ENGINE_LIBS)

# Opened at run time, so that quire starts where there is no MPI. mpicc's headers are not ours to warn
# about.
$(BUILD)/quire_mpi.so: runner/cluster_mpi.c runner/cluster.h engine/util.h $(BUILD)/flags
	@echo "  compile  $<"
	@$(MPICC) -std=c17 -D_GNU_SOURCE -I. $(OPT) -g -fPIC -shared $(SANITIZE) -o $@ $<

$(TESTS): $(BUILD)/tests/%: $(BUILD)/obj/tests/%.o $(TEST_OBJ) $(BUILD)/flags
	@mkdir -p $(@D)
	@$(CC) $(LINK) -o $@ $(filter-out %/flags,$^) $(TEST_LIBS) $(RUNNER_LIBS) $(ENGINE_LIBS)

$(BENCHES): $(BUILD)/bench/%: $(BUILD)/obj/tests/%.o $(TEST_OBJ) $(BUILD)/flags
	@mkdir -p $(@D)
	@$(CC) $(LINK) -o $@ $(filter-out %/flags,$^) $(RUNNER_LIBS) $(ENGINE_LIBS)

$(FUZZERS): $(BUILD)/programs/%: $(BUILD)/obj/tests/%.o $(TEST_OBJ) $(BUILD)/flags
	@mkdir -p $(@D)
	@$(CC) $(LINK) -fsanitize=fuzzer -o $@ $(filter-out %/flags,$^) $(RUNNER_LIBS) $(ENGINE_LIBS)

$(EXAMPLES): $(BUILD)/examples/%: $(BUILD)/obj/examples/%.o $(LIBQUIRE) $(BUILD)/flags
	@mkdir -p $(@D)
	@$(CC) $(LINK) -o $@ $(filter-out %/flags,$^) $(ENGINE_LIBS)

# One source is compiled once per instruction set; the CPU is asked at run time which one it has.
AVX2   := -mavx2 -mfma -mf16c
AVX512 := $(AVX2) -mavx512f -mavx512bw -mavx512vl -mavx512dq
VNNI   := $(AVX512) -mavx512vnni
isa     = $(if $(filter %_avx2.c,$(1)),$(AVX2))$(if $(filter %_avx512.c,$(1)),$(AVX512))$(if \
          $(filter %_avx512vnni.c,$(1)),$(VNNI))$(if \
          $(filter %_avx512bf16.c %_amx.c,$(1)),$(VNNI) -mavx512bf16)

$(BUILD)/obj/%.o: %.c $(BUILD)/flags
	@mkdir -p $(@D)
	@echo "  compile  $<"
	@$(CC) $(COMPILE) $(call isa,$<) $(DEFINES) -MMD -MP -c -o $@ $<

# A file that is rewritten when its text changes, so that objects follow a change of flags and
# version.o a new commit, and nothing else is rebuilt.
define write_if_changed
@mkdir -p $(@D)
@printf '%s\n' '$(1)' | cmp -s - $@ || printf '%s\n' '$(1)' > $@
endef

.PHONY: always
$(BUILD)/flags: always
	$(call write_if_changed,$(CC) $(CC_VERSION) $(COMPILE) $(LINK))

GIT_COMMIT := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
GIT_DIRTY  := $(if $(shell git status --porcelain -- Makefile engine kernels runner 2>/dev/null),1,0)
$(BUILD)/commit: always
	$(call write_if_changed,$(GIT_COMMIT) $(GIT_DIRTY))
$(call object,runner/version.c): $(BUILD)/commit
$(call object,runner/version.c): DEFINES = -DQUIRE_GIT_COMMIT='"$(GIT_COMMIT)"' \
                                           -DQUIRE_GIT_DIRTY=$(GIT_DIRTY)

-include kernels/cuda/cuda.mk

-include $(patsubst %.o,%.d,$(call object,$(ALL_SRC)))

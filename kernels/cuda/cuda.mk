# cuda.mk - quire_cuda.so, the CUDA backend; included by the Makefile.
#
# nvcc is looked for on PATH, in $CUDA_HOME and in /usr/local/cuda; without it the backend is left out.
# CUDA_ARCHS lists compute capabilities; CUDA_ARCHS=90a is the quick build for a Hopper. Newer GPUs
# than the listed ones compile the PTX of 8.0 when they first run it.

NVCC := $(firstword $(shell command -v nvcc 2>/dev/null) \
          $(wildcard $(CUDA_HOME)/bin/nvcc /usr/local/cuda/bin/nvcc))

ifeq ($(NVCC),)

ifeq ($(MAKELEVEL),0)
$(info quire: no nvcc (PATH, CUDA_HOME, /usr/local/cuda): building without the CUDA backend)
endif

else

CUDA_ARCHS   ?= 75 80 86 89 90a
CUDA_SRC     := $(sort $(wildcard kernels/cuda/*.cu))
CUDA_OBJ     := $(patsubst %.cu,$(BUILD)/obj/%.o,$(CUDA_SRC))
CUDA_LIBRARY := $(BUILD)/quire_cuda.so
CUDA_FOLDER  := $(patsubst %/bin/nvcc,%,$(realpath $(NVCC)))

CUDA_PTX     := -gencode=arch=compute_80,code=compute_80
CUDA_CODE    := $(foreach arch,$(CUDA_ARCHS),-gencode=arch=compute_$(arch),code=sm_$(arch)) \
                $(if $(filter 80,$(CUDA_ARCHS)),$(CUDA_PTX))
CUDA_COMPILE := -std=c++17 -O3 -lineinfo -I. $(CUDA_CODE) -Werror=all-warnings \
                -Xcompiler=-fPIC,-fopenmp,-fvisibility=hidden,-Wall,-Wextra
# cuBLASLt is of another folder on each machine: beside the library, or where CUDA is here.
CUDA_LINK    := -shared -cudart=static -Xcompiler=-fopenmp -lcublasLt \
                -Xlinker=-rpath,'$$ORIGIN' -Xlinker=-rpath,$(CUDA_FOLDER)/lib64

binaries: $(CUDA_LIBRARY)

$(BUILD)/cuda_flags: always
	$(call write_if_changed,$(NVCC) $(CUDA_COMPILE))

$(CUDA_OBJ): $(BUILD)/obj/%.o: %.cu $(BUILD)/cuda_flags
	@mkdir -p $(@D)
	@echo "  nvcc     $<"
	@$(NVCC) $(CUDA_COMPILE) -MMD -MP -c -o $@ $<

$(CUDA_LIBRARY): $(CUDA_OBJ)
	@echo "  link     $@"
	@$(NVCC) $(CUDA_LINK) -o $@ $^

# Programs for a machine with a GPU, one for each tests/gpu/NAME.c and NAME.cu.
GPU_TEST_SRC := $(sort $(wildcard tests/gpu/*.c tests/gpu/*.cu))
GPU_TEST_OBJ := $(patsubst %.cu,$(BUILD)/obj/%.o,$(GPU_TEST_SRC:.c=.cu))
GPU_TESTS    := $(patsubst $(BUILD)/obj/tests/gpu/%.o,$(BUILD)/gpu-tests/%,$(GPU_TEST_OBJ))

.PHONY: gpu-tests
gpu-tests: $(GPU_TESTS)

$(patsubst %.cu,$(BUILD)/obj/%.o,$(filter %.cu,$(GPU_TEST_SRC))): $(BUILD)/obj/%.o: %.cu $(BUILD)/cuda_flags
	@mkdir -p $(@D)
	@echo "  nvcc     $<"
	@$(NVCC) $(CUDA_COMPILE) -MMD -MP -c -o $@ $<

# A .cu test calls the backend's own functions, a .c test the table in quire_cuda.so.
$(GPU_TESTS): $(BUILD)/gpu-tests/%: $(BUILD)/obj/tests/gpu/%.o $(LIBTESTING) $(LIBQUIRE) $(CUDA_OBJ)
	@mkdir -p $(@D)
	@echo "  link     $@"
	@$(NVCC) -cudart=static -Xcompiler=-fopenmp -Xlinker=-export-dynamic \
	    -Xlinker=-rpath,'$$ORIGIN:$$ORIGIN/../lib' -o $@ \
	    $(filter-out $(if $(wildcard tests/gpu/$*.c),$(CUDA_OBJ)),$^) -lcublasLt $(TEST_LIBS) $(ENGINE_LIBS)

-include $(CUDA_OBJ:.o=.d) $(GPU_TEST_OBJ:.o=.d)

endif

# Everything from a bare clone, in a virtual environment of its own:
#
#   make bench       train the lecture's network with cnnfast and with torch, then the benchmarks
#   make bench-layers, bench-models   the layers of well-known networks, whole models: a quarter of an hour each
#   make test        the Python and the C++ tests
#   make test-full   the slow ones: sanitizers, other instruction sets, the wheel, long random tests
#   make gpu-check   on a machine with a GPU: build, test and sanitize the CUDA kernels with the Python that is there
#   make ptx         the CUDA kernels as PTX, in build/ptx
#   make docs        the documentation, with its pictures, in build/site
#   make lint        formatting, style, types
#   make format      rewrite what `make lint` would complain of
#   make clean       remove what was built (not the virtual environment)
#
# PYTHON is the Python to start from, VENV where the environment goes, PIP_INSTALL how packages are installed, e.g.
# make test PIP_INSTALL="pip install --extra-index-url URL", URL being the index of CPU builds that PyTorch's
# installation page names.
PYTHON ?= python3
VENV ?= .venv
PIP_INSTALL ?= pip install
# The torch that cnnfast is tested with, and a later one on which the same wheel must run.
TORCH := 2.13.0
LATER_TORCH := 2.14.1
LATER_TORCHVISION := 0.29.1

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A worker takes a gigabyte or two; one that has done its tests takes some of another's, for they differ by minutes.
pytest := pytest --numprocesses auto --maxprocesses 8 --dist worksteal

bin := $(abspath $(VENV))/bin
later_bin := $(abspath $(VENV))-later/bin
sources := setup.py pyproject.toml $(shell find csrc -type f)
installed := $(VENV)/.installed-torch-$(TORCH)
later := $(VENV)-later/.torch-$(LATER_TORCH)
# Libraries that torch has loaded before cnnfast's are. A second OpenMP runtime in the process would cost speed.
of_torch := --exclude "libtorch*" --exclude "libcudart*" --exclude "libgomp*"

.PHONY: bench bench-layers bench-models test test-full wheel wheel-later sdist-later gpu-check ptx docs lint format clean
.DELETE_ON_ERROR:

$(VENV)/.torch-$(TORCH):
	$(PYTHON) -m venv $(VENV)
	$(bin)/python -m $(PIP_INSTALL) --quiet torch==$(TORCH) "setuptools>=77" ninja
	touch $@

$(installed): $(VENV)/.torch-$(TORCH) $(sources)
	$(bin)/python -m $(PIP_INSTALL) --quiet --no-build-isolation -e ".[bench,dev,docs,test,train]"
	touch $@

bench: $(installed)
	$(bin)/python -m cnnfast.train --backend both --data digits --epochs 3
	$(bin)/python -m benchmarks

bench-layers: $(installed)
	$(bin)/python -m benchmarks --suite layers

# torchvision goes with the later torch.
bench-models: wheel $(later)
	$(later_bin)/python -m $(PIP_INSTALL) --quiet --force-reinstall --no-deps build/wheel/repaired/*.whl
	$(later_bin)/python -m $(PIP_INSTALL) --quiet "cnnfast[bench]" torchvision==$(LATER_TORCHVISION)
	$(later_bin)/python -m benchmarks --suite models

test: $(installed) cpp-default
	$(bin)/python -m $(pytest) -m "not long"

# CMake and ninja are the environment's own. The default preset tests the very kernels that were installed.
cpp-default: cmake_options := -D CNNFAST_OBJECTS="$(CURDIR)/build/objects"
cpp-%: $(installed)
	PATH="$(bin):$$PATH" && cmake --preset $* $(cmake_options) && cmake --build --preset $* && ctest --preset $*

# NEON is compiled for and run on the emulator where the machine has both (Debian: g++-aarch64-linux-gnu, qemu-user-static).
missing_for_neon := $(shell for tool in aarch64-linux-gnu-g++ qemu-aarch64-static; do command -v $$tool > /dev/null || echo $$tool; done)

# The source distribution, and from it a wheel, which must compile without a warning, bring no library along and keep to
# the stable ABI of the oldest torch. auditwheel finds patchelf on the PATH only.
wheel: $(installed)
	rm -rf build/wheel
	CXXFLAGS=-Werror $(bin)/python -m build --no-isolation --outdir build/wheel
	PATH="$(bin):$$PATH" $(bin)/auditwheel repair $(of_torch) --wheel-dir build/wheel/repaired build/wheel/*.whl
	cd build/wheel && $(bin)/python -m zipfile -e repaired/*.whl unpacked
	test ! -e build/wheel/unpacked/cnnfast.libs
	$(bin)/torch-abi-audit --check both build/wheel/unpacked/cnnfast/_C.abi3.so

$(later):
	$(PYTHON) -m venv $(VENV)-later
	$(later_bin)/python -m $(PIP_INSTALL) --quiet torch==$(LATER_TORCH) "setuptools>=77" ninja
	touch $@

# The wheel on a later torch: at first with nothing but torch, then all fast tests and the real models, from what the
# source distribution holds of them, so that what they import is what is installed. Those of the CUDA sources would test
# nothing of it.
wheel-later: wheel $(later)
	$(later_bin)/python -m $(PIP_INSTALL) --quiet --force-reinstall --no-deps build/wheel/repaired/*.whl
	cd $(VENV)-later && $(later_bin)/python $(CURDIR)/tests/smoke.py
	$(later_bin)/python -m $(PIP_INSTALL) --quiet "cnnfast[test]" torchvision==$(LATER_TORCHVISION)
	rm -rf build/later && mkdir build/later
	tar -xzf build/wheel/*.tar.gz -C build/later --strip-components 1
	rm -r build/later/cnnfast*
	cd build/later && $(later_bin)/python -m $(pytest) -m "not long" --ignore-glob "tests/test_cuda_*"
	cd build/later && $(later_bin)/python -m $(pytest) -m long tests/test_real_models.py

# The source distribution as plain pip installs it: built with a torch of its own, in an environment of its own. The
# CUDA kernels, which take minutes, have test_cuda_install.py.
sdist-later: wheel-later
	CNNFAST_CUDA=0 $(later_bin)/python -m $(PIP_INSTALL) --quiet --force-reinstall --no-deps build/wheel/*.tar.gz
	cd $(VENV)-later && $(later_bin)/python $(CURDIR)/tests/smoke.py

test-full: cpp-asan-ubsan $(if $(missing_for_neon),,cpp-neon) sdist-later
	$(if $(missing_for_neon),@echo "NEON was not tested: no $(missing_for_neon) here")
# By file: tests of one share what they build, which takes minutes.
	$(bin)/python -m $(pytest) --dist loadfile --no-loadscope-reorder -m long

# Nothing is installed: what a GPU machine has is what its users have.
gpu-check:
	$(PYTHON) tests/gpu_check.py

# For a look at what the compiler makes of a kernel, and for tools that run PTX.
ptx: $(foreach arch,80 90,$(patsubst csrc/cuda/kernels/%.cu,build/ptx/%.compute_$(arch).ptx,$(wildcard csrc/cuda/kernels/*.cu)))

define ptx_rule
build/ptx/%.compute_$(1).ptx: csrc/cuda/kernels/%.cu $(shell find csrc/cuda csrc/common -name "*.h")
	mkdir -p build/ptx
	nvcc -std=c++20 -O3 -lineinfo -arch=compute_$(1) -Icsrc --ptx $$< -o $$@
endef
$(foreach arch,80 90,$(eval $(call ptx_rule,$(arch))))

# Nothing is fetched. The variable silences an advertisement of mkdocs-material's.
docs: $(installed)
	$(bin)/python docs/pictures.py
	NO_MKDOCS_2_WARNING=1 $(bin)/python -m mkdocs build --strict

cpp_files = $(shell git ls-files "*.cpp" "*.cu" "*.h")

lint: $(installed)
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/clang-format --dry-run -Werror $(cpp_files)
	$(bin)/mypy

format: $(installed)
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	$(bin)/clang-format -i $(cpp_files)

clean:
	rm -rf build dist *.egg-info cnnfast/*.so $(VENV)/.installed-*

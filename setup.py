"""Hands the compiled module to CMake and Ninja; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
WAY_OUT = (
    "see the output above; without a C++ compiler install one (Debian: apt install g++), "
    "set MSK_CUDA=OFF to do without the CUDA kernels, "
    "or set MS_KERNELS_SKIP_BUILD=1"
)


class CMakeBuild(build_ext):
    def build_extension(self, extension: Extension) -> None:
        target = Path(self.get_ext_fullpath(extension.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        configure = [
            *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja"),
            f"-DMSK_OUTPUT={target}",
            f"-DPython_EXECUTABLE={sys.executable}",
            # Named anew each time: the cache of an earlier build names pip's deleted environment.
            f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja') or 'ninja'}",
            f"-DMSK_CUDA={os.environ.get('MSK_CUDA', 'AUTO')}",
            "-DCMAKE_BUILD_TYPE=Release",
        ]
        # Those of an earlier build must not stay in the cache: the GPU's own are the default.
        architectures = os.environ.get("CMAKE_CUDA_ARCHITECTURES")
        configure.append(
            f"-DCMAKE_CUDA_ARCHITECTURES={architectures}"
            if architectures
            else "-UCMAKE_CUDA_ARCHITECTURES"
        )
        for command in (configure, ["cmake", "--build", build]):
            try:
                subprocess.run(command, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                sys.exit(f"ms_kernels: building the kernels failed ({error}); {WAY_OUT}")

    def copy_extensions_to_source(self) -> None:
        """Of an editable install: all modules of the build, of which setuptools knows one."""
        super().copy_extensions_to_source()
        package = self.get_finalized_command("build_py").get_package_dir("ms_kernels")
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        for module in (Path(self.build_lib) / "ms_kernels").glob(f"_*{suffix}"):
            shutil.copy2(module, Path(package) / module.name)


skip = os.environ.get("MS_KERNELS_SKIP_BUILD") == "1"
setup(
    # One build makes every module that this machine can compile.
    ext_modules=[] if skip else [Extension("ms_kernels._cpu", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
